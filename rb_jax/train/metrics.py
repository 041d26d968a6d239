"""Averages, speed and utilisation between two log lines, and where they are written."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
from jaxtyping import UInt8

from rb_jax.errors import InputError
from rb_jax.files import write_text
from rb_jax.runtime.processes import is_primary
from rb_jax.sharding.chips import device_flops
from rb_jax.storage import place
from rb_jax.train.wandb_board import WandbBoard

LINES = "metrics.jsonl"

# These say where the run is; their last value is logged instead of their mean.
LAST = ("learning_rate", "skipped")


# Metrics of how fast a run went; all others are the same in every run of a configuration.
TIMINGS = ("steps_per_second", "mfu", "input_wait", "goodput")


def is_timing(name: str) -> bool:
    return name.split("/")[0] in TIMINGS


class Window:
    """Means of each metric since the last log line; values that are not finite are left out.

    A metric is one value, or a pair [sum, count] of as many as a step had.
    """

    def __init__(self, saved: Mapping[str, list] | None = None):
        self.sums = {name: list(pair) for name, pair in (saved or {}).items()}

    def add(self, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            value, weight = (float(x) for x in value) if np.ndim(value) else (float(value), 1)
            total, count = self.sums.setdefault(name, [0.0, 0])
            if name in LAST:
                self.sums[name] = [value, 1]
            elif math.isfinite(value):
                self.sums[name] = [total + value, count + weight]

    def means(self) -> dict[str, float | None]:
        """Metric -> mean, None when no value was finite."""
        return {name: total / n if n else None for name, (total, n) in self.sums.items()}


# What a run's time goes to besides its steps. Only input counts in the speed of a step.
PHASES = ("compile", "input", "checkpoint", "evaluation")


class Clock:
    """Where the time of a run goes, since the last log line and since the run's first start.

    ``totals`` are the seconds of each phase, and of steps, in earlier starts of the same run.
    """

    def __init__(self, totals: Mapping[str, float] | None = None):
        self.totals = dict.fromkeys(("step", *PHASES), 0.0) | dict(totals or {})
        self.restart()

    def restart(self) -> None:
        """Begins a window."""
        self.started, self.steps, self.flops = time.perf_counter(), 0, 0.0
        self.spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def count(self, flops: float) -> None:
        """One more step, of so many model FLOPs."""
        self.steps += 1
        self.flops += flops

    @contextmanager
    def phase(self, name: str):
        """Counts its body as compile, input, checkpoint or evaluation."""
        begin = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - begin

    def report(self, peak: float) -> dict[str, float]:
        """Ends the window: steps per second, model FLOPs utilisation (``peak`` in FLOP/s) and the
        share of time waiting for input, in [0, 1]; goodput, the share of all time so far that
        went into steps, and the seconds behind it.
        """
        elapsed, waited = time.perf_counter() - self.started, self.spent["input"]
        training = max(elapsed - sum(self.spent.values()) + waited, 1e-9)
        rate, mfu = self.steps / training, self.flops / training / peak
        self.spent["step"] = training - waited
        self.totals = {name: self.totals[name] + self.spent[name] for name in self.totals}
        self.restart()
        total = max(sum(self.totals.values()), 1e-9)
        return {
            "steps_per_second": rate,
            "mfu": mfu,
            "input_wait": waited / training,
            "goodput": self.totals["step"] / total,
            **{f"goodput/{name}_seconds": seconds for name, seconds in self.totals.items()},
        }


def peak_flops(devices: Sequence[Any]) -> tuple[float, str]:
    """FLOP/s of all devices together and how it is known.

    Kinds outside the table, such as CPUs, are timed on a matrix product.
    """
    kind = devices[0].device_kind
    if flops := device_flops(kind):
        return len(devices) * flops, f"{len(devices)} x {kind}, bf16 peak"
    # Host devices of a process share the same cores, so that several are no faster than one.
    processes = len({device.process_index for device in devices})
    count = processes if devices[0].platform == "cpu" else len(devices)
    mine = [device for device in devices if device.process_index == jax.process_index()]
    measured = count * _matmul_flops(mine[0])
    return measured, f"{len(devices)} x {kind}, measured on a float32 matrix product"


def _matmul_flops(device: Any, side: int = 1536) -> float:
    a = jax.device_put(np.ones((side, side), np.float32), device)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / min(times)


class RunLog:
    """``metrics.jsonl`` (one object per line: step, kind, values) and TensorBoard in a workdir.

    Written by the first of several processes; the others' calls do nothing.
    Lines and events after ``step``, left by a run that was killed later than its last
    checkpoint, are dropped: they are about to be written again, and so is, with ``evaluates``,
    the evaluation of that step. ``known_as`` is the workdir by its lasting name, for Weights &
    Biases. What cannot be written once a run has begun is kept as ``failure``: raised on this
    process alone, it would leave the others waiting.
    """

    def __init__(
        self,
        workdir: Path,
        step: int,
        evaluates: bool = False,
        wandb: str = "",
        known_as: str = "",
    ):
        self.file = self.board = self.wandb = None
        self.failure: Exception | None = None
        if not is_primary():
            return
        workdir.mkdir(parents=True, exist_ok=True)
        self.wandb = WandbBoard(wandb, workdir, known_as or str(workdir)) if wandb else None
        path = workdir / LINES
        kept = [row for row in read_lines(workdir) if row["step"] <= step]
        if evaluates:
            kept = [row for row in kept if (row["step"], row["kind"]) != (step, "val")]
        # Whole or not at all: a kill must not cut the old lines short.
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.path, self.file = path, path.open("a", encoding="utf-8")
        self.board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps what goes wrong on the disk or in a bucket for later."""
        try:
            yield
        except (OSError, InputError) as error:
            self.failure = self.failure or error

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self.file is None or self.board is None:
            return
        with self.kept():
            self.file.write(json.dumps({"step": step, "kind": kind} | dict(values)) + "\n")
            self.file.flush()
        scalars = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.add_scalars(scalars, step)

    def sync(self) -> None:
        """Brings the lines to the disk, ahead of a checkpoint that takes them as written."""
        with self.kept():
            if self.file is not None:
                os.fsync(self.file.fileno())
                self.file.close()  # a mounted bucket keeps a new file only once it is closed
                self.file = self.path.open("a", encoding="utf-8")
            if self.board is not None:
                self.board.flush()

    def image(self, name: str, step: int, image: UInt8[np.ndarray, "H W 3"]) -> None:
        if self.board is not None:
            self.board.add_image(name, image, step, dataformats="HWC")
        if self.wandb is not None:
            self.wandb.add_image(name, image, step)

    def close(self) -> None:
        for each in (self.file, self.board, self.wandb):
            if each is not None:
                with self.kept():
                    each.close()


def read_lines(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a workdir's metrics.jsonl; a last line cut short by a kill is ignored."""
    path = place(workdir) / LINES
    rows = []
    text = path.read_bytes().decode("utf-8") if path.exists() else ""
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def image_grid(
    columns: list[UInt8[np.ndarray, "B Y X 3"]], gap: int = 2
) -> UInt8[np.ndarray, "H W 3"]:
    """One row per example, one column per kind of picture, white lines between."""
    pad = ((0, 0), (gap, gap), (gap, gap), (0, 0))
    framed = [np.pad(column, pad, constant_values=255) for column in columns]
    return np.concatenate([np.concatenate(list(column)) for column in framed], axis=1)
