"""Rectified flow: z_t = (1 - t) x0 + t eps, velocity eps - x0; t = 1 is noise, t = 0 is data."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rb_jax.config import FlowConfig

MIN_TIME = 0.05


def shift_time(t: Float[Array, " T"], mu: float) -> Float[Array, " T"]:
    """Moves times towards noise: e^mu / (e^mu + 1/t - 1) (flux/sampling.py: time_shift)."""
    return math.exp(mu) * t / (1 + (math.exp(mu) - 1) * t)


def shift_mu(config: FlowConfig, tokens: int) -> float:
    """mu for ``tokens`` image tokens: linear through FLUX's two points; 0 without a shift."""
    if not config.shift:
        return 0.0
    slope = (config.max_shift - config.base_shift) / (config.max_tokens - config.base_tokens)
    return config.base_shift + slope * (tokens - config.base_tokens)


def sample_times(rng: jax.Array, batch: int, config: FlowConfig, tokens: int) -> Float[Array, " B"]:
    """Logit-normal times (arXiv 2403.03206), shifted for the resolution."""
    normal = jax.random.normal(rng, (batch,))
    t = jax.nn.sigmoid(config.logit_mean + config.logit_std * normal)
    return shift_time(t, shift_mu(config, tokens))


def interpolate(
    x0: Float[Array, "B H W C"], noise: Float[Array, "B H W C"], t: Float[Array, " B"]
) -> Float[Array, "B H W C"]:
    """z_t."""
    t = t[:, None, None, None]
    return (1 - t) * x0 + t * noise


def velocity_of_data(
    x0: Float[Array, "B H W C"], z_t: Float[Array, "B H W C"], t: Float[Array, " B"]
) -> Float[Array, "B H W C"]:
    """The velocity (z_t - x0) / t that a prediction of the data implies (arXiv 2511.13720).

    A narrow network can copy its source into x0 at once, while eps - x0 asks it to carry all of
    the noise. The denominator stops at 0.05, where the loss would otherwise explode.
    """
    return (z_t - x0) / jnp.maximum(t, MIN_TIME)[:, None, None, None]


def flow_loss(
    velocity: Float[Array, "B H W C"],
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
) -> Float[Array, " B"]:
    """L_DM of each example: mean squared error against eps - x0."""
    return jnp.mean((velocity.astype(jnp.float32) - (noise - x0)) ** 2, axis=(1, 2, 3))
