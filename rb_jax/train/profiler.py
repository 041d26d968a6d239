"""A profiler's trace of some steps, on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from rb_jax.config import ProfileConfig
from rb_jax.config.schema import step_range

FOLDER = "profile"


class Profiler:
    """Traces the steps of config.profile, of every process, into WORKDIR/profile."""

    def __init__(self, config: ProfileConfig, workdir: Path):
        self.first, self.end = step_range(config.steps)
        self.folder = workdir / FOLDER
        self.tracing = False

    def before(self, step: int, done: Any) -> None:
        """Ahead of a step; ``done`` is an array of the state that the step before makes."""
        if step in (self.first, self.end):
            jax.block_until_ready(done)  # neither trace nor loss of work that is under way
        if step == self.first:
            jax.profiler.start_trace(self.folder)
            self.tracing = True
        elif step == self.end:
            self.close()

    def close(self) -> None:
        """Writes what was traced, also of a run that ends in the middle."""
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()
