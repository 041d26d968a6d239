"""Stopping all processes after the same step, whichever of them has the reason."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rb_jax.runtime.exits import Signals

# Among the numbers of signals, and above them: a save failed on some process.
SAVE_FAILED = 1000


class StopRequest:
    """The reason that came to any of the processes: a signal, SAVE_FAILED, or 0 for none.

    One process alone just looks. Several take the largest in a tiny collective that runs ahead of
    a step on the devices, so that the answer is there, the same everywhere, when the step before
    has ended, and nobody waits for it.
    """

    def __init__(self, mesh: Mesh, signals: Signals):
        self.signals = signals
        self.failed = False  # whether this process could not save
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    @property
    def mine(self) -> int:
        return SAVE_FAILED if self.failed else self.signals.received

    def ask(self) -> jax.Array | None:
        """Before a step: brings this process's reason to all."""
        if jax.process_count() == 1:
            return None
        mine = np.full(self._sharding.mesh.size, self.mine, np.int32)
        asked: Any = jax.make_array_from_callback(mine.shape, self._sharding, mine.__getitem__)
        return self._largest(asked)

    def answer(self, asked: jax.Array | None) -> int:
        """After it: the reason for which all stop now."""
        return self.mine if asked is None else int(asked)

    def alone(self) -> bool:
        """Whether this process, which has no others to go along with, is to stop."""
        return jax.process_count() == 1 and bool(self.mine)

    def now(self) -> bool:
        """Whether to stop, at a moment when the devices have nothing else to do."""
        return bool(self.answer(self.ask()))
