"""Repeated blocks: parameters stacked on a leading layer axis, run by one scan.

Compile time then depends on the number of distinct blocks, not on the depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

Block = TypeVar("Block", bound=nnx.Module)
Carry = TypeVar("Carry")


def stack(make: Callable[[nnx.Rngs], Block], count: int, rngs: nnx.Rngs) -> Block:
    """``count`` blocks as one module whose every parameter has a leading axis of that length."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(layer_rngs: nnx.Rngs) -> Block:
        return make(layer_rngs)

    return create(rngs)


def scan_blocks(
    blocks: Block,
    carry: Carry,
    step: Callable[[Block, Carry], Carry],
    *,
    remat: bool = False,
    collect: Callable[[Carry], jax.Array] | None = None,
) -> tuple[Carry, jax.Array | None]:
    """Runs ``carry = step(block, carry)`` over stacked blocks.

    ``collect(carry)`` is stacked over the layers and returned beside the last carry; ``remat``
    recomputes each block in the backward pass instead of saving its activations.
    """
    graphdef, params = nnx.split(blocks)

    def body(carry, layer):
        carry = step(nnx.merge(graphdef, layer), carry)
        return carry, None if collect is None else collect(carry)

    return jax.lax.scan(jax.checkpoint(body) if remat else body, carry, params)
