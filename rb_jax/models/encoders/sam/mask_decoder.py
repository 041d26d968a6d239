"""SAM's mask decoder: prompts and feature map to mask logits (arXiv 2304.02643, appendix A).

Names of transformers' models/sam/modeling_sam.py: SamMaskDecoder.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.config import SAMConfig
from rb_jax.models.encoders.sam.image_encoder import NORM_EPS
from rb_jax.models.layers.attention import attention, merge_heads, split_heads
from rb_jax.models.layers.mlp import MLP, gelu
from rb_jax.models.layers.norms import LayerNorm
from rb_jax.models.layers.stack import stack

EMBEDDING_INIT = nnx.initializers.normal(1.0)


class Attention(nnx.Module):
    """Multi-head attention whose inner width is ``inner``."""

    def __init__(self, width: int, inner: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.q_proj = nnx.Linear(width, inner, rngs=rngs)
        self.k_proj = nnx.Linear(width, inner, rngs=rngs)
        self.v_proj = nnx.Linear(width, inner, rngs=rngs)
        self.out_proj = nnx.Linear(inner, width, rngs=rngs)

    def __call__(
        self, q: Float[Array, "B Tq C"], k: Float[Array, "B Tk C"], v: Float[Array, "B Tk C"]
    ) -> Float[Array, "B Tq C"]:
        pairs = ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        q, k, v = (split_heads(project(x), self.heads) for project, x in pairs)
        return self.out_proj(merge_heads(attention(q, k, v)))


class TwoWayBlock(nnx.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, config: SAMConfig, rngs: nnx.Rngs):
        width, heads = config.out_channels, config.decoder_heads
        inner = width // config.attention_downsample
        self.self_attn = Attention(width, width, heads, rngs)
        self.layer_norm1 = LayerNorm(width, epsilon=NORM_EPS, rngs=rngs)
        self.cross_attn_token_to_image = Attention(width, inner, heads, rngs)
        self.layer_norm2 = LayerNorm(width, epsilon=NORM_EPS, rngs=rngs)
        self.mlp = MLP(width, config.decoder_mlp_width, rngs, jax.nn.relu)
        self.layer_norm3 = LayerNorm(width, epsilon=NORM_EPS, rngs=rngs)
        self.layer_norm4 = LayerNorm(width, epsilon=NORM_EPS, rngs=rngs)
        self.cross_attn_image_to_token = Attention(width, inner, heads, rngs)

    def __call__(
        self,
        tokens: Float[Array, "B T C"],
        image: Float[Array, "B P C"],
        prompts: Float[Array, "B T C"],
        places: Float[Array, "1 P C"],
        first: bool,
    ) -> tuple[Float[Array, "B T C"], Float[Array, "B P C"]]:
        """``prompts`` and ``places`` are added to queries and keys, never to values.

        In the first block the tokens still are the prompts, so self-attention replaces them.
        """
        if first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + prompts
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.layer_norm1(tokens)
        q, k = tokens + prompts, image + places
        tokens = self.layer_norm2(tokens + self.cross_attn_token_to_image(q, k, image))
        tokens = self.layer_norm3(tokens + self.mlp(tokens))
        q = tokens + prompts
        image = self.layer_norm4(image + self.cross_attn_image_to_token(k, q, tokens))
        return tokens, image


class TwoWayTransformer(nnx.Module):
    def __init__(self, config: SAMConfig, rngs: nnx.Rngs):
        width = config.out_channels
        inner = width // config.attention_downsample
        # Two blocks that do not work alike: not worth a scan.
        self.layers = nnx.List([TwoWayBlock(config, rngs) for _ in range(config.decoder_layers)])
        self.final_attn_token_to_image = Attention(width, inner, config.decoder_heads, rngs)
        self.layer_norm_final_attn = LayerNorm(width, epsilon=1e-5, rngs=rngs)

    def __call__(
        self,
        prompts: Float[Array, "B T C"],
        image: Float[Array, "B P C"],
        places: Float[Array, "1 P C"],
    ) -> tuple[Float[Array, "B T C"], Float[Array, "B P C"]]:
        tokens = prompts
        for index, layer in enumerate(self.layers):
            tokens, image = layer(tokens, image, prompts, places, index == 0)
        read = self.final_attn_token_to_image(tokens + prompts, image + places, image)
        return self.layer_norm_final_attn(tokens + read), image


class FeedForward(nnx.Module):
    """``layers`` linear maps with ReLU between them."""

    def __init__(self, width: int, hidden: int, out: int, layers: int, rngs: nnx.Rngs):
        self.proj_in = nnx.Linear(width, hidden, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(hidden, hidden, rngs=rngs) for _ in range(layers - 2)])
        self.proj_out = nnx.Linear(hidden, out, rngs=rngs)

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C_out"]:
        x = jax.nn.relu(self.proj_in(x))
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.proj_out(x)


class Upscale(nnx.Module):
    """Transposed 2 x 2 convolution of stride 2: every pixel becomes its own square of four.

    ``kernel`` is [in, row, column, out], torch's [in, out, row, column] permuted by (0, 2, 3, 1).
    """

    def __init__(self, width: int, out: int, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=0, out_axis=(1, 2, 3))
        self.kernel = nnx.Param(init(rngs.params(), (width, 2, 2, out)))
        self.bias = nnx.Param(jnp.zeros(out))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C_out"]:
        batch, height, width, _ = x.shape
        x = jnp.einsum("bijc,cxyd->bixjyd", x, self.kernel[...]) + self.bias[...]
        return x.reshape(batch, 2 * height, 2 * width, -1)


class MaskDecoder(nnx.Module):
    """One mask token for a single mask, ``multimask_outputs`` more for ambiguous prompts."""

    def __init__(self, config: SAMConfig, rngs: nnx.Rngs):
        width, masks = config.out_channels, config.multimask_outputs + 1
        self.iou_token = nnx.Param(EMBEDDING_INIT(rngs.params(), (1, width)))
        self.mask_tokens = nnx.Param(EMBEDDING_INIT(rngs.params(), (masks, width)))
        self.transformer = TwoWayTransformer(config, rngs)
        self.upscale_conv1 = Upscale(width, width // 4, rngs)
        self.upscale_layer_norm = LayerNorm(width // 4, epsilon=NORM_EPS, rngs=rngs)
        self.upscale_conv2 = Upscale(width // 4, width // 8, rngs)
        self.output_hypernetworks_mlps = stack(
            lambda r: FeedForward(width, width, width // 8, 3, r), masks, rngs
        )
        self.iou_prediction_head = FeedForward(
            width, config.iou_head_width, masks, config.iou_head_layers, rngs
        )

    def __call__(
        self,
        features: Float[Array, "B G G C"],
        places: Float[Array, "G G C"],
        sparse: Float[Array, "B R T C"],
        dense: Float[Array, "B R2 G G C"],
        multimask: bool,
    ) -> tuple[Float[Array, "B R M Z Z"], Float[Array, "B R M"]]:
        """Mask logits at four pixels a cell and their predicted IoU, float32.

        M is 1 without ``multimask``; with it, the other ``multimask_outputs`` masks.
        """
        batch, grid, _, width = features.shape
        rows, dtype = batch * sparse.shape[1], self.iou_token.dtype
        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
        own = jnp.broadcast_to(own, (*sparse.shape[:2], *own.shape))
        prompts = jnp.concatenate([own, sparse], axis=2).reshape(rows, -1, width).astype(dtype)
        image = features[:, None] + dense
        image = jnp.broadcast_to(image, (*sparse.shape[:2], grid, grid, width))
        places = places.reshape(1, grid * grid, width).astype(dtype)
        image = image.reshape(rows, grid * grid, width).astype(dtype)

        tokens, image = self.transformer(prompts, image, places)
        image = self.upscale_conv1(image.reshape(rows, grid, grid, width))
        image = gelu(self.upscale_conv2(gelu(self.upscale_layer_norm(image))))
        chosen = slice(1, None) if multimask else slice(0, 1)
        heads = nnx.vmap(lambda mlp, token: mlp(token), in_axes=(0, 1), out_axes=1)
        mask_tokens = tokens[:, 1 : 1 + self.mask_tokens.shape[0]]
        weights = heads(self.output_hypernetworks_mlps, mask_tokens)[:, chosen]
        masks = jnp.einsum("bmc,bijc->bmij", weights, image, preferred_element_type=jnp.float32)
        iou = self.iou_prediction_head(tokens[:, 0])[:, chosen].astype(jnp.float32)
        return masks.reshape(batch, -1, *masks.shape[1:]), iou.reshape(batch, -1, iou.shape[1])
