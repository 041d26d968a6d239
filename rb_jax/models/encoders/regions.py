"""Region features: a convolutional feature map, averaged over region masks.

Takes SAM's place where SAM's weights are not used: the masks come with the batch, this stem gives
the map that they pool. Downstream sees region features and a mask, whatever produced them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from rb_jax.config import RegionConfig


def masked_pool(
    features: Float[Array, "B G_y G_x C"], regions: Bool[Array, "B R G_y G_x"]
) -> Float[Array, "B R C"]:
    """Mean of ``features`` over each region; zeros for an empty one (authors' frce.py)."""
    weights = regions.astype(features.dtype)
    total = jnp.einsum("bijc,brij->brc", features, weights)
    return total / jnp.maximum(weights.sum((2, 3)), 1)[..., None]


class RegionEncoder(nnx.Module):
    def __init__(self, config: RegionConfig, rngs: nnx.Rngs):
        width, stride = config.width, config.stride
        # Two further input channels hold the pixel coordinates: pooling would lose the place.
        self.patch_conv = nnx.Conv(
            5, width, (stride, stride), strides=stride, padding="VALID", rngs=rngs
        )
        self.neck_conv = nnx.Conv(width, width, (3, 3), rngs=rngs)

    def __call__(
        self, images: UInt8[Array, "B Y X 3"], regions: Bool[Array, "B R G_y G_x"]
    ) -> Float[Array, "B R C"]:
        shape = images.shape[:3]
        axes = (jnp.linspace(-1.0, 1.0, size) for size in shape[1:])
        grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
        grid = jnp.broadcast_to(grid, (*shape, 2))
        pixels = jnp.concatenate([images.astype(jnp.float32) / 127.5 - 1.0, grid], axis=-1)
        x = jax.nn.gelu(self.patch_conv(pixels.astype(self.patch_conv.kernel.dtype)))
        return masked_pool(self.neck_conv(x), regions)
