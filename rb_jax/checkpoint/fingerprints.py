"""64 bits of every array, the same however it is laid out: what was saved is what is read.

An array's bits are a matrix of words, whose last axis are the columns. Every column, and every row,
is summed modulo 2**32 with odd weights that look random, and the sums are mixed with their places
and summed again. Sums do not care for their order, so devices compute the fingerprint of what they
hold, and any other layout gives the same number. Any change of one value, or of several in one row
or column, changes sums of the other kind; two different arrays agree by chance once in 2**64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rb_jax.runtime.compiling import older_emitters
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
    """uint32[3]: of the columns, of the rows, and whether all is finite."""
    words = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    words = words.astype(np.uint32).reshape(-1, array.shape[-1] if array.ndim else 1)
    of_rows, of_columns = (_weights(np.arange(n, dtype=np.uint32)) for n in words.shape)
    columns = (words * of_rows[:, None]).sum(0, dtype=np.uint32)
    rows = (words * of_columns).sum(1, dtype=np.uint32)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    finite = not floating or bool(np.isfinite(array.astype(np.float32, copy=False)).all())
    totals = [_mixed(x, np.arange(len(x), dtype=np.uint32)) for x in (columns, rows)]
    return np.array([*(x.sum(dtype=np.uint32) for x in totals), finite], np.uint32)


def _on_devices(array: Any) -> Any:
    """The same, by the devices that hold it, or JAX's default one for a host's array."""
    devices = array.devices() if isinstance(array, jax.Array) else jax.devices()
    return _program(frozenset(device.platform for device in devices))(array)


@functools.cache
def _program(platforms: frozenset[str]) -> Any:
    def numbers(array: jax.Array) -> jax.Array:
        finite = jnp.bool_(True)
        if jnp.issubdtype(array.dtype, jnp.floating):
            finite = jnp.all(jnp.isfinite(array))
        if array.dtype == bool:
            array = array.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
        words = jnp.atleast_1d(words.astype(jnp.uint32))
        row, column = _places(words.shape[:-1]), _places(words.shape[-1:])
        columns = jnp.tensordot(_weights(row), words, words.ndim - 1)
        rows = jnp.tensordot(words, _weights(column), 1)
        totals = [_mixed(x, place) for x, place in ((columns, column), (rows, row))]
        totals = [jnp.sum(x, dtype=jnp.uint32) for x in totals]
        return jnp.stack([*totals, finite.astype(jnp.uint32)])

    # On CPUs the older emitters have integer products several times as fast.
    return jax.jit(numbers, compiler_options=older_emitters(platforms))


def _places(shape: tuple[int, ...]) -> Any:
    """0, 1, 2 ... in the order of the values of a shape."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, length in enumerate(shape):
        place = place * np.uint32(length % 2**32)
        place = place + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return place


def _weights(place: Any) -> Any:
    """Odd numbers, so that no change of one value is lost; for NumPy and JAX."""
    return _mixed(place, np.uint32(0)) | np.uint32(1)


def _mixed(words: Any, place: Any) -> Any:
    """Bijective in ``words``; for NumPy and JAX."""
    words = (words ^ (place * GOLDEN)) * FIRST
    words = (words ^ (words >> np.uint32(13))) * SECOND
    return words ^ (words >> np.uint32(16))
