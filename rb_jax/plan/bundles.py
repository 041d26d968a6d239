"""Reads XLA:TPU's final instruction bundles: how many cycles each kernel of a step issues.

A TensorCore issues one bundle per cycle, so a kernel's bundles times its loops' trip counts is the
time it takes when it never waits for memory, for the matrix unit or for another chip. The dump is
written by ``DUMP_FLAGS``; it has one file per kernel, named after the HLO instruction.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

from rb_jax.sharding.chips import Chip

DUMP_FLAGS = (
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=^final_bundles",
)  # and --xla_jf_dump_to=FOLDER
WHOLE = "TLP"  # the program that calls the kernels: long, and all of it waiting or addresses
_SUFFIX = "-01-final_bundles.txt"
_BUNDLE = re.compile(r"^\s*(?:0x)?([0-9a-f]+)\s*([A-Z]{2})?\s*:[\s>]*\{")
_EXIT = re.compile(r"= scmp\.\w+\.\w+\.totalorder %(\w+), (\d+) /\* loop exit test")
_BRANCH = re.compile(r"sbr\.rel \((!?)%(\w+)\) target = \$region(\d+)")
_PUSH = re.compile(r"\bvmatmul\.([a-z0-9.]*)")
_DELAY = 4  # bundles after a branch that still run
_ROWS = 16  # rows of bf16 in one matrix-unit instruction's operand


@dataclasses.dataclass
class Loop:
    """A loop of a kernel: bundles of one pass (inner loops apart) and how many passes it makes."""

    bundles: float = 0.0
    pushes: float = 0.0  # matrix-unit instructions, over all units
    trips: float = 1.0
    start: int = -1  # line of its head
    loops: list[Loop] = dataclasses.field(default_factory=list)

    def total(self, field: str) -> float:
        """All passes of this loop and of those inside."""
        inside = sum((loop.total(field) for loop in self.loops), 0.0)
        return self.trips * (getattr(self, field) + inside)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one run of a kernel issues on one core."""

    name: str
    bundles: float
    pushes: float  # matrix-unit instructions, over the core's units
    unknown: int  # loops whose trip count is not in the text, counted once

    def cycles(self, mxus: int, rows: int) -> float:
        """Bundles, or the matrix units' time where that is longer.

        ``rows`` rows per cycle: the scheduler may issue faster than the units work.
        """
        return max(self.bundles, self.pushes / max(mxus, 1) * _ROWS / max(rows, 1))

    def flops(self, chip: Chip) -> float:
        """FLOPs that the matrix units of one JAX device do, padding included."""
        cores = chip.cores / chip.devices
        return self.pushes * _ROWS * chip.side**2 * 2 * cores


def read_dump(folder: Path) -> dict[str, Kernel]:
    """HLO instruction name -> kernel, of every dumped kernel in a folder.

    Of several programs in one folder, the one with most bundles counts: it is the step.
    """
    programs: dict[str, dict[str, Kernel]] = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        name = path.name.removesuffix(_SUFFIX).split("-", 1)[1]
        if name.startswith("<") or name == WHOLE:
            continue
        with path.open(encoding="utf-8", errors="replace") as lines:
            programs.setdefault("", {})[name] = parse_kernel(name, lines)
    return programs.get("", {})


def parse_kernel(name: str, lines) -> Kernel:
    """The kernel of one file's lines."""
    text = list(lines)
    facts = _Facts(text)
    root = Loop()
    open_loops = [root]
    for i, line in enumerate(text):
        # A dump is hundreds of megabytes: the patterns run where they can match.
        match = _BUNDLE.match(line) if "{" in line else None
        if not match:
            continue
        if match[2] == "LB":
            loop = Loop(trips=0.0, start=i)
            open_loops[-1].loops.append(loop)
            open_loops.append(loop)
        share = facts.share(i) if facts.skips else 1.0
        open_loops[-1].bundles += share
        if "vmatmul" in line:
            open_loops[-1].pushes += share * sum(map(_operand, _PUSH.findall(line)))
        if "loop exit test" in line and (exit_test := _EXIT.search(line)):
            open_loops[-1].trips = facts.trips(exit_test[1], int(exit_test[2]))
        for back in facts.backward.get(i, ()):
            if back in (loop.start for loop in open_loops[1:]):
                while open_loops[-1].start != back:
                    open_loops.pop()
                open_loops.pop()
    unknown = _settle(root)
    return Kernel(name, root.total("bundles"), root.total("pushes"), unknown)


def _operand(form: str) -> float:
    """A matrix-unit instruction's operand in registers of 16 rows; of float32 a register has 8."""
    return 0.5 if "lmr" in form or "f32" in form else 1.0


def _settle(loop: Loop) -> int:
    """Loops without a readable trip count run once; returns how many there are."""
    count = 0
    for inside in loop.loops:
        if inside.trips == 0:
            inside.trips = 1.0
            count += 1
        count += _settle(inside)
    return count


class _Facts:
    """What a kernel's text says about its grid, its counters and its skipped regions."""

    def __init__(self, text: list[str]):
        self.text = text
        self.grid: tuple[int, ...] = ()
        self.regions: dict[str, int] = {}
        self.skips: list[tuple[int, int, float]] = []
        self.backward: dict[int, list[int]] = {}  # line of a branch -> lines of loop heads
        self.lines = len(text)
        branches: list[tuple[int, str, str, str]] = []
        for i, line in enumerate(text):
            if "iteration_bounds: (" in line and not self.grid:
                inside = line.split("iteration_bounds: (")[1].split(")")[0]
                self.grid = tuple(int(n) for n in inside.split(",") if n.strip())
            if "egion " in line:
                for number in re.findall(r"Start(?:/End empty)? region (\d+)", line):
                    self.regions.setdefault(number, i)
            if "sbr.rel" in line:
                branches += [(i, *found) for found in _BRANCH.findall(line)]
        for i, negated, predicate, region in branches:
            end = self.regions.get(region, 0)
            if end <= i and region in self.regions:
                self.backward.setdefault(i, []).append(end)
            if end > i + 20:  # forward, and long enough to matter
                small = end - i < self.lines / 3  # a stage's own test skips most of its loop
                runs = self._runs(predicate, bool(negated), small)
                self.skips.append((i + 1 + _DELAY, end, runs))

    def share(self, line: int) -> float:
        """The part of passes in which a line runs."""
        share = 1.0
        for begin, end, runs in self.skips:
            if begin <= line < end:
                share *= runs
        return share

    def trips(self, counter: str, bound: int) -> float:
        """Passes of a loop that ends when its counter reaches ``bound``.

        Passes that only fill or drain the grid's pipeline are not counted.
        """
        start, step = self._start(counter)
        passes = float(max(1, math.ceil((bound - start) / step)))
        grid = float(math.prod(self.grid))
        return grid if self.grid and 0 < passes - grid <= 4 else passes

    def _start(self, counter: str) -> tuple[int, int]:
        """(first value, step) of a counter; (0, 1) where the text does not say."""
        step = re.search(rf"%{counter} = sadd\.s32 (\d+), %(\w+)", self._line(f"%{counter} = "))
        if not step:
            return 0, 1
        phi = re.search(rf"%{step[2]} = sphi %(\w+), ", self._line(f"%{step[2]} = sphi"))
        first = phi and re.search(rf"%{phi[1]} = smov\.u32 (\d+) ", self._line(f"%{phi[1]} = smov"))
        return (int(first[1]) if first else 0), max(1, int(step[1]))

    def _line(self, part: str) -> str:
        return next((line for line in self.text if part in line), "")

    def _runs(self, predicate: str, negated: bool, small: bool) -> float:
        """How often a region behind a branch runs: 1, or once a sweep of a grid axis.

        The code writes results out, or clears its sums, when an index has one given value; the
        branch then skips the region if ``index != value`` (or ``index - value != 0``).
        """
        line = self._line(f"%{predicate} = scmp.")
        match = re.search(rf"%{predicate} = scmp\.(ne|eq)\.s32\.totalorder %(\w+), (\d+)", line)
        if not match or len(self.grid) == 0 or (match[1] == "eq") != negated:
            return 1.0
        value = int(match[3])
        offset = re.search(
            rf"%{match[2]} = sadd\.s32 (\d+), %", self._line(f"%{match[2]} = sadd.s32")
        )
        if offset and int(offset[1]) >= 2**31:
            value += 2**32 - int(offset[1])
        candidates = [n for n in self.grid if n == value + 1 and n > 1]
        if value == 0 and small:
            candidates = [n for n in self.grid if n > 1][-1:]
        return 1.0 / candidates[-1] if candidates else 1.0
