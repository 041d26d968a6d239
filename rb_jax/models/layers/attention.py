"""Attention: one function for every stage, and torch-shaped multi-head modules on top of it.

Which kernel runs is decided by the mesh that surrounds the trace (``jax.set_mesh``), never by the
devices of this process: programs are often compiled for hardware that is elsewhere.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rb_jax.models.layers import remat
from rb_jax.sharding.activations import axis_size, per_device, platform, spec

PADDING = -1  # the segment of keys that nobody sees
# Below this many keys the whole matrix of scores costs less than a kernel's set-up.
FLASH_KEYS = 512


def attention(
    q: Float[Array, "B Tq Hq D"],
    k: Float[Array, "B Tk Hk D"],
    v: Float[Array, "B Tk Hk D"],
    key_mask: Bool[Array, "B Tk"] | None = None,
    causal: bool = False,
    segments: tuple[Int[Array, "B Tq"], Int[Array, "B Tk"]] | None = None,
) -> Float[Array, "B Tq Hq D"]:
    """Scaled dot-product attention with softmax in float32; Hk may divide Hq (grouped queries).

    Keys whose mask is False never contribute, and with ``segments`` (ids of the documents packed
    into a row, 0 or more, of queries and of keys) nothing looks into another document. A query
    with no key left gets zeros, not the average of the padding (which is what a finite "minus
    infinity" would give).
    """
    chosen = backend(q, k)
    if chosen == "xla":
        mask = _mask(key_mask, segments)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
        out = remat.name(out, "attention")
    else:
        out = _flash(chosen, q, k, v, key_mask, causal, segments)
    if key_mask is None and segments is None:
        return out
    return jnp.where(_reachable(key_mask, causal, segments)[:, :, None, None], out, 0)


def backend(q: jax.Array, k: jax.Array) -> Literal["xla", "cudnn", "splash"]:
    """The kernel for these shapes on the mesh's platform."""
    width, heads_split = q.shape[-1], k.shape[2] % axis_size("tensor") == 0
    if k.shape[1] < FLASH_KEYS or q.shape[1] < 128 or not heads_split:
        return "xla"
    if platform() == "tpu" and width % 128 == 0:
        return "splash"
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return "cudnn" if platform() == "gpu" and half and width % 8 == 0 and width <= 128 else "xla"


def _flash(chosen: str, q, k, v, key_mask, causal: bool, segments) -> jax.Array:
    """A fused kernel on each device's examples, heads and (unless causal) queries."""
    arguments = [q, k, v]
    tokens = None if causal else "tokens"
    rows = spec(q.shape, "batch", tokens, "heads")
    specs = [rows, *[spec(k.shape, "batch", None, "heads")] * 2]
    if key_mask is not None or segments is not None:
        q_ids, k_ids = segments or (
            jnp.zeros(q.shape[:2], jnp.int32),
            jnp.zeros(k.shape[:2], jnp.int32),
        )
        if key_mask is not None:
            k_ids = jnp.where(key_mask, k_ids, PADDING)
        arguments += [q_ids, k_ids]
        specs += [spec(q_ids.shape, "batch", tokens), spec(k_ids.shape, "batch")]

    def run(q, k, v, q_ids=None, k_ids=None):
        if chosen == "splash":
            from rb_jax.models.layers.splash import splash_attention  # Pallas is slow to import

            return splash_attention(q, k, v, q_ids, k_ids, causal)
        mask = None if q_ids is None else _mask(None, (q_ids, k_ids))
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation="cudnn"
        )

    return per_device(run, tuple(specs), rows)(*arguments)


def _mask(key_mask, segments) -> Bool[Array, "B 1 #Tq Tk"] | None:
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if segments is None:
        return mask
    same = segments[0][:, None, :, None] == segments[1][:, None, None, :]
    return same if mask is None else same & mask


def _reachable(key_mask, causal: bool, segments) -> Bool[Array, "B _"]:
    """Which queries see any key at all."""
    if segments is None:
        return (jnp.cumsum(key_mask, axis=1) if causal else key_mask.sum(axis=1, keepdims=True)) > 0
    mask = _mask(key_mask, segments)
    assert mask is not None
    mask = mask[:, 0]
    return (jnp.tril(mask) if causal else mask).any(axis=-1)


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
