"""Rotary position embeddings, in the two conventions of the pretrained models.

FLUX rotates interleaved pairs (x0, x1), (x2, x3), ... with several position axes side by side;
LLaMA rotates the halves (x[:D/2], x[D/2:]) with one. Angles and rotation are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def angles(positions: Int[Array, "*B T"], dim: int, theta: float) -> Float[Array, "*B T half"]:
    """Rotation angles position / theta^(2i/dim) for i in 0 .. dim/2 - 1."""
    frequencies = theta ** -(jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    return positions[..., None].astype(jnp.float32) * frequencies


def axes_angles(
    ids: Int[Array, "T axes"], axes_dim: Sequence[int], theta: float
) -> Float[Array, "T half"]:
    """FLUX's multi-axis angles: axis a of ``ids`` fills ``axes_dim[a] / 2`` of the head's pairs."""
    return jnp.concatenate(
        [angles(ids[:, a], dim, theta) for a, dim in enumerate(axes_dim)], axis=-1
    )


def rotate_interleaved(
    x: Float[Array, "B T H D"], angle: Float[Array, "T half"]
) -> Float[Array, "B T H D"]:
    """Rotates the pairs (x[2i], x[2i+1]) by angle i (flux/math.py: apply_rope)."""
    cos, sin = (jnp.repeat(f(angle), 2, axis=-1)[:, None, :] for f in (jnp.cos, jnp.sin))
    x32, even = x.astype(jnp.float32), jnp.arange(x.shape[-1]) % 2 == 0
    # Each value's partner, by whole shifts: pairs as an axis of 2 would fill a 128th of a register.
    partner = jnp.where(even, -jnp.roll(x32, -1, axis=-1), jnp.roll(x32, 1, axis=-1))
    return (x32 * cos + partner * sin).astype(x.dtype)


def rotate_half(
    x: Float[Array, "B T H D"], angle: Float[Array, "B T half"]
) -> Float[Array, "B T H D"]:
    """Rotates the pairs (x[i], x[i + D/2]) by angle i (modeling_llama.py: apply_rotary_pos_emb)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
