"""Errors of each stage, and the table that shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rb_jax.models.pixels import psnr

TOLERANCE = 1e-5  # of the largest value of a stage
MIN_PSNR = 50.0  # dB between the two edited pictures

# Name of a stage -> our array and PyTorch's, axes in our order.
Stages = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Stage:
    """``absolute`` is max|a - b|, ``relative`` that over max|b|; b is PyTorch's side."""

    name: str
    absolute: float
    relative: float
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        return self.relative <= self.tolerance  # a NaN on either side does not pass


@dataclass(frozen=True)
class Report:
    """``psnr`` of the edited pictures in dB; None for a part of a model."""

    stages: tuple[Stage, ...]
    psnr: float | None = None

    @property
    def failed(self) -> list[str]:
        names = [stage.name for stage in self.stages if not stage.passed]
        return names + ["final edit"] * (self.psnr is not None and not self.psnr >= MIN_PSNR)

    @property
    def passed(self) -> bool:
        return not self.failed

    def text(self) -> str:
        """A row for each stage, then one line with the verdict."""
        width = max(len(stage.name) for stage in self.stages) + 2
        lines = [f"{'stage':<{width}}{'max error':>12}{'relative':>12}{'tolerance':>12}"]
        for stage in self.stages:
            numbers = (stage.absolute, stage.relative, stage.tolerance)
            row = f"{stage.name:<{width}}" + "".join(f"{x:>12.1e}" for x in numbers)
            lines.append(f"{row}  {'PASS' if stage.passed else 'FAIL'}")
        if self.psnr is not None:
            verdict = "FAIL" if "final edit" in self.failed else "PASS"
            psnr = "same" if self.psnr == math.inf else f"{self.psnr:.1f} dB"
            row = f"{'final edit':<{width}}{'':>12}{psnr:>12}{MIN_PSNR:>9.0f} dB"
            lines.append(f"{row}  {verdict}")
        count = len(lines) - 1
        lines.append(
            f"PASS: {count} of {count} agree"
            if self.passed
            else f"FAIL: {len(self.failed)} of {count} differ: {', '.join(self.failed)}"
        )
        return "\n".join(lines)


def measured(stages: Stages, final_psnr: float | None = None) -> Report:
    return Report(tuple(measure(name, *pair) for name, pair in stages.items()), final_psnr)


def measure(name: str, ours: Any, theirs: Any) -> Stage:
    """The errors of one stage; raises ValueError when the shapes differ."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{name}: our shape is {a.shape}, PyTorch's {b.shape}")
    with np.errstate(invalid="ignore"):  # infinite on both sides
        difference = a - b
    absolute, scale = (float(np.abs(x).max(initial=0)) for x in (difference, b))
    if absolute == 0:
        return Stage(name, 0.0, 0.0)
    return Stage(name, absolute, absolute / scale if scale else math.inf)


def picture_psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of pictures in [-1, 1], in dB; infinite for equal ones, NaN where a value is not finite."""
    a, b = (np.clip(np.asarray(x, np.float64), -1, 1) for x in (ours, theirs))
    return psnr(float(np.mean((a - b) ** 2)), 2.0)
