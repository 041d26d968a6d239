"""Compiles a step for absent hardware in a child process and reads what the compiler says.

A child each time, because the compiler's library reads its flags once, when it loads, and an
unknown flag aborts the process. TPU compilations wait for each other on a lock file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rb_jax.errors import InputError, listed
from rb_jax.files import locked
from rb_jax.plan import bundles, hlo, timing, work
from rb_jax.plan.analysis import FACTS, GIB, HLO, REFUSED, Analysis, show
from rb_jax.plan.collectives import Layout
from rb_jax.plan.topologies import Topology, parse

# XLA spends a sixth of compiling in the allocator; threads that keep more freed blocks need less.
ALLOCATOR = "glibc.malloc.tcache_count=4000"


class CompileError(InputError):
    """The compiler refused. ``log`` is all that it said."""

    def __init__(self, message: str, log: str = ""):
        super().__init__(message)
        self.log = log


def analyse(
    build: str,
    topology: str | Topology,
    *,
    kwargs: Mapping[str, Any] | None = None,
    slices: int = 1,
    flags: Sequence[str] = (),
    costs: Mapping[str, float] | None = None,
    save: str | Path | None = None,
    with_bundles: bool = True,
    timeout: float = 3600.0,
) -> Analysis:
    """Compiles what ``build`` lowers and analyses it.

    ``build`` is the dotted name (``package.module:function``) of a function
    ``(devices, **kwargs) -> jax.stages.Lowered``, called in the child with the topology's devices;
    ``kwargs`` must be JSON. ``flags`` go to the compiler (LIBTPU_INIT_ARGS, XLA_FLAGS on GPUs);
    ``costs`` gives FLOPs of one call of kernels by a part of their name; ``save`` keeps the
    optimized HLO and the kernels' dump in a folder. Raises InputError with the compiler's message
    when it refuses, as it does a step that does not fit in memory.
    """
    target = parse(topology, slices) if isinstance(topology, str) else topology
    with tempfile.TemporaryDirectory(prefix="rb-plan-") as scratch:
        folder = Path(save) if save else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*final_bundles*"):
            old.unlink()
        _run_child(build, target, kwargs or {}, flags, folder, with_bundles, timeout)
        return read_folder(folder, target, costs or {})


def read_folder(folder: Path, target: Topology, costs: Mapping[str, float]) -> Analysis:
    """The analysis of a folder that ``analyse(save=...)`` has filled."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    module = hlo.parse((folder / HLO).read_text(encoding="utf-8"))
    kernels = bundles.read_dump(folder)
    layout = Layout(
        facts["axes"],
        tuple(tuple(c) for c in facts["coords"]),
        tuple(facts["slices"]),
        tuple(facts["hosts"]),
    )
    result = timing.time_program(module, timing.Machine(target.chip, layout, kernels, costs))
    per_chip = target.chip.devices
    gib = {key: value / GIB for key, value in facts["memory"].items()}
    return Analysis(
        topology=target.name,
        slices=target.slices,
        chips=target.chips,
        mesh=facts["axes"],
        hbm_peak_gib=gib["peak"],
        hbm_limit_gib=target.chip.hbm / per_chip / GIB,
        argument_gib=gib["argument"],
        output_gib=gib["output"],
        alias_gib=gib["alias"],
        temp_gib=gib["temp"],
        executed_tflop=result.flops * per_chip / 1e12,
        executed_tflop_total=result.flops * target.devices / 1e12,
        hbm_traffic_gib=result.bytes * per_chip / GIB,
        collectives=[_row(row, per_chip) for row in result.rows],
        ops=[dataclasses.asdict(op) for op in result.ops],
        predicted_step_s=result.seconds,
        compute_s=result.compute_seconds,
        exposed_s=result.exposed_seconds,
        lower_s=facts["lower_s"],
        compile_s=facts["compile_s"],
        rss_gib=facts["rss_bytes"] / GIB,
        assumptions=_assumptions(target, module, kernels, result, costs),
    )


def _row(row: timing.Row, per_chip: int) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "axis": row.axis,
        "runs": row.runs,
        "gib": row.bytes * per_chip / GIB,
        "exposed_gib": row.exposed_bytes * per_chip / GIB,
        "seconds": row.seconds,
        "exposed_seconds": row.exposed_seconds,
    }


def _assumptions(target: Topology, module: hlo.Module, kernels, result, costs) -> list[str]:
    lines = timing.assumptions(target.chip, bool(kernels))
    if loops := hlo.unknown_loops(module):
        lines.append(f"loops of unknown length, counted once: {listed(loops, limit=3)}")
    unpriced = set(work.unpriced_kernels(module, costs))
    if not kernels and unpriced:
        lines.append(f"kernels without FLOPs: {listed(sorted(unpriced), limit=3)}")
    waiting = {
        instruction.name
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if timing.communicates(instruction)  # whose loops wait for other chips
    }
    if unread := sorted({k.name for k in kernels.values() if k.unknown} - waiting - {"TLP"}):
        lines.append(f"inner loops of unknown length, counted once, in {listed(unread, limit=3)}")
    if kernels and result.estimated > 0.001:
        lines.append(f"{result.estimated:.1%} of compute time is without bundles: roofline only")
    return lines


def _run_child(
    build: str,
    target: Topology,
    kwargs: Mapping[str, Any],
    flags: Sequence[str],
    folder: Path,
    with_bundles: bool,
    timeout: float,
) -> None:
    """Runs the compilation, which fills ``folder``."""
    flags = list(flags)
    if target.chip.is_tpu and with_bundles:
        flags += [f"--xla_jf_dump_to={folder}", *bundles.DUMP_FLAGS]
    # Without the third, libtpu refuses to load beside any other process that has it loaded.
    environment = dict(
        os.environ, JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
    )
    environment |= {"LIBTPU_INIT_ARGS": "", "XLA_FLAGS": ""}  # the caller's are for its own machine
    environment.setdefault("GLIBC_TUNABLES", ALLOCATOR)
    variable = "LIBTPU_INIT_ARGS" if target.chip.is_tpu else "XLA_FLAGS"
    environment[variable] = " ".join(flags)
    job = {
        "build": build,
        "topology": target.name,
        "slices": target.slices,
        "kwargs": dict(kwargs),
        "folder": str(folder),
    }
    command = [sys.executable, "-m", "rb_jax.plan.child", json.dumps(job)]
    (folder / FACTS).unlink(missing_ok=True)
    with _alone(target.chip.is_tpu), tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired as error:
            child.kill()
            child.wait()
            raise CompileError(f"compiling for {target.name} took over {timeout:.0f} s") from error
        output.seek(0)
        log = output.read()
    (folder / "log.txt").write_text(log, encoding="utf-8")
    if child.returncode or not (folder / FACTS).exists():
        reason, ours = _reason(log, child.returncode)
        text = f"compiling for {target.name}: {reason}"
        raise InputError(text) if ours else CompileError(text, log)


def _reason(log: str, status: int) -> tuple[str, bool]:
    """The line of a failed child's output that says why, and whether we refused, not the compiler.

    The compiler's is cut to a length that can be read.
    """
    noise = ("TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE")  # libtpu looks for its own machine
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    lines = [line for line in lines if not any(word in line for word in noise)]
    for line in lines:
        if line.startswith("rb_jax: "):
            return line.removeprefix("rb_jax: "), status == REFUSED
    for mark in ("Unknown command line flag", "RESOURCE_EXHAUSTED", "Error:", "F0000", "error:"):
        for line in reversed(lines):
            if mark in line:
                return line[line.index(mark) :][:400], False
    last = lines[-1][-300:] if lines else "no output"
    return f"the child ended with status {status}: {last}", False


def _alone(needed: bool) -> AbstractContextManager[None]:
    """One compilation at a time: each takes all cores and gigabytes of memory."""
    path = Path(tempfile.gettempdir()) / f"rb-plan-{os.getuid()}.lock"
    return locked(path) if needed else nullcontext()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m rb_jax.plan.compiling package.module:build v5p:2x2x1 --kwargs={...}``."""
    parser = argparse.ArgumentParser(prog="rb_jax.plan.compiling", description=main.__doc__)
    parser.add_argument("build", help="package.module:function(devices, **kwargs) -> Lowered")
    parser.add_argument("topology")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--kwargs", default="{}", help="JSON")
    parser.add_argument("--flags", default="", help="the compiler's, separated by spaces")
    parser.add_argument("--save", help="folder for the optimized HLO and the kernels")
    parser.add_argument("--json", help="file for the analysis")
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--no-bundles", action="store_true")
    parser.add_argument("--read", action="store_true", help="read --save again, compile nothing")
    given = parser.parse_args(arguments)
    try:
        if given.read:
            result = read_folder(Path(given.save), parse(given.topology, given.slices), {})
        else:
            result = analyse(
                given.build,
                given.topology,
                kwargs=json.loads(given.kwargs),
                slices=given.slices,
                flags=given.flags.split(),
                save=given.save,
                with_bundles=not given.no_bundles,
            )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if given.json:
        Path(given.json).write_text(result.to_json(), encoding="utf-8")
    print(show(result, given.top))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
