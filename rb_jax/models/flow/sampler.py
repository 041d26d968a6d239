"""Euler integration of the flow from noise (t = 1) to a picture (t = 0)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rb_jax.config import FlowConfig
from rb_jax.models.flow.matching import shift_mu, shift_time
from rb_jax.models.flow.training import Velocity as ConditionedVelocity
from rb_jax.models.types import Conditioning
from rb_jax.sharding.activations import constrain

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


def without_condition(conditioning: Conditioning) -> Conditioning:
    """The null condition of classifier-free guidance: no words, no cues, the source stays."""
    return Conditioning(
        jnp.zeros_like(conditioning.tokens),
        jnp.zeros_like(conditioning.vector),
        conditioning.source_latent,
    )


def sample(
    velocity: ConditionedVelocity,
    conditioning: Conditioning,
    keys: jax.Array,
    shape: tuple[int, ...],
    flow: FlowConfig,
    tokens: int,
    steps: int | None = None,
    guidance: float | Float[Array, ""] | None = None,
    true_cfg_scale: float | None = None,
) -> Float[Array, "B H W C"]:
    """Latents from noise, one key [B] a row; None takes the configuration's value.

    ``tokens`` image tokens decide the time shift; a ``true_cfg_scale`` other than 1 costs a second
    velocity a step.
    """
    steps = flow.steps if steps is None else steps
    scale = flow.true_cfg if true_cfg_scale is None else true_cfg_scale
    noise = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)
    guidances = jnp.full((shape[0],), flow.guidance if guidance is None else guidance)
    null = without_condition(conditioning)

    def at(z, t):
        t = jnp.broadcast_to(t, shape[:1])
        v = velocity(z, t, guidances, conditioning)
        if scale == 1.0:
            return v
        return true_cfg(v, velocity(z, t, guidances, null), scale)

    return euler(at, constrain(noise, "batch"), schedule(flow, steps, tokens))
