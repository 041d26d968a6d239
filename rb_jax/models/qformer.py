"""QFormer: the [IMG] states V become 77 vectors V_hat (PAPER section 4.1; authors' qformer.py)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.config import QFormerConfig
from rb_jax.models.layers.attention import MultiheadAttention
from rb_jax.models.layers.mlp import MLP
from rb_jax.models.layers.norms import LayerNorm
from rb_jax.models.layers.stack import scan_blocks, stack


class QFormerBlock(nnx.Module):
    """Self-attention among the queries, cross-attention to V, feed-forward; pre-norm."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm_self = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.self_attn = MultiheadAttention(width, heads, rngs)
        self.norm_cross_q = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.norm_cross_kv = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.cross_attn = MultiheadAttention(width, heads, rngs)
        self.norm_ffn = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.ffn = MLP(width, 4 * width, rngs)

    def __call__(self, q: Float[Array, "B Q C"], v: Float[Array, "B I C"]) -> Float[Array, "B Q C"]:
        q = q + self.self_attn(self.norm_self(q))
        q = q + self.cross_attn(self.norm_cross_q(q), self.norm_cross_kv(v))
        return q + self.ffn(self.norm_ffn(q))


class QFormer(nnx.Module):
    def __init__(self, in_width: int, config: QFormerConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.queries = nnx.Param(init(rngs.params(), (config.queries, config.width)))
        self.input_proj = nnx.Linear(in_width, config.width, rngs=rngs)
        self.blocks = stack(
            lambda r: QFormerBlock(config.width, config.heads, r), config.layers, rngs
        )
        self.out_norm = LayerNorm(config.width, epsilon=1e-5, rngs=rngs)

    def __call__(self, v: Float[Array, "B I C_l"], remat: str = "off") -> Float[Array, "B Q C"]:
        """V_hat."""
        v = self.input_proj(v)
        q = jnp.broadcast_to(self.queries[...], (v.shape[0], *self.queries.shape))
        q, _ = scan_blocks(self.blocks, q, lambda block, h: block(h, v), remat=remat)
        return self.out_norm(q)
