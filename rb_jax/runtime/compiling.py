"""Compiling takes longest of all that happens before a first result, so it is announced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from rb_jax.runtime.progress import working

# Seconds of XLA for a line of the lowered program on two cores of a CPU: 1.3e-3 for the training
# step of configs/reasonworld.py (34,000 lines), 1.0e-3 for its sampler (7,000).
SECONDS_A_LINE = 1.2e-3


def compiled(
    lower: Callable[[], jax.stages.Lowered], what: str, options: Mapping[str, Any] | None = None
) -> Any:
    """The program that ``lower`` traces, compiled; says what it is and how long it should take.

    On other hardware than CPUs the seconds are not known ahead.
    """
    with working(f"tracing {what}"):
        lowered = lower()
    on_cpu = jax.default_backend() == "cpu"
    expected = lowered.as_text().count("\n") * SECONDS_A_LINE if on_cpu else 0.0
    with working(f"compiling {what}", expected):
        return lowered.compile(compiler_options=dict(options) if options else None)
