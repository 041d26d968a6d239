"""Repeated blocks: parameters stacked on a leading layer axis, run by one scan.

Compile time then depends on the number of distinct blocks, not on the depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

from rb_jax.models.layers.remat import checkpointed, name
from rb_jax.sharding.activations import constrain

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
    remat: str = "off",
    collect: Callable[[Carry], jax.Array] | None = None,
    layout: tuple[str | None, ...] = ("batch",),
) -> tuple[Carry, jax.Array | None]:
    """Runs ``carry = step(block, carry)`` over stacked blocks.

    ``collect(carry)`` is stacked over the layers and returned beside the last carry; ``remat``
    says which of a block's activations its backward pass finds (rb_jax.config.remat). ``layout``
    names the leading axes of the carry's arrays on the mesh: without it a compiler might follow
    the parameters' layout and give up the examples'.
    """
    graphdef, params = nnx.split(blocks)

    def body(carry, layer):
        carry = step(nnx.merge(graphdef, layer), jax.tree.map(_named, carry))
        carry = jax.tree.map(lambda x: constrain(x, *layout), carry)
        return carry, None if collect is None else collect(carry)

    carry = jax.tree.map(lambda x: constrain(x, *layout), carry)
    return jax.lax.scan(checkpointed(body, remat), carry, params)


def _named(x: jax.Array) -> jax.Array:
    return name(x, "input")
