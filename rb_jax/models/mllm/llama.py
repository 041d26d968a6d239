"""The LLaMA decoder (transformers: models/llama/modeling_llama.py), LoRA on q, k, v, o."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rb_jax.config import MLLMConfig
from rb_jax.models.layers.attention import attention, merge_heads, split_heads
from rb_jax.models.layers.lora import LoRALinear
from rb_jax.models.layers.mlp import GatedMLP
from rb_jax.models.layers.norms import RMSNorm
from rb_jax.models.layers.remat import name
from rb_jax.models.layers.rope import angles, rotate_half
from rb_jax.models.layers.stack import scan_blocks, stack
from rb_jax.sharding.activations import constrain


def _heads(x: Float[Array, "B T C"], heads: int) -> Float[Array, "B T H D"]:
    return constrain(split_heads(x, heads), "batch", None, "heads")


class LlamaAttention(nnx.Module):
    def __init__(self, config: MLLMConfig, rngs: nnx.Rngs):
        self.heads, self.kv_heads = config.heads, config.kv_heads
        width = config.width
        kv_width = width // config.heads * config.kv_heads
        rank, alpha = config.lora_rank, config.lora_alpha
        self.q_proj = LoRALinear(width, width, rank, alpha, rngs)
        self.k_proj = LoRALinear(width, kv_width, rank, alpha, rngs)
        self.v_proj = LoRALinear(width, kv_width, rank, alpha, rngs)
        self.o_proj = LoRALinear(width, width, rank, alpha, rngs)

    def __call__(
        self,
        x: Float[Array, "B T C"],
        mask: Bool[Array, "B T"],
        angle: Float[Array, "B T half"],
    ) -> Float[Array, "B T C"]:
        q, k, v = name((self.q_proj(x), self.k_proj(x), self.v_proj(x)), "qkv")
        q = rotate_half(_heads(q, self.heads), angle)
        k = rotate_half(_heads(k, self.kv_heads), angle)
        attended = attention(q, k, _heads(v, self.kv_heads), mask, causal=True)
        return name(self.o_proj(merge_heads(attended)), "proj")


class LlamaBlock(nnx.Module):
    def __init__(self, config: MLLMConfig, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.width, epsilon=config.norm_eps, rngs=rngs)
        self.self_attn = LlamaAttention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.width, epsilon=config.norm_eps, rngs=rngs)
        self.mlp = GatedMLP(config.width, config.mlp_width, rngs)

    def __call__(
        self,
        x: Float[Array, "B T C"],
        mask: Bool[Array, "B T"],
        angle: Float[Array, "B T half"],
    ) -> Float[Array, "B T C"]:
        x = x + self.self_attn(self.input_layernorm(x), mask, angle)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """Causal decoder over embeddings; token embedding and head are its only vocabulary tables."""

    def __init__(self, config: MLLMConfig, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.normal(0.02)
        self.embed_tokens = nnx.Param(init(rngs.params(), (config.vocab_size, config.width)))
        self.layers = stack(lambda r: LlamaBlock(config, r), config.layers, rngs)
        self.norm = RMSNorm(config.width, epsilon=config.norm_eps, rngs=rngs)
        self.lm_head = nnx.Linear(config.width, config.vocab_size, use_bias=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T C"], mask: Bool[Array, "B T"], remat: str = "off"
    ) -> Float[Array, "B T C"]:
        """Last hidden states, after the final norm.

        Positions count the tokens that are there: padding between two parts of the sequence
        shifts nothing.
        """
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        head_width = self.config.width // self.config.heads
        angle = angles(positions, head_width, self.config.rope_theta)
        x, _ = scan_blocks(self.layers, x, lambda block, h: block(h, mask, angle), remat=remat)
        return self.norm(x)
