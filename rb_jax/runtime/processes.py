"""What several processes do together, besides computing; with one process all of it is trivial.

Every function here but ``say`` is collective: all processes must call it, in the same order.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rb_jax.errors import InputError
from rb_jax.runtime.logging import LOG

T = TypeVar("T")
PIECE_BYTES = 2**28  # of a large array, brought to the host at a time
WAIT_SECONDS = 7 * 24 * 3600  # the first process may take long; one that died is noticed anyway
_barriers = itertools.count()


def is_primary() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Logs a text as info, by the first process alone."""
    if is_primary():
        LOG.info("%s", text)


def warn(text: str, everywhere: bool = False) -> None:
    """Logs a text as a warning; by the first process alone unless ``everywhere``."""
    if everywhere or is_primary():
        LOG.warning("%s", text)


def wait_for_all() -> None:
    """Returns once every process is here; for long waits, since no device is kept busy."""
    everyone = set(range(jax.process_count()))
    name = f"rb_jax_{next(_barriers)}"
    ocp.multihost.sync_global_processes(name, timeout=WAIT_SECONDS, processes=everyone)


def from_primary(value: int) -> int:
    """The first process's value."""
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def anywhere(value: bool) -> bool:
    """Whether it is true on any process."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def primary_first(action: Callable[[], T]) -> T:
    """Runs ``action`` on the first process, then on the others, which find what it left behind.

    When it fails on the first process it is not run on the others: they raise InputError.
    """
    results, error = [], None
    if is_primary():
        try:
            results.append(action())
        except Exception as caught:
            error = caught
    wait_for_all()
    if from_primary(error is not None):
        raise error or InputError("the first process failed; its output says why")
    return results[0] if results else action()


def on_primary(action: Callable[[], None]) -> None:
    """Runs ``action`` on the first process only; when it fails there, all raise."""
    error = None
    if is_primary():
        try:
            action()
        except Exception as caught:
            error = caught
    if from_primary(error is not None):
        raise error or InputError("the first process failed; its output says why")


def whole_anywhere(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The same arrays, those that are spread over processes whole on each of them."""
    spread = {
        name: x
        for name, x in arrays.items()
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    }
    if not spread:
        return dict(arrays)
    layouts = {
        name: NamedSharding(getattr(x.sharding, "mesh"), PartitionSpec())  # noqa: B009
        for name, x in spread.items()
    }
    return dict(arrays) | jax.jit(lambda tree: tree, out_shardings=layouts)(spread)


def to_host(array: Any) -> np.ndarray:
    """A whole array on the host, wherever its shards are."""
    pieces = list(host_pieces(array))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def host_pieces(array: Any) -> Iterator[np.ndarray]:
    """A whole array as consecutive parts of its first axis, one at a time in memory."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        yield np.asarray(array)
        return
    mesh: Any = getattr(array.sharding, "mesh")  # noqa: B009 (only named shardings are used here)
    row = math.prod(array.shape[1:]) * array.dtype.itemsize
    step = max(1, PIECE_BYTES // row)
    for start in range(0, len(array), step):
        size = min(step, len(array) - start)
        yield np.asarray(_slice(mesh)(array, start, size))


@functools.cache
def _slice(mesh: Mesh) -> Callable[[jax.Array, int, int], jax.Array]:
    """Rows of an array, on every device."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, axis=0)
    return jax.jit(cut, static_argnums=2, out_shardings=NamedSharding(mesh, PartitionSpec()))
