"""SAM's image encoder: a ViT with windowed and global attention and a convolutional neck.

arXiv 2304.02643, appendix A, after ViTDet (arXiv 2203.16527); names of transformers'
models/sam/modeling_sam.py: SamVisionEncoder.
"""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.config import SAMConfig
from rb_jax.models.layers.attention import merge_heads
from rb_jax.models.layers.mlp import MLP
from rb_jax.models.layers.norms import LayerNorm
from rb_jax.models.layers.stack import Block, scan_blocks, stack

NORM_EPS = 1e-6


def partition(x: Float[Array, "B H W C"], window: int) -> Float[Array, "B2 {window} {window} C"]:
    """Windows in row-major order; zeros fill up those at the bottom and the right."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
    x = x.reshape(batch, x.shape[1] // window, window, x.shape[2] // window, window, channels)
    return x.swapaxes(2, 3).reshape(-1, window, window, channels)


def unpartition(
    windows: Float[Array, "B2 Z Z C"], height: int, width: int
) -> Float[Array, "B {height} {width} C"]:
    """Inverse of ``partition``; the padding is cut off."""
    window, channels = windows.shape[1], windows.shape[-1]
    rows, columns = -(-height // window), -(-width // window)
    x = windows.reshape(-1, rows, columns, window, window, channels).swapaxes(2, 3)
    x = x.reshape(-1, rows * window, columns * window, channels)
    return x[:, :height, :width]


def relative_bias(
    q: Float[Array, "B Z Z H D"], rel_pos_h: Float[Array, "L D"], rel_pos_w: Float[Array, "L D"]
) -> Float[Array, "B H T T"]:
    """Decomposed relative positions of MViTv2 (arXiv 2112.01526), float32.

    The bias of query (i, j) for key (k, l) is q_ij . (rel_pos_h[i - k] + rel_pos_w[j - l]), where
    row 0 of the tables is the offset 1 - Z.
    """
    batch, side, _, heads, _ = q.shape
    offset = jnp.arange(side)[:, None] - jnp.arange(side) + side - 1
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
    down = einsum("bijhd,ikd->bhijk", q, rel_pos_h[offset])
    across = einsum("bijhd,jld->bhijl", q, rel_pos_w[offset])
    bias = down[..., :, None] + across[..., None, :]
    return bias.reshape(batch, heads, side * side, side * side)


class RelativeAttention(nnx.Module):
    """Self-attention over a ``side`` x ``side`` square with decomposed relative positions."""

    def __init__(self, width: int, heads: int, side: int, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.proj = nnx.Linear(width, width, rngs=rngs)
        table = (2 * side - 1, width // heads)
        self.rel_pos_h = nnx.Param(jnp.zeros(table))
        self.rel_pos_w = nnx.Param(jnp.zeros(table))

    def __call__(self, x: Float[Array, "B Z Z C"]) -> Float[Array, "B Z Z C"]:
        batch, side, _, width = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(batch, side * side, 3, self.heads, -1), 2, 0)
        square = q.reshape(batch, side, side, self.heads, -1)
        bias = relative_bias(square, self.rel_pos_h[...], self.rel_pos_w[...])
        out = jax.nn.dot_product_attention(q, k, v, bias=bias)  # softmax in float32
        return self.proj(merge_heads(out).reshape(batch, side, side, width))


class ImageEncoderLayer(nnx.Module):
    def __init__(self, config: SAMConfig, side: int, rngs: nnx.Rngs):
        width = config.width
        self.layer_norm1 = LayerNorm(width, epsilon=NORM_EPS, rngs=rngs)
        self.attn = RelativeAttention(width, config.heads, side, rngs)
        self.layer_norm2 = LayerNorm(width, epsilon=NORM_EPS, rngs=rngs)
        self.mlp = MLP(width, config.mlp_width, rngs)

    def __call__(self, x: Float[Array, "B G G C"], window: int | None) -> Float[Array, "B G G C"]:
        """Attention inside windows of that side, or over everything when ``window`` is None."""
        h = self.layer_norm1(x)
        if window is None:
            h = self.attn(h)
        else:
            h = unpartition(self.attn(partition(h, window)), x.shape[1], x.shape[2])
        x = x + h
        return x + self.mlp(self.layer_norm2(x))


class Neck(nnx.Module):
    def __init__(self, width: int, channels: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(width, channels, (1, 1), use_bias=False, rngs=rngs)
        self.layer_norm1 = LayerNorm(channels, epsilon=NORM_EPS, rngs=rngs)
        self.conv2 = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.layer_norm2 = LayerNorm(channels, epsilon=NORM_EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "B G G C"]) -> Float[Array, "B G G C_out"]:
        return self.layer_norm2(self.conv2(self.layer_norm1(self.conv1(x))))


class ImageEncoder(nnx.Module):
    """Normalised pixels to a feature map.

    Tables of relative positions differ in size, hence two stacks of blocks: ``window_layers`` and
    ``global_layers``, each in the order of the network. A stack without blocks does not exist.
    """

    def __init__(self, config: SAMConfig, rngs: nnx.Rngs):
        self.config = config
        width, patch = config.width, config.patch_size
        grid = config.image_size // patch
        self.patch_embed = nnx.Conv(
            3, width, (patch, patch), strides=patch, padding="VALID", rngs=rngs
        )
        self.pos_embed = nnx.Param(jnp.zeros((1, grid, grid, width)))
        everywhere = len(set(config.global_layers))
        if everywhere < config.layers:
            self.window_layers = stack(
                lambda r: ImageEncoderLayer(config, config.window_size, r),
                config.layers - everywhere,
                rngs,
            )
        if everywhere:
            self.global_layers = stack(
                lambda r: ImageEncoderLayer(config, grid, r), everywhere, rngs
            )
        self.neck = Neck(width, config.out_channels, rngs)

    def __call__(
        self, pixels: Float[Array, "B S S 3"], remat: str = "off"
    ) -> Float[Array, "B G G C_out"]:
        """``pixels`` must have the side ``config.image_size``."""
        x = self.patch_embed(pixels.astype(self.patch_embed.kernel.dtype)) + self.pos_embed[...]
        done = {True: 0, False: 0}
        order = (i in self.config.global_layers for i in range(self.config.layers))
        for everywhere, run in itertools.groupby(order):
            start = done[everywhere]
            done[everywhere] = stop = start + len(list(run))
            blocks = self.global_layers if everywhere else self.window_layers
            window = None if everywhere else self.config.window_size
            step = partial(_apply, window=window)
            x, _ = scan_blocks(_slice(blocks, start, stop), x, step, remat=remat)
        return self.neck(x)


def _apply(layer: ImageEncoderLayer, x: jax.Array, window: int | None) -> jax.Array:
    return layer(x, window)


def _slice(blocks: Block, start: int, stop: int) -> Block:
    """The stacked blocks ``start`` to ``stop`` alone."""
    graphdef, params = nnx.split(blocks)
    return nnx.merge(graphdef, jax.tree.map(lambda value: value[start:stop], params))
