"""Flash attention on TPUs: JAX's splash kernel, forward and backward.

The kernel takes [heads, tokens, width] of one example, whole blocks of tokens, and masks by
segment ids: a query sees the keys with its own id.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from rb_jax.sharding.activations import device_kind

LANES = 128
PADDING = -1  # the segment of keys that nobody sees

# Start of the chip's name -> largest blocks (queries, keys) forward, backward.
BLOCKS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "TPU v4": ((1024, 1024), (1024, 1024)),
    "TPU v5 lite": ((1024, 1024), (1024, 1024)),
    "TPU v5": ((1152, 1152), (1152, 1152)),  # v5p
    "TPU v6": ((1536, 1536), (1536, 1536)),
    "": ((1024, 1024), (1024, 1024)),
}


def splash_attention(
    q: Float[Array, "B Tq Hq D"],
    k: Float[Array, "B Tk Hk D"],
    v: Float[Array, "B Tk Hk D"],
    q_segments: Int[Array, "B Tq"] | None = None,
    k_segments: Int[Array, "B Tk"] | None = None,
    causal: bool = False,
    interpret: bool = False,
) -> Float[Array, "B Tq Hq D"]:
    """Attention within equal segments (all see all without them); scaled by 1 / sqrt(D).

    A query whose segment has no key gets some average of the values: mask it afterwards.
    """
    (batch, q_len), k_len = q.shape[:2], k.shape[1]
    q_pad, k_pad = -q_len % LANES, -k_len % LANES
    if (k_pad or k_segments is not None) and q_segments is None:
        q_segments = jnp.zeros((batch, q_len), jnp.int32)
    if q_segments is not None:
        if k_segments is None:
            k_segments = jnp.zeros((batch, k_len), jnp.int32)
        q_segments = jnp.pad(q_segments, ((0, 0), (0, q_pad)))
        k_segments = jnp.pad(k_segments, ((0, 0), (0, k_pad)), constant_values=PADDING)
    scale = q.shape[-1] ** -0.5
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)
        for x, pad in ((q, q_pad), (k, k_pad), (v, k_pad))
    )
    run: Any = kernel(q.shape[1], q.shape[2], k.shape[2], causal, device_kind(), interpret)
    if q_segments is None:
        out = jax.vmap(run)(q, k, v)
    else:
        assert k_segments is not None
        out = jax.vmap(run)(q, k, v, splash.SegmentIds(q_segments, k_segments))
    return out.swapaxes(1, 2)[:, :q_len]


def kernel(heads: int, q_len: int, k_len: int, causal: bool, kind: str, interpret: bool):
    """The kernel for these lengths, multiples of 128; its residuals are named ``attention``."""
    rows = masks.CausalMask if causal else masks.FullMask
    forward, backward = next(v for name, v in BLOCKS.items() if kind.startswith(name))
    block_q, block_k = largest(q_len, forward[0]), largest(k_len, forward[1])
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_kv_compute=largest(block_k, 512),
        block_q_dkv=largest(q_len, backward[0]),
        block_kv_dkv=largest(k_len, backward[1]),
        block_kv_dkv_compute=largest(largest(k_len, backward[1]), 512),
        use_fused_bwd_kernel=True,
    )
    return splash.make_splash_mha(
        mask=masks.MultiHeadMask([rows((q_len, k_len))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )


@functools.cache
def largest(length: int, limit: int) -> int:
    """The largest multiple of 128 that divides ``length`` (itself one) and is within ``limit``."""
    return max(n for n in range(LANES, min(length, limit) + 1, LANES) if length % n == 0)
