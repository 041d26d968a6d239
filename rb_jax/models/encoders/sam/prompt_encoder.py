"""SAM's prompts: points, boxes and masks as vectors (arXiv 2304.02643, appendix A).

Names of transformers' models/sam/modeling_sam.py: SamPromptEncoder. Coordinates are (x, y) in
pixels of the encoder's square.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from rb_jax.config import SAMConfig
from rb_jax.models.encoders.sam.image_encoder import NORM_EPS
from rb_jax.models.layers.mlp import gelu
from rb_jax.models.layers.norms import LayerNorm
from rb_jax.models.types import Array, record

# Labels of points, as in transformers.
FOREGROUND, BACKGROUND = 1, 0
NOT_A_POINT = -1  # a learned vector that says "no point here"
IGNORED = -10  # a vector of zeros
EMBEDDING_INIT = nnx.initializers.normal(1.0)


@record
class Prompts:
    """R prompts for each of B pictures; every prompt asks for the masks of one object.

    Points come with labels. One mask a picture (R2 = 1) serves all of its prompts; masks are
    logits with four pixels for each cell of the feature map.
    """

    points: Float[Array, "B R T 2"] | None = None
    labels: Int[Array, "B R T"] | None = None
    boxes: Float[Array, "B R 4"] | None = None  # left, top, right, bottom
    masks: Float[Array, "B R2 Z Z"] | None = None


class FourierPositions(nnx.Module):
    """Random Fourier features of places (arXiv 2006.10739): [sin, cos] of 2 pi (2 p - 1) W.

    W is drawn once and shared by image and prompts; SAM does not train it.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1.0)
        self.positional_embedding = nnx.Param(init(rngs.params(), (2, channels // 2)))

    def __call__(self, places: Float[Array, "*B 2"]) -> Float[Array, "*B C"]:
        """``places`` are (x, y) in [0, 1]; the result is float32."""
        matrix = self.positional_embedding[...].astype(jnp.float32)
        # Phases reach many turns: a product in reduced precision would lose the place.
        places = 2 * jnp.asarray(places, jnp.float32) - 1
        phase = 2 * jnp.pi * jnp.matmul(places, matrix, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)

    def grid(self, side: int) -> Float[Array, "{side} {side} C"]:
        """The features of the cells' centres on a ``side`` x ``side`` raster."""
        axis = (jnp.arange(side) + 0.5) / side
        return self(jnp.stack(jnp.meshgrid(axis, axis, indexing="xy"), axis=-1))


class MaskEmbedding(nnx.Module):
    """Mask logits, four times finer than the feature map, to a vector for each of its cells."""

    def __init__(self, config: SAMConfig, rngs: nnx.Rngs):
        narrow, wide = config.mask_channels // 4, config.mask_channels
        self.conv1 = nnx.Conv(1, narrow, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.layer_norm1 = LayerNorm(narrow, epsilon=NORM_EPS, rngs=rngs)
        self.conv2 = nnx.Conv(narrow, wide, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.layer_norm2 = LayerNorm(wide, epsilon=NORM_EPS, rngs=rngs)
        self.conv3 = nnx.Conv(wide, config.out_channels, (1, 1), rngs=rngs)

    def __call__(self, masks: Float[Array, "B R Z Z"]) -> Float[Array, "B R G G C"]:
        x = gelu(self.layer_norm1(self.conv1(masks[..., None].astype(self.conv1.kernel.dtype))))
        return self.conv3(gelu(self.layer_norm2(self.conv2(x))))


class PromptEncoder(nnx.Module):
    def __init__(self, config: SAMConfig, rngs: nnx.Rngs):
        self.config = config

        def embedding() -> nnx.Param:
            return nnx.Param(EMBEDDING_INIT(rngs.params(), (1, config.out_channels)))

        self.mask_embed = MaskEmbedding(config, rngs)
        self.no_mask_embed = embedding()
        # Background, foreground, and the two corners of a box.
        self.point_embed = nnx.List([embedding() for _ in range(4)])
        self.not_a_point_embed = embedding()

    def __call__(
        self, prompts: Prompts, positions: FourierPositions
    ) -> tuple[Float[Array, "B R T C"], Float[Array, "B R2 G G C"]]:
        """Vectors of points and corners, and what to add to the feature map (R2 is R or 1).

        Points without a box are followed by one that is no point. Raises ValueError for points
        without labels and for prompts with nothing in them.
        """
        tokens = []
        if prompts.points is not None:
            if prompts.labels is None:
                raise ValueError("points need labels")
            points, labels = prompts.points, prompts.labels
            if prompts.boxes is None:
                points = jnp.pad(points, ((0, 0), (0, 0), (0, 1), (0, 0)))
                labels = jnp.pad(labels, ((0, 0), (0, 0), (0, 1)), constant_values=NOT_A_POINT)
            tokens.append(self._points(points, labels, positions))
        if prompts.boxes is not None:
            tokens.append(self._boxes(prompts.boxes, positions))
        if not tokens and prompts.masks is None:
            raise ValueError("prompts need points, boxes or masks")
        dtype, grid = self.no_mask_embed.dtype, self.config.image_size // self.config.patch_size
        if prompts.masks is not None:
            dense = self.mask_embed(jnp.asarray(prompts.masks))
        else:
            shape = (tokens[0].shape[0], 1, grid, grid, self.config.out_channels)
            dense = jnp.broadcast_to(self.no_mask_embed[...], shape)
        if tokens:
            return jnp.concatenate(tokens, axis=2).astype(dtype), dense
        return jnp.zeros((*dense.shape[:2], 0, dense.shape[-1]), dtype), dense

    def _places(self, pixels: Array) -> Array:
        return (pixels + 0.5) / self.config.image_size

    def _points(self, points: Array, labels: Array, positions: FourierPositions) -> Array:
        background, foreground, _, _ = self.point_embed
        x, label = positions(self._places(points)), labels[..., None]
        x = jnp.where(label == NOT_A_POINT, self.not_a_point_embed[...], x)
        x = jnp.where(label == IGNORED, 0, x)
        x = x + jnp.where(label == BACKGROUND, background[...], 0)
        return x + jnp.where(label == FOREGROUND, foreground[...], 0)

    def _boxes(self, boxes: Array, positions: FourierPositions) -> Array:
        _, _, first, second = self.point_embed
        corners = positions(self._places(boxes.reshape(*boxes.shape[:2], 2, 2)))
        return corners + jnp.concatenate([first[...], second[...]])
