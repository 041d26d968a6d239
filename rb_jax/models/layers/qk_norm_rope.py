"""From the fused projection to what attention takes: heads apart, normed and rotated (FLUX).

On a TPU one kernel reads the projection once and writes heads as the attention kernel wants them;
the compiler's own program for the formula spends more time in copies between layouts than in
the matrix products around it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from rb_jax.models.layers.norms import rms_norm
from rb_jax.models.layers.rope import rotate_interleaved
from rb_jax.sharding.activations import axis_size, per_device, platform, spec

EPSILON = 1e-6
LANES = 128
ROWS = 512  # tokens in a step of the kernel


def normed_heads(
    qkv: Float[Array, "B T C3"],
    q_scale: Float[Array, " D"],
    k_scale: Float[Array, " D"],
    angle: Float[Array, "T half"],
) -> tuple[Float[Array, "B T H D"], Float[Array, "B T H D"], Float[Array, "B T H D"]]:
    """Queries and keys with RMS norm and rotary embedding, and values.

    Formula of flux/modules/layers.py (QKNorm) and flux/math.py (apply_rope); norm and rotation in
    float32.
    """
    if not fused(q_scale.shape[0]):
        return reference(qkv, q_scale, k_scale, angle)
    cos, sin = (jnp.repeat(f(angle), 2, axis=-1) for f in (jnp.cos, jnp.sin))
    rows = spec(qkv.shape, "batch", "tokens")
    batch, tokens = rows
    whole, turned = spec((1,), None), jax.sharding.PartitionSpec(tokens)
    out = jax.sharding.PartitionSpec(batch, None, tokens)
    run = per_device(_kernel, (rows, whole, whole, turned, turned), (out, out, out))
    q, k, v = run(qkv, q_scale, k_scale, cos, sin)
    return q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)


def fused(head_width: int) -> bool:
    """Whether the kernel can do it here: its heads are registers' lanes, and no device's part."""
    return platform() == "tpu" and head_width == LANES and axis_size("tensor") == 1


def reference(qkv, q_scale, k_scale, angle):
    """The same as a formula."""
    batch, tokens, width = qkv.shape
    heads = qkv.reshape(batch, tokens, 3, width // (3 * q_scale.shape[0]), -1)

    def normed(x, scale):
        return rotate_interleaved(rms_norm(x, scale, EPSILON).astype(x.dtype), angle)

    q, k, v = (heads[:, :, i] for i in range(3))
    return normed(q, q_scale), normed(k, k_scale), v


@jax.custom_vjp
def _kernel(qkv, q_scale, k_scale, cos, sin):
    return _forward(qkv, q_scale, k_scale, cos, sin)[0]


def _forward(qkv, q_scale, k_scale, cos, sin, interpret: bool = False):
    batch, tokens, width = qkv.shape
    heads, rows = width // (3 * LANES), min(ROWS, pl.cdiv(tokens, 16) * 16)
    head = [
        pl.BlockSpec((None, rows, LANES), lambda b, t, h, i=i: (b, t, i * heads + h))
        for i in range(3)
    ]
    turned = pl.BlockSpec((rows, LANES), lambda b, t, h: (t, 0))
    whole = pl.BlockSpec((1, LANES), lambda b, t, h: (0, 0))
    out = pl.BlockSpec((None, None, rows, LANES), lambda b, t, h: (b, h, t, 0))
    shape = jax.ShapeDtypeStruct((batch, heads, tokens, LANES), qkv.dtype)
    outputs = pl.pallas_call(
        _forward_body,
        grid=(batch, pl.cdiv(tokens, rows), heads),
        in_specs=[*head, whole, whole, turned, turned],
        out_specs=[out] * 3,
        out_shape=[shape] * 3,
        interpret=interpret,
        name="normed_heads",
        **_parallel(2, 1, interpret),
    )(qkv, qkv, qkv, q_scale[None], k_scale[None], cos, sin)
    return tuple(outputs), (qkv, q_scale, k_scale, cos, sin)


def _forward_body(q, k, v, q_scale, k_scale, cos, sin, q_out, k_out, v_out):
    for x, scale, out in ((q, q_scale, q_out), (k, k_scale, k_out)):
        x32 = x[...].astype(jnp.float32)
        r = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + EPSILON)
        y = (x32 * r * scale[...].astype(jnp.float32)).astype(out.dtype).astype(jnp.float32)
        out[...] = (y * cos[...] + _partner(y) * sin[...]).astype(out.dtype)
    v_out[...] = v[...]


def _backward(residuals, grads, interpret: bool = False):
    qkv, q_scale, k_scale, cos, sin = residuals
    batch, tokens, width = qkv.shape
    heads, rows = width // (3 * LANES), min(ROWS, pl.cdiv(tokens, 16) * 16)
    steps = pl.cdiv(tokens, rows)

    def grad(i):  # the block stays, and is not read again, while the others' heads pass
        return pl.BlockSpec(
            (None, None, rows, LANES),
            lambda b, t, j, i=i: (b, jnp.clip(j - i * heads, 0, heads - 1), t, 0),
        )

    raw = pl.BlockSpec((None, rows, LANES), lambda b, t, j: (b, t, jnp.minimum(j, 2 * heads - 1)))
    turned = pl.BlockSpec((rows, LANES), lambda b, t, j: (t, 0))
    whole = pl.BlockSpec((1, LANES), lambda b, t, j: (0, 0))
    sums = pl.BlockSpec((None, None, 8, LANES), lambda b, t, j: (b, t, 0, 0))
    sums_shape = jax.ShapeDtypeStruct((batch, steps, 8, LANES), jnp.float32)
    out = pl.BlockSpec((None, rows, LANES), lambda b, t, j: (b, t, j))
    d_qkv, d_q_scale, d_k_scale = pl.pallas_call(
        functools.partial(_backward_body, heads, tokens),
        grid=(batch, steps, 3 * heads),
        in_specs=[raw, *(grad(i) for i in range(3)), whole, whole, turned, turned],
        out_specs=[out, sums, sums],
        out_shape=[jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), sums_shape, sums_shape],
        interpret=interpret,
        name="normed_heads_backward",
        **_parallel(2, 1, interpret),
    )(qkv, *grads, q_scale[None], k_scale[None], cos, sin)
    totals = (x.sum(axis=(0, 1, 2)).astype(q_scale.dtype) for x in (d_q_scale, d_k_scale))
    return d_qkv, *totals, jnp.zeros_like(cos), jnp.zeros_like(sin)


def _backward_body(heads, tokens, x, dq, dk, dv, q_scale, k_scale, cos, sin, out, q_sums, k_sums):
    j, rows = pl.program_id(2), out.shape[0]
    first = pl.program_id(1) * rows
    there = first + jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 0) < tokens

    @pl.when(j == 0)
    def _():
        q_sums[...] = jnp.zeros_like(q_sums)
        k_sums[...] = jnp.zeros_like(k_sums)

    def normed(grad, scale, sums):
        g = grad[...].astype(jnp.float32)
        dy = g * cos[...] - _partner(g) * sin[...]
        x32 = x[...].astype(jnp.float32)
        r = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + EPSILON)
        n = x32 * r
        # Beyond the last token blocks hold whatever was there.
        product = jnp.where(there, dy * n, 0.0)
        sums[...] += product.reshape(rows // 8, 8, LANES).sum(axis=0)
        dn = dy * scale[...].astype(jnp.float32)
        out[...] = (r * (dn - n * jnp.mean(dn * n, axis=-1, keepdims=True))).astype(out.dtype)

    pl.when(j < heads)(lambda: normed(dq, q_scale, q_sums))
    pl.when((j >= heads) & (j < 2 * heads))(lambda: normed(dk, k_scale, k_sums))

    @pl.when(j >= 2 * heads)
    def _():
        out[...] = dv[...]


def _partner(x: jax.Array) -> jax.Array:
    """Of each pair (a, b) of lanes: (-b, a)."""
    even = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) % 2 == 0
    return jnp.where(even, -jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))


def _parallel(parallel: int, sequential: int, interpret: bool) -> dict[str, Any]:
    """Which axes of a grid the cores of a chip may share."""
    if interpret:
        return {}
    from jax.experimental.pallas import tpu as pltpu

    semantics: Any = ("parallel",) * parallel + ("arbitrary",) * sequential
    return {"compiler_params": pltpu.CompilerParams(dimension_semantics=semantics)}


_kernel.defvjp(_forward, _backward)
