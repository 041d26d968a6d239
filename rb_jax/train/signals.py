"""Stopping on SIGTERM and ctrl-C: all processes after the same step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rb_jax.sharding.mesh import replicated

# EX_TEMPFAIL of sysexits.h: stopped before the end, worth starting again.
EXIT_PREEMPTED = 75
STATUS: dict[int, int] = {signal.SIGTERM: EXIT_PREEMPTED, signal.SIGINT: 130}


class StopRequest:
    """The signal that came to any of the processes (0: none).

    One process alone just looks. Several take the largest in a tiny collective that runs ahead of
    a step on the devices, so that the answer is there, the same everywhere, when the step before
    has ended, and nobody waits for it.
    """

    def __init__(self, mesh: Mesh):
        self.received = 0  # by this process
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))

    def ask(self) -> jax.Array | None:
        """Before a step: brings this process's signal to all."""
        if jax.process_count() == 1:
            return None
        mine = np.full(self._sharding.mesh.size, self.received, np.int32)
        asked: Any = jax.make_array_from_callback(mine.shape, self._sharding, mine.__getitem__)
        return self._largest(asked)

    def answer(self, asked: jax.Array | None) -> int:
        """After it: the signal on which all stop now."""
        return self.received if asked is None else int(asked)


@contextmanager
def stop_signals(mesh: Mesh) -> Iterator[StopRequest]:
    """Keeps the first SIGTERM or SIGINT in the request; a second one acts as usual."""
    request = StopRequest(mesh)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {name: signal.getsignal(name) for name in STATUS}

    def restore():
        for name, handler in previous.items():
            signal.signal(name, handler)

    def handle(number, frame):
        request.received = number
        restore()

    for name in STATUS:
        signal.signal(name, handle)
    try:
        yield request
    finally:
        restore()
