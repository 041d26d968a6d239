"""What the flow model learns from: random times, noise and guidance, and conditions left out.

Everything random is drawn for each example from its own key, so a batch cut in parts, or spread
over devices, sees the same draws.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rb_jax.config import FlowConfig
from rb_jax.models.flow.matching import flow_loss, interpolate, sample_times
from rb_jax.models.types import Conditioning
from rb_jax.sharding.activations import constrain

Velocity = Callable[
    [Float[Array, "B H W C"], Float[Array, " B"], Float[Array, " B"], Conditioning],
    Float[Array, "B H W C"],
]


def training_loss(
    velocity: Velocity,
    x0: Float[Array, "B H W C"],
    conditioning: Conditioning,
    rng: jax.Array,
    rows: Int[Array, " B"] | None,
    flow: FlowConfig,
    tokens: int,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """L_DM of each example, and the random time it is at, which ``tokens`` image tokens shift.

    ``rows`` are the examples' numbers in the whole batch, from which each has its own key.
    """
    x0 = x0.astype(jnp.float32)
    keys = row_keys(rng, x0.shape[0], rows)
    t, noise, guidance, kept = jax.vmap(lambda key: _draw(key, x0.shape[1:], flow, tokens))(keys)
    noise = constrain(noise, "batch")
    z_t = interpolate(x0, noise, t)
    return flow_loss(velocity(z_t, t, guidance, keep(conditioning, kept)), x0, noise), t


def row_keys(rng: jax.Array, count: int, rows: Int[Array, " B"] | None = None) -> jax.Array:
    """A key for each row of a batch; ``rows`` defaults to 0, 1, ..."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(count) if rows is None else rows)


def _draw(key: jax.Array, shape: tuple[int, ...], flow: FlowConfig, tokens: int):
    """Time, noise, guidance and [condition kept, source kept] of one example."""
    time_key, noise_key, drop_key, guidance_key = jax.random.split(key, 4)
    low, high = flow.guidance_range
    kept = 1.0 - jnp.array([flow.drop_condition, flow.drop_source])
    return (
        sample_times(time_key, 1, flow, tokens)[0],
        jax.random.normal(noise_key, shape),
        jax.random.uniform(guidance_key, minval=low, maxval=high),
        jax.random.bernoulli(drop_key, kept),
    )


def keep(conditioning: Conditioning, kept: Bool[Array, "B 2"]) -> Conditioning:
    """Zeros in the place of conditions (column 0) and of sources (column 1) not kept."""

    def blank(x, rows):
        return jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    return Conditioning(
        blank(conditioning.tokens, kept[:, 0]),
        blank(conditioning.vector, kept[:, 0]),
        blank(conditioning.source_latent, kept[:, 1]),
    )
