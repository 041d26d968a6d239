"""The flow loss of some examples apart from the others: by their time, by their category.

Such a metric is a pair [sum, count], so that batches, and parts of one, add up to the exact mean.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rb_jax.config.sizes import CATEGORIES

TIME_BINS = 4
Pair = Float[Array, "pair=2"]


def loss_by_time(losses: Float[Array, " B"], t: Float[Array, " B"]) -> dict[str, Pair]:
    """``loss_flow/t_0.25_0.50`` and so on: quarters of the way from data (0) to noise (1)."""
    edges = [i / TIME_BINS for i in range(TIME_BINS + 1)]
    names = [f"t_{a:.2f}_{b:.2f}" for a, b in zip(edges, edges[1:], strict=False)]
    chosen = jnp.clip(jnp.floor(t * TIME_BINS), 0, TIME_BINS - 1).astype(jnp.int32)
    return _totals(losses, chosen, names)


def loss_by_category(losses: Float[Array, " B"], category: Int[Array, " B"]) -> dict[str, Pair]:
    """``loss_flow/physical`` and so on; examples of no category (-1) count in none."""
    return _totals(losses, category, CATEGORIES)


def _totals(losses, chosen, names) -> dict[str, Array]:
    member = jax.nn.one_hot(chosen, len(names), axis=0)
    pairs = jnp.stack([member @ losses.astype(jnp.float32), member.sum(axis=1)], axis=1)
    return {f"loss_flow/{name}": pairs[i] for i, name in enumerate(names)}
