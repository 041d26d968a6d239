"""Euler integration of the flow from noise (t = 1) to a picture (t = 0)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rb_jax.config import FlowConfig
from rb_jax.flow.matching import shift_mu, shift_time

Velocity = Callable[[Float[Array, "B H W C"], Float[Array, ""]], Float[Array, "B H W C"]]


def schedule(config: FlowConfig, steps: int, tokens: int) -> Float[Array, " T"]:
    """``steps + 1`` times from 1 to 0, shifted for the resolution."""
    return shift_time(jnp.linspace(1.0, 0.0, steps + 1), shift_mu(config, tokens))


def euler(
    velocity: Velocity, noise: Float[Array, "B H W C"], times: Float[Array, " T"]
) -> Float[Array, "B H W C"]:
    """Follows dz/dt = velocity(z, t) through ``times``."""

    def step(z, interval):
        t, t_next = interval
        return z + (t_next - t) * velocity(z, t), None

    z, _ = jax.lax.scan(step, noise, (times[:-1], times[1:]))
    return z


def true_cfg(
    conditional: Float[Array, "B H W C"], unconditional: Float[Array, "B H W C"], scale: float
) -> Float[Array, "B H W C"]:
    """Classifier-free guidance (arXiv 2207.12598); scale 1 is the conditional velocity."""
    return unconditional + scale * (conditional - unconditional)
