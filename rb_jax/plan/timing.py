"""From a compiled program to seconds a step: a sum over its schedule, with communication beside it.

An instruction takes the longest of its bundles, its matrix products at peak and its memory traffic
at full bandwidth. Transfers queue on the links from their start to their done; what the schedule
then still waits for is exposed. On GPUs, without bundles, matrix products run at ``GPU_MATMUL`` of
the peak and traffic at ``GPU_HBM`` of the bandwidth.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from rb_jax.plan import collectives as comm
from rb_jax.plan.bundles import Kernel
from rb_jax.plan.hbm import hbm_bytes
from rb_jax.plan.hlo import Computation, Instruction, Module, inner
from rb_jax.plan.work import Costs, custom_call_target, instruction_flops
from rb_jax.sharding.chips import Chip

GPU_MATMUL, GPU_ATTENTION, GPU_HBM, GPU_LAUNCH = 0.70, 0.55, 0.85, 3e-6
_BIG_CYCLES = 2**60  # the compiler's mark for "unknown"


@dataclasses.dataclass
class Op:
    """All runs of one instruction in a step, on one chip."""

    name: str
    opcode: str
    where: str
    count: float = 0.0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    bound: str = ""


@dataclasses.dataclass
class Row:
    """All runs of one kind of collective over one group of mesh axes, on one chip."""

    kind: str
    axis: str
    runs: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    exposed_bytes: float = 0.0
    exposed_seconds: float = 0.0


@dataclasses.dataclass
class Timing:
    seconds: float
    compute_seconds: float
    exposed_seconds: float
    flops: float
    bytes: float
    ops: list[Op]
    rows: list[Row]
    estimated: float  # share of compute seconds without bundles behind it


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a program is timed on."""

    chip: Chip
    layout: comm.Layout
    kernels: Mapping[str, Kernel]
    costs: Costs = dataclasses.field(default_factory=dict)

    @property
    def share(self) -> float:
        """Part of a chip that is one JAX device."""
        return 1.0 / self.chip.devices


class _Clock:
    """Runs a schedule: compute in order, transfers on queues beside it."""

    def __init__(self, module: Module, machine: Machine):
        self.module, self.machine = module, machine
        self.ops: dict[str, Op] = {}
        self.rows: dict[tuple[str, str], Row] = {}
        self.signatures = _signatures(module, machine.kernels)
        self.compute = self.exposed = self.guessed = 0.0

    def run(self, computation: Computation, count: float) -> float:
        """Seconds of one pass of a computation; books ``count`` passes."""
        names = list(computation.instructions)
        ends = _transfers(self.module, computation, len(self.machine.layout.coords))
        now, free = 0.0, dict[str, float]()
        waiting: dict[int, list[tuple[float, comm.Collective, Row, float]]] = {}
        for position, name in enumerate(names):
            instruction = computation.instructions[name]
            for inside, times in inner(self.module, computation, instruction):
                now += times * self.run(self.module.computations[inside], count * times)
            for found, done in ends.get(position, ()):
                row, spent = self._book(found, count)
                queue = _queue(found, self.machine.layout)
                free[queue] = max(now, free.get(queue, 0.0)) + spent
                waiting.setdefault(done, []).append((free[queue], found, row, spent))
            if not communicates(instruction):
                now += self._compute(computation, instruction, count)
            for transfer in waiting.pop(position, ()):
                now = self._wait(transfer, now, count)
        return now

    def _wait(self, transfer, now: float, count: float) -> float:
        end, found, row, spent = transfer
        late = max(0.0, end - now)
        exposed = min(late, spent) if spent else 0.0
        row.exposed_seconds += late * count
        row.exposed_bytes += found.bytes * count * (exposed / spent if spent else 0.0)
        self.exposed += late * count
        return now + late

    def _book(self, found: comm.Collective, count: float) -> tuple[Row, float]:
        axis = comm.axes_of(found, self.machine.layout)
        row = self.rows.setdefault((found.kind, axis), Row(found.kind, axis))
        spent = comm.seconds(found, self.machine.layout, self.machine.chip)
        row.runs += count
        row.bytes += found.bytes * count
        row.seconds += spent * count
        return row, spent

    def _compute(self, computation: Computation, instruction: Instruction, count: float) -> float:
        """Seconds of one run on the chip's cores; books ``count`` of them."""
        flops = instruction_flops(self.module, computation, instruction, self.machine.costs)
        traffic = hbm_bytes(self.module, computation, instruction)
        kernel = self._kernel(instruction)
        if kernel and not flops and instruction.opcode == "custom-call":
            flops = kernel.flops(self.machine.chip)  # neither stated nor known from its shapes
        if not flops and not traffic and instruction.opcode != "custom-call":
            return 0.0
        parts = self._parts(instruction, kernel, flops, traffic)
        bound = max(parts, key=lambda key: parts[key])
        spent = parts[bound]
        op = self.ops.setdefault(
            instruction.name, Op(instruction.name, instruction.opcode, instruction.op_name)
        )
        op.count += count
        op.seconds += spent * count
        op.flops += flops * count
        op.bytes += traffic * count
        op.bound = bound
        self.compute += spent * count
        self.guessed += 0.0 if "bundles" in parts else spent * count
        return spent

    def _kernel(self, instruction: Instruction) -> Kernel | None:
        """The dumped kernel of an instruction, or of one that computes the same."""
        kernels = self.machine.kernels
        if not kernels or instruction.name in kernels:
            return kernels.get(instruction.name)
        return kernels.get(self.signatures.get(_signature(self.module, instruction), ""))

    def _parts(
        self, instruction: Instruction, kernel: Kernel | None, flops: float, traffic: float
    ) -> dict[str, float]:
        chip, share = self.machine.chip, self.machine.share
        if not chip.is_tpu:
            attention = custom_call_target(instruction).startswith("__cudnn")
            rate = chip.flops * (GPU_ATTENTION if attention else GPU_MATMUL)
            parts = {"flops": flops / rate, "hbm": traffic / (chip.hbm_rate * GPU_HBM)}
            return {key: value + GPU_LAUNCH for key, value in parts.items()}
        parts = {"flops": flops / (chip.flops * share), "hbm": traffic / (chip.hbm_rate * share)}
        if kernel is not None:
            parts["bundles"] = kernel.bundles / chip.clock
            parts["mxu"] = kernel.cycles(chip.mxus, chip.rows) / chip.clock
        elif not flops:
            cycles = _estimated_cycles(instruction)
            if cycles and traffic:
                parts["cycles"] = min(cycles / chip.clock, 2 * parts["hbm"])
        return parts


def time_program(module: Module, machine: Machine) -> Timing:
    """Seconds of one run of a compiled program on every chip, by instruction and by collective."""
    clock = _Clock(module, machine)
    seconds = clock.run(module.entry, 1.0)
    ops = sorted(clock.ops.values(), key=lambda op: -op.seconds)
    rows = sorted(clock.rows.values(), key=lambda row: -row.bytes)
    return Timing(
        seconds=seconds,
        compute_seconds=clock.compute,
        exposed_seconds=clock.exposed,
        flops=sum((op.flops for op in ops), 0.0),
        bytes=sum((op.bytes for op in ops), 0.0),
        ops=ops,
        rows=rows,
        estimated=clock.guessed / clock.compute if clock.compute else 0.0,
    )


def assumptions(chip: Chip, bundles: bool) -> list[str]:
    """What the time rests on, for a footnote."""
    if not chip.is_tpu:
        return [
            f"matrix products at {GPU_MATMUL:.0%} and attention at {GPU_ATTENTION:.0%} of "
            f"{chip.flops / 1e12:.0f} TFLOP/s, memory traffic at {GPU_HBM:.0%} of "
            f"{chip.hbm_rate / 1e12:.2f} TB/s, {GPU_LAUNCH * 1e6:.0f} us a kernel",
            f"NVLink {chip.link / 1e9:.0f} GB/s one way at {comm.GPU_LINK_SHARE:.0%}, between "
            f"hosts {chip.dcn / 1e9:.0f} GB/s a GPU at {comm.DCN_SHARE:.0%}",
        ]
    work = "instruction bundles" if bundles else "rooflines (no bundles dumped)"
    return [
        f"compute from {work} at {chip.clock / 1e9:.2f} GHz, the clock at which the matrix units "
        "reach the published peak; memory traffic at full published bandwidth",
        f"links {chip.link / 1e9:.0f} GB/s one way at {comm.TPU_LINK_SHARE:.0%}, one a torus axis "
        "(two where the ring closes); transfers queue, and overlap only where the schedule says; "
        f"between slices {chip.dcn / 1e9:.2f} GB/s a chip at {comm.DCN_SHARE:.0%}",
        "no time for input, host work or waiting for slower chips",
    ]


def _transfers(
    module: Module, computation: Computation, devices: int
) -> dict[int, list[tuple[comm.Collective, int]]]:
    """Position of a start -> (collective, position of its done); both the same where it waits.

    Continuation fusions repeat one collective, step by step beside other work, under one channel.
    """
    instructions = list(computation.instructions.values())
    places = {instruction.name: i for i, instruction in enumerate(instructions)}
    by_channel: dict[str, list[tuple[int, comm.Collective]]] = {}
    result: dict[int, list[tuple[comm.Collective, int]]] = {}
    for i, instruction in enumerate(instructions):
        for found in comm.find(module, computation, instruction, devices):
            if instruction.opcode == "fusion" and found.channel:
                by_channel.setdefault(found.channel, []).append((i, found))
            else:
                done = _done(instructions, places, instruction)
                result.setdefault(i, []).append((found, done))
    for parts in by_channel.values():
        first, found = parts[0]
        result.setdefault(first, []).append((found, parts[-1][0]))
    return result


def _done(instructions: list[Instruction], places: dict[str, int], start: Instruction) -> int:
    """Where the schedule waits for an asynchronous start."""
    if not start.opcode.endswith(("-start", "send")):
        return places[start.name]
    following = {start.name}
    for instruction in instructions[places[start.name] + 1 :]:
        if following & set(instruction.operands):
            if instruction.opcode.endswith("-done"):
                return places[instruction.name]
            if instruction.opcode.endswith("-update") or instruction.opcode in (
                "get-tuple-element",
                "tuple",
                "bitcast",
                "optimization-barrier",
            ):
                following.add(instruction.name)
    return len(instructions) - 1


def communicates(instruction: Instruction) -> bool:
    """Whether an instruction does nothing but communicate, so that its transfer is its time."""
    if instruction.opcode == "fusion":
        return any("all-reduce-scatter" in name for name in instruction.called.get("calls", ()))
    base = instruction.opcode.removesuffix("-start").removesuffix("-done")
    return base in comm.KINDS


def _queue(found: comm.Collective, layout: comm.Layout) -> str:
    """What a transfer waits for: the network, all links, or those that one permutation uses."""
    group = max(found.groups[:64], key=len)
    if found.kind == "send" or len({layout.slices[i] for i in group}) > 1:
        return "network"
    return f"links {found.groups[0]}" if found.kind == "collective-permute" else "links"


def _estimated_cycles(instruction: Instruction) -> float:
    match = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    cycles = float(match[1]) if match else 0.0
    return cycles if cycles < _BIG_CYCLES else 0.0


def _signatures(module: Module, kernels: Mapping[str, Kernel]) -> dict[str, str]:
    """What an instruction computes -> the kernel dumped for the first that does."""
    result: dict[str, str] = {}
    for computation in module.computations.values():
        for instruction in computation.instructions.values():
            if instruction.name in kernels:
                result.setdefault(_signature(module, instruction), instruction.name)
    return result


def _signature(module: Module, instruction: Instruction) -> str:
    """Shapes and operations of an instruction, without names: equal ones share a kernel."""
    parts = [instruction.opcode, instruction.shape]
    for names in instruction.called.values():
        for name in names:
            for inside in module.computations[name].instructions.values():
                parts.append(inside.opcode + inside.shape)
                if inside.called:
                    parts.append(_signature(module, inside))
    return "|".join(parts)
