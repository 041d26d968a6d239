"""A run at work: what the parts of the loop share, saving it, and ending it without loss."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from rb_jax.checkpoint.manager import Checkpoints
from rb_jax.config import Config
from rb_jax.runtime.compiling import user_cache
from rb_jax.runtime.exits import EXIT_IO, RunError
from rb_jax.runtime.processes import is_primary
from rb_jax.runtime.stopping import SAVE_FAILED, StopRequest
from rb_jax.runtime.watchdog import LONG, Watchdog
from rb_jax.sharding.mesh import shard_batch
from rb_jax.storage import Mirror, is_bucket
from rb_jax.train.feed import Interruptible
from rb_jax.train.guard import Guard
from rb_jax.train.metrics import Clock, RunLog, Window
from rb_jax.train.profiler import Profiler
from rb_jax.train.state import TrainState


@dataclasses.dataclass
class Run:
    """What the parts of the loop share, and what they do to all of it."""

    config: Config
    outputs: Mirror  # what is written a little at a time, and copied to a workdir in a bucket
    mesh: jax.sharding.Mesh
    manager: Checkpoints
    log: RunLog
    window: Window
    clock: Clock
    stop: StopRequest
    guard: Guard
    watchdog: Watchdog
    profiler: Profiler
    evaluates: bool = False  # whether the evaluation of the state's step is still to be done
    pending: dict[str, Any] | None = None  # metrics of a step that the devices may still work on
    synced: float = 0.0  # when ``outputs`` were last copied

    @property
    def workdir(self) -> Path:
        """The local folder of the outputs."""
        return self.outputs.folder

    @property
    def failure(self) -> Exception | None:
        """Why the outputs could not be written."""
        return self.log.failure

    @property
    def scratch(self) -> Path:
        """Where examples may be prepared: the workdir, or for one in a bucket the user's cache."""
        where = str(self.outputs.target)
        if not is_bucket(where):
            return self.workdir
        return user_cache() / "rb_jax" / hashlib.sha256(where.encode()).hexdigest()[:16]

    def next_batch(self, batches: Interruptible) -> Any:
        """The next one on the devices, or None when a signal came first."""
        with self.clock.phase("input"):
            batch = batches.next()
            if batch is None:
                return None
            return shard_batch(self.mesh, batch, self.config.train.batch_size)

    def take_pending(self) -> None:
        """Reads the metrics of the last step; raises RunError when too many were skipped."""
        if self.pending is not None:
            values = jax.device_get(self.pending)
            self.pending = None
            self.guard.add(values)
            self.window.add(values)

    def check_saved(self, signal: int) -> None:
        """Raises RunError when the reason to stop is a checkpoint that could not be written."""
        if signal == SAVE_FAILED:
            if self.failure is not None:
                raise self.failure
            self.manager.wait()
            raise RunError(EXIT_IO, "another process could not write its part of a checkpoint")

    def save(self, state: TrainState) -> None:
        """Starts writing a checkpoint, unless this step has one."""
        if int(state.step) == self.manager.last:
            return
        self.watchdog.allow("a checkpoint", LONG)
        window = copy.deepcopy(self.window.sums)  # written in the background while this one fills
        progress = {"window": window, "seconds": self.clock.totals}
        progress |= {"skipped_in_a_row": self.guard.row, "evaluates": self.evaluates}
        with self.clock.phase("checkpoint"):
            self.copy_outputs()
            self.manager.save(state, self.config, progress)

    def copy_outputs(self) -> None:
        """Brings lines and pictures to the disk, and to the bucket that the workdir is in.

        Only the first process has any; when it fails, all learn of it with the next step.
        """
        self.log.sync()
        if is_primary():
            with self.log.kept():
                self.outputs.sync()
        self.synced = time.monotonic()

    def saved_before(self, state: TrainState, what: str) -> int:
        """Saves ahead of something long that no signal should wait for; one that came meanwhile."""
        if int(state.step):
            self.save(state)
            self.manager.wait()
        self.watchdog.allow(what, LONG)
        return self.reason_to_stop()

    def reason_to_stop(self) -> int:
        """A signal that has come to any process, or 0; raises RunError as ``check_saved``."""
        signal = self.stop.answer(self.stop.ask())
        self.check_saved(signal)
        return signal

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """In the middle of a run, which is saved: a signal ends the process at once."""
        self.stop.signals.release()
        with self.clock.phase("compile"):
            yield
        self.stop.signals.hold()
