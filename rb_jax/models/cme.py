"""CME, the Cross-Modal Enhancer (PAPER section 4.3; authors' models/cme.py).

The language model's bottleneck loses detail; the CME puts it back, once for each modality:
    F1 = CrossAttn(Q, V_hat),  F2 = CrossAttn(E, R),  V_bar = FFN(LN(fuse(F1, F2)))
    R_bar = LN(CrossAttn(V_bar, [F2, R]))
with (E, R) = (E_I(I), R_V) in the visual and (E_T(H), R_T) in the textual enhancer.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rb_jax.config import CMEConfig
from rb_jax.models.layers.attention import MultiheadAttention
from rb_jax.models.layers.mlp import MLP
from rb_jax.models.layers.norms import LayerNorm
from rb_jax.models.layers.stack import scan_blocks, stack


class CrossAttention(nnx.Module):
    """Pre-norm cross-attention with a residual."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm_q = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.norm_kv = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attn = MultiheadAttention(width, heads, rngs)

    def __call__(
        self,
        q: Float[Array, "B Q C"],
        context: Float[Array, "B T C"],
        mask: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B Q C"]:
        return q + self.attn(self.norm_q(q), self.norm_kv(context), mask)


class FeedForward(nnx.Module):
    """Pre-norm feed-forward with a residual."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.ff = MLP(width, 4 * width, rngs)

    def __call__(self, x: Float[Array, "B Q C"]) -> Float[Array, "B Q C"]:
        return x + self.ff(self.norm(x))


class MixedBlock(nnx.Module):
    """One hybrid block: queries read V_hat, encoder tokens the cues, then queries the tokens."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.attn_q_vhat = CrossAttention(width, heads, rngs)
        self.attn_e_r = CrossAttention(width, heads, rngs)
        self.attn_fuse = CrossAttention(width, heads, rngs)
        self.norm_fuse = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.ffn = FeedForward(width, rngs)

    def __call__(self, q, v_hat, encoded, encoded_mask, cues, cue_mask):
        """V_bar [B Q C] and F2 [B E C]."""
        f1 = self.attn_q_vhat(q, v_hat)
        f2 = self.attn_e_r(encoded, cues, cue_mask)
        return self.ffn(self.norm_fuse(self.attn_fuse(f1, f2, encoded_mask))), f2


class Enhancer(nnx.Module):
    """One modality's enhancer."""

    def __init__(self, config: CMEConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.queries = nnx.Param(init(rngs.params(), (config.queries, config.width)))
        self.blocks = stack(
            lambda r: MixedBlock(config.width, config.heads, r), config.blocks, rngs
        )
        self.final_attn = CrossAttention(config.width, config.heads, rngs)
        self.final_norm = LayerNorm(config.width, epsilon=1e-5, rngs=rngs)

    def __call__(
        self,
        v_hat: Float[Array, "B Q C"],
        encoded: Float[Array, "B E C"],
        encoded_mask: Bool[Array, "B E"],
        cues: Float[Array, "B V C"],
        cue_mask: Bool[Array, "B V"],
        remat: str = "off",
    ) -> Float[Array, "B Q2 C"]:
        """R_bar of this modality."""
        q = jnp.broadcast_to(self.queries[...], (v_hat.shape[0], *self.queries.shape))
        (q, f2), _ = scan_blocks(
            self.blocks,
            (q.astype(v_hat.dtype), encoded),
            lambda block, c: block(c[0], v_hat, encoded, encoded_mask, cues, cue_mask),
            remat=remat,
        )
        context = jnp.concatenate([f2, cues], axis=1)
        mask = jnp.concatenate([encoded_mask, cue_mask], axis=1)
        return self.final_norm(self.final_attn(q, context, mask))


class CME(nnx.Module):
    """The two enhancers; all inputs already have the CME's width."""

    def __init__(self, config: CMEConfig, rngs: nnx.Rngs):
        self.visual_enhancer = Enhancer(config, rngs)
        self.textual_enhancer = Enhancer(config, rngs)
