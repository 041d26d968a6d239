"""Attention: one function for every stage, and torch-shaped multi-head modules on top of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


def attention(
    q: Float[Array, "B Tq Hq D"],
    k: Float[Array, "B Tk Hk D"],
    v: Float[Array, "B Tk Hk D"],
    key_mask: Bool[Array, "B Tk"] | None = None,
    causal: bool = False,
) -> Float[Array, "B Tq Hq D"]:
    """Scaled dot-product attention with softmax in float32; Hk may divide Hq (grouped queries).

    Keys whose mask is False never contribute. A query with no key left gets zeros, not the
    average of the padding (which is what a finite "minus infinity" would give).
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    if key_mask is None:
        return out
    reachable = jnp.cumsum(key_mask, axis=1) if causal else key_mask.sum(axis=1, keepdims=True)
    return jnp.where((reachable > 0)[:, :, None, None], out, 0)


def split_heads(x: Float[Array, "B T C"], heads: int) -> Float[Array, "B T H D"]:
    return x.reshape(*x.shape[:-1], heads, -1)


def merge_heads(x: Float[Array, "B T H D"]) -> Float[Array, "B T C"]:
    return x.reshape(*x.shape[:-2], -1)


class MultiheadAttention(nnx.Module):
    """torch.nn.MultiheadAttention, ``batch_first``: fused ``in_proj`` (q, k, v) and ``out_proj``.

    Query and key/value inputs share one width, as in torch's fused form.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        query: Float[Array, "B Tq C"],
        context: Float[Array, "B Tk C"] | None = None,
        key_mask: Bool[Array, "B Tk"] | None = None,
    ) -> Float[Array, "B Tq C"]:
        """Self-attention when ``context`` is None, else cross-attention to ``context``."""
        if context is None:
            q, k, v = jnp.split(self.in_proj(query), 3, axis=-1)
        else:
            width = query.shape[-1]
            assert self.in_proj.bias is not None
            kernel, bias = self.in_proj.kernel[...], self.in_proj.bias[...]
            q = query @ kernel[:, :width] + bias[:width]
            k, v = jnp.split(context @ kernel[:, width:] + bias[width:], 2, axis=-1)
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
        return self.out_proj(merge_heads(attention(q, k, v, key_mask)))
