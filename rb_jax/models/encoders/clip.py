"""CLIP's vision and text towers (transformers: models/clip/modeling_clip.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from rb_jax.config import CLIPTextConfig, CLIPVisionConfig
from rb_jax.models.layers.attention import attention, merge_heads, split_heads
from rb_jax.models.layers.mlp import MLP, gelu, quick_gelu
from rb_jax.models.layers.norms import LayerNorm
from rb_jax.models.layers.stack import scan_blocks, stack
from rb_jax.models.types import Text

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}
EMBEDDING_INIT = nnx.initializers.normal(0.02)


def preprocess(images: UInt8[Array, "B Y X 3"], size: int) -> Float[Array, "B Z Z 3"]:
    """Antialiased bicubic resize to ``size`` and CLIP's normalisation of the channels."""
    pixels = images.astype(jnp.float32) / 255.0
    if images.shape[1:3] != (size, size):
        shape = (images.shape[0], size, size, 3)
        pixels = jnp.clip(jax.image.resize(pixels, shape, "cubic", antialias=True), 0.0, 1.0)
    return (pixels - jnp.array(MEAN)) / jnp.array(STD)


class CLIPAttention(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"], mask, causal: bool) -> Float[Array, "B T C"]:
        q, k, v = (split_heads(p(x), self.heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(attention(q, k, v, mask, causal)))


class CLIPEncoderLayer(nnx.Module):
    def __init__(self, config: CLIPVisionConfig | CLIPTextConfig, rngs: nnx.Rngs):
        width = config.width
        self.layer_norm1 = LayerNorm(width, epsilon=config.norm_eps, rngs=rngs)
        self.self_attn = CLIPAttention(width, config.heads, rngs)
        self.layer_norm2 = LayerNorm(width, epsilon=config.norm_eps, rngs=rngs)
        self.mlp = MLP(width, config.mlp_width, rngs, ACTIVATIONS[config.activation])

    def __call__(self, x: Float[Array, "B T C"], mask, causal: bool) -> Float[Array, "B T C"]:
        x = x + self.self_attn(self.layer_norm1(x), mask, causal)
        return x + self.mlp(self.layer_norm2(x))


class CLIPVision(nnx.Module):
    """ViT over square patches; returns hidden states, class token first."""

    def __init__(self, config: CLIPVisionConfig, rngs: nnx.Rngs):
        self.config = config
        width, patch = config.width, config.patch_size
        tokens = (config.image_size // patch) ** 2 + 1
        self.class_embedding = nnx.Param(EMBEDDING_INIT(rngs.params(), (width,)))
        self.patch_embedding = nnx.Conv(
            3, width, (patch, patch), strides=patch, padding="VALID", use_bias=False, rngs=rngs
        )
        self.position_embedding = nnx.Param(EMBEDDING_INIT(rngs.params(), (tokens, width)))
        self.pre_layernorm = LayerNorm(width, epsilon=config.norm_eps, rngs=rngs)
        self.layers = stack(lambda r: CLIPEncoderLayer(config, r), config.layers, rngs)

    def __call__(
        self, images: UInt8[Array, "B Y X 3"], remat: str = "off"
    ) -> tuple[Float[Array, "B E C"], Float[Array, "B P C"]]:
        """E_I(I): the last hidden state, and the patch tokens of ``config.feature_layer``."""
        pixels = preprocess(images, self.config.image_size)
        x = self.patch_embedding(pixels.astype(self.patch_embedding.kernel.dtype))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        cls = jnp.broadcast_to(self.class_embedding[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.position_embedding[...]
        x = self.pre_layernorm(x)
        last, hidden = scan_blocks(
            self.layers,
            x,
            lambda layer, h: layer(h, None, False),
            remat=remat,
            collect=lambda h: h,
        )
        assert hidden is not None
        # Hugging Face counts the embeddings as hidden state 0.
        hidden = jnp.concatenate([x[None], hidden])
        return last, hidden[self.config.feature_layer][:, 1:]


class CLIPText(nnx.Module):
    """Causal text tower; the pooled vector is the hidden state of the end token."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.token_embedding = nnx.Param(EMBEDDING_INIT(rngs.params(), (config.vocab_size, width)))
        self.position_embedding = nnx.Param(
            EMBEDDING_INIT(rngs.params(), (config.max_length, width))
        )
        self.layers = stack(lambda r: CLIPEncoderLayer(config, r), config.layers, rngs)
        self.final_layer_norm = LayerNorm(width, epsilon=config.norm_eps, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "N T"], mask: Bool[Array, "N T"], remat: str = "off"
    ) -> tuple[Float[Array, "N T C"], Float[Array, "N C"]]:
        """All hidden states, and the one at each row's last token."""
        x = self.token_embedding[...][ids] + self.position_embedding[...][: ids.shape[1]]
        x, _ = scan_blocks(self.layers, x, lambda layer, h: layer(h, mask, True), remat=remat)
        x = self.final_layer_norm(x)
        end = jnp.maximum(mask.sum(axis=1) - 1, 0)
        return x, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]

    def encode_objects(
        self, objects: Text, present: Bool[Array, "B O"], remat: str = "off"
    ) -> Float[Array, "B O C"]:
        """Pooled vector of each object's name; absent objects give zeros."""
        batch, count, length = objects.ids.shape
        rows = (batch * count, length)
        _, pooled = self(objects.ids.reshape(rows), objects.mask.reshape(rows), remat)
        return jnp.where(present[..., None], pooled.reshape(batch, count, -1), 0)
