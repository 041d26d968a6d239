"""Ends a run that goes nowhere: too many steps in a row that change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rb_jax.runtime.exits import EXIT_DIVERGED, RunError


class Guard:
    """Counts skipped steps in a row; ``limit`` 0 lets any number pass.

    It reads the step's metrics, which are the same on every process, so that all end alike.
    """

    def __init__(self, limit: int, total: int = 0, row: int = 0):
        self.limit, self.total, self.row = limit, total, row

    def add(self, metrics: Mapping[str, Any]) -> None:
        """One step's metrics; raises RunError when it was one too many."""
        total = int(metrics["skipped"])
        self.row = self.row + 1 if total > self.total else 0
        self.total = total
        if self.limit and self.row >= self.limit:
            raise RunError(
                EXIT_DIVERGED,
                f"the loss or gradient of {self.row} steps in a row was not finite, or a spike "
                "(config.train.max_skipped, config.optimizer.spike_factor); the last checkpoint is "
                "intact, and the same command would repeat this: lower the learning rate, or look "
                "at the data",
            )
