"""Latent pictures as token sequences, and the positions of the tokens (flux/sampling.py)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def pack(latents: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N D"]:
    """Patches as tokens; a token's D = C x patch x patch values, channel slowest as in FLUX."""
    batch, height, width, channels = latents.shape
    x = latents.reshape(batch, height // patch, patch, width // patch, patch, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, (height // patch) * (width // patch), channels * patch * patch)


def unpack(
    tokens: Float[Array, "B N D"], height: int, width: int, patch: int
) -> Float[Array, "B H W C"]:
    """Inverse of ``pack`` for a latent of ``height`` x ``width``."""
    batch = tokens.shape[0]
    x = tokens.reshape(batch, height // patch, width // patch, -1, patch, patch)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height, width, -1)


def position_ids(height: int, width: int, patch: int, image: int = 0) -> Int[Array, "N 3"]:
    """(image, row, column) of each token; ``image`` is 0 for z_t, 1 for a source sequence."""
    rows, columns = jnp.meshgrid(
        jnp.arange(height // patch), jnp.arange(width // patch), indexing="ij"
    )
    return jnp.stack([jnp.full_like(rows, image), rows, columns], axis=-1).reshape(-1, 3)


def text_ids(count: int) -> Int[Array, "M 3"]:
    """Conditioning tokens all sit at the origin."""
    return jnp.zeros((count, 3), jnp.int32)
