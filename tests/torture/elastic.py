"""A run continued on another number of devices, and of processes, than it began with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from rb_jax.runtime.exits import EXIT_PREEMPTED
from rb_jax.train.metrics import read_lines
from tests.torture import child

CLOSE = 1e-5  # of float32 losses, whose sums are in another order


def pairs(folder: Path, chosen: Iterable[tuple[int, int]], processes: bool, steps: int) -> dict:
    """Every pair of device counts; with ``processes`` also from one process to two and back."""
    config = child.write_config(
        folder, steps=steps, log_every=1, eval_every=500, eval_examples=0, checkpoint_every=500
    )
    child.run(config, folder / "peace")
    worst, done, wrong = 0.0, [], []
    plans = [((1, a), (1, b)) for a, b in chosen]
    if processes:
        plans += [((1, 8), (2, 4)), ((2, 4), (1, 8))]
    for before, after in plans:
        workdir = folder / f"{before[0]}x{before[1]}_{after[0]}x{after[1]}"
        _stop(_start(config, workdir, *before), workdir, steps // 4)
        middle = child.steps(workdir)[-1]
        codes = [child.finish(pid) for pid in _start(config, workdir, *after)]
        far = _distance(folder / "peace", workdir)
        worst = max(worst, far)
        done.append(f"{before[0]}x{before[1]} to {after[0]}x{after[1]} at {middle}")
        if any(codes) or not 0 < middle < steps or far > CLOSE:
            wrong.append(f"{workdir}: status {codes}, changed at {middle}, loss {far:.1e} away")
        if child.samples(workdir) != child.samples(folder / "peace"):
            wrong.append(f"{workdir}: other samples")
    return {"changes": len(done), "farthest loss": worst, "of": done, "wrong": wrong}


def _start(config: Path, workdir: Path, processes: int, devices: int) -> list[int]:
    if processes == 1:
        return [child.start(config, workdir, devices)]
    return child.start_two(config, workdir, devices)


def _stop(pids: list[int], workdir: Path, step: int) -> None:
    """SIGTERM to one of the processes, somewhere after ``step``."""
    deadline = time.monotonic() + 300
    while max((row["step"] for row in read_lines(workdir)), default=0) < step:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{workdir}: no steps")
        time.sleep(0.005)
    os.kill(pids[-1], signal.SIGTERM)
    codes = [child.finish(pid) for pid in pids]
    if set(codes) != {EXIT_PREEMPTED}:
        raise RuntimeError(f"{workdir}: stopped with {codes}")


def _distance(a: Path, b: Path) -> float:
    """Largest difference of a loss; infinite when the rows are not the same."""
    ours, theirs = child.curve(a), child.curve(b)
    if [(r["step"], r["kind"]) for r in ours] != [(r["step"], r["kind"]) for r in theirs]:
        return float("inf")
    return max(abs(x["loss"] - y["loss"]) for x, y in zip(ours, theirs, strict=True))
