"""The random numbers that fresh parameters begin as: cheap to compile, and enough for that.

A model has hundreds of arrays to fill. JAX's own generator, made for long streams, takes an XLA
compiler a loop of twenty rounds each; two rounds of a good integer hash over position and key
take it a tenth, and what is used once needs no more.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import define_prng_impl
from jaxtyping import Array, UInt32

# Fractions of the golden ratio and of square roots: any odd number would do.
_SEED, _FOLD, _SPLIT = (0x9E3779B9, 0x85EBCA6B), (0x27D4EB2F, 0xC2B2AE35), (0x165667B1, 0xD3A2646D)


def hashed_key(seed: int) -> Array:
    """A key for ``jax.random``; like JAX's own, it gives the same numbers however they are laid.

    One call repeats itself after 2**32 numbers.
    """
    return jax.random.key(seed, impl=_HASHED)


def _mix(x: UInt32[Array, "*S"]) -> UInt32[Array, "*S"]:
    """An invertible hash in which every bit depends on all: lowbias32 of hash-prospector."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def _pair(key: UInt32[Array, " 2"], number: UInt32[Array, "*S"], salt: tuple[int, int]) -> Array:
    """The key of a number under a key."""
    first = _mix(key[0] ^ _mix(number + jnp.uint32(salt[0])))
    second = _mix(key[1] + _mix(number ^ jnp.uint32(salt[1])))
    return jnp.stack([first, second ^ first], axis=-1)


def _seed(seed: Any) -> UInt32[Array, " 2"]:
    return _pair(jnp.zeros(2, jnp.uint32), seed.astype(jnp.uint32), _SEED)


def _fold_in(key: UInt32[Array, " 2"], number: Any) -> UInt32[Array, " 2"]:
    return _pair(key, number.astype(jnp.uint32), _FOLD)


def _split(key: UInt32[Array, " 2"], shape: tuple[int, ...]) -> UInt32[Array, "*S 2"]:
    return _pair(key, _positions(shape), _SPLIT)


def _random_bits(key: UInt32[Array, " 2"], width: int, shape: tuple[int, ...]) -> Array:
    if width not in (8, 16, 32):
        raise ValueError(f"random numbers of {width} bits")
    bits = _mix(_mix(_positions(shape) + key[0]) + key[1])
    return (bits >> (32 - width)).astype(f"uint{width}")


def _positions(shape: tuple[int, ...]) -> UInt32[Array, "*S"]:
    """Each place's number, counted from 0 along the last axis first."""
    numbers = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        numbers += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return numbers


_HASHED = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="rb_jax_hashed",
    tag="hsh",
)
