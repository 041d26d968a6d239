"""64 bits of every array, the same however it is laid out: what was saved is what is read.

Each value's bits are mixed with its place and summed modulo 2**32, first down each column and then
over the mixed columns. Sums do not care for their order, so devices compute the fingerprint of
what they hold, at the speed of their memory, and any other layout gives the same number. A change
of one value always changes its column; two different arrays agree by chance once in 2**64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rb_jax.runtime.processes import whole_anywhere

# The finalizer of MurmurHash3 (Appleby, public domain), and 2**32 over the golden ratio.
FIRST, SECOND, GOLDEN = (np.uint32(x) for x in (0x85EBCA6B, 0xC2B2AE35, 0x9E3779B1))
SMALL_BYTES = 2**18  # below, a program of its own costs more than the host


class Fingerprints:
    """Of some arrays, perhaps still being computed: ``values`` and ``finite`` wait for them."""

    def __init__(self, arrays: Mapping[str, Any]):
        """``arrays`` (jax or NumPy, of at most 32 bits a value) by name.

        Of several processes all must do this; asking for the results is not collective.
        """
        large = {n: x for n, x in arrays.items() if _bytes(x) > SMALL_BYTES}
        self._large = {name: _on_devices(x) for name, x in large.items()}
        small = whole_anywhere({n: x for n, x in arrays.items() if n not in large})
        self._small = {name: _on_host(x) for name, x in jax.device_get(small).items()}

    def values(self) -> dict[str, str]:
        """Name -> 16 hexadecimal digits."""
        return {name: f"{int(x[0]):08x}{int(x[1]):08x}" for name, x in self._numbers().items()}

    def finite(self) -> bool:
        """Whether every value of every floating array is."""
        return all(int(x[2]) for x in self._numbers().values())

    def _numbers(self) -> dict[str, np.ndarray]:
        self._small |= jax.device_get(self._large)
        self._large = {}
        return self._small


def of(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Name -> fingerprint, waited for."""
    return Fingerprints(arrays).values()


def _bytes(array: Any) -> int:
    return math.prod(np.shape(array)) * array.dtype.itemsize


def _on_host(array: np.ndarray) -> np.ndarray:
    """uint32[3]: two sums, and whether all is finite."""
    words = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    words = words.astype(np.uint32).reshape(-1, array.shape[-1] if array.ndim else 1)
    rows = np.arange(len(words), dtype=np.uint32)[:, None]
    columns = np.arange(words.shape[1], dtype=np.uint32)
    sums = _mixed(words, rows * SECOND + columns * GOLDEN).sum(0, dtype=np.uint32)
    numbers = [sums.sum(dtype=np.uint32), _mixed(sums, columns * GOLDEN).sum(dtype=np.uint32)]
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    finite = not floating or bool(np.isfinite(array.astype(np.float32, copy=False)).all())
    return np.array([*numbers, finite], np.uint32)


def _on_devices(array: Any) -> Any:
    """The same, by the devices that hold it, or JAX's default one for a host's array."""
    spec = tuple(getattr(getattr(array, "sharding", None), "spec", ()))
    inner = (spec + (None,) * (array.ndim - len(spec)))[1:-1]
    # Axes that no device splits can be one, for the sake of a CPU's loops.
    return _program(array.ndim > 2 and all(axis is None for axis in inner))(array)


@functools.cache
def _program(flat: bool) -> Any:
    def numbers(array: jax.Array) -> jax.Array:
        finite = jnp.bool_(True)
        if jnp.issubdtype(array.dtype, jnp.floating):
            finite = jnp.all(jnp.isfinite(array))
        if array.dtype == bool:
            array = array.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
        words = jnp.atleast_1d(words.astype(jnp.uint32))
        if flat:
            words = words.reshape(-1, words.shape[-1])
        row = jnp.zeros((), jnp.uint32)
        for axis, length in enumerate(words.shape[:-1]):
            row = row * np.uint32(length % 2**32)
            row = row + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        column = jax.lax.broadcasted_iota(jnp.uint32, words.shape, words.ndim - 1)
        mixed = _mixed(words, row * SECOND + column * GOLDEN)
        sums = jnp.sum(mixed, tuple(range(words.ndim - 1)), dtype=jnp.uint32)
        column = jnp.arange(len(sums), dtype=jnp.uint32) * GOLDEN
        totals = [jnp.sum(x, dtype=jnp.uint32) for x in (sums, _mixed(sums, column))]
        return jnp.stack([*totals, finite.astype(jnp.uint32)])

    return jax.jit(numbers)


def _mixed(words: Any, place: Any) -> Any:
    """Bijective in ``words``; for NumPy and JAX."""
    words = (words ^ place) * FIRST
    words = (words ^ (words >> np.uint32(13))) * SECOND
    return words ^ (words >> np.uint32(16))
