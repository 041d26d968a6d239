"""Attention against loops over queries, with what is masked left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rb_jax.layers.attention import MultiheadAttention, attention, merge_heads, split_heads
from tests import reference

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames="causal")
def run(q, k, v, mask=None, causal=False):
    return attention(q, k, v, mask, causal)


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
def test_grouped_queries(kv_heads):
    q, k, v = normal(2, 5, 6, 4), normal(2, 7, kv_heads, 4), normal(2, 7, kv_heads, 4)
    out = np.asarray(run(q, k, v))
    for row in range(2):
        close(out[row], reference.attention(q[row], k[row], v[row]))


def test_key_mask_leaves_keys_out_wherever_they_are():
    q, k, v = normal(3, 5, 4, 6), normal(3, 7, 2, 6), normal(3, 7, 2, 6)
    mask = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1], [0] * 7], bool)
    out = np.asarray(run(q, k, v, mask))
    for row in range(3):
        expected = reference.attention(q[row], k[row][mask[row]], v[row][mask[row]])
        close(out[row], expected)
    assert not np.any(out[2])  # nothing to look at gives zeros, not the mean of the padding
    changed = run(q, np.where(mask[..., None, None], k, 1e3).astype(np.float32), v, mask)
    np.testing.assert_array_equal(out, changed)


def test_causal_with_padding_before_between_and_after():
    q, k, v = (normal(3, 6, 4, 2) for _ in range(3))
    mask = np.array([[0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0], [0] * 6], bool)
    out = np.asarray(run(q, k, v, mask, causal=True))
    for row in range(3):
        for i in range(6):
            seen = mask[row] & (np.arange(6) <= i)
            expected = reference.attention(q[row, i : i + 1], k[row][seen], v[row][seen])
            close(out[row, i], expected[0])
    assert not np.any(out[0, :2])
    close(
        np.asarray(run(q, k, v, causal=True))[1], reference.attention(q[1], k[1], v[1], causal=True)
    )


def test_gradient_of_a_fully_masked_row_is_finite():
    q, k, v = (normal(2, 3, 2, 4) for _ in range(3))
    mask = np.array([[1, 1, 0], [0, 0, 0]], bool)
    gradient = jax.jit(jax.grad(lambda *a: attention(*a).sum(), argnums=(0, 1, 2)))
    grads = [np.asarray(g) for g in gradient(q, k, v, mask)]
    assert all(np.isfinite(g).all() for g in grads)
    assert not any(np.any(g[1]) for g in grads)


def test_half_precision_takes_its_softmax_in_float32():
    q, k, v = (np.asarray(normal(1, 300, 1, 8)).astype(jnp.bfloat16) for _ in range(3))
    exact = reference.attention(*(x[0].astype(np.float64) for x in (q, k, v)))
    out = np.asarray(run(q, k, v))
    assert out.dtype == jnp.bfloat16
    close(out[0].astype(np.float64), exact, 4e-3)


def test_heads_are_split_from_consecutive_channels():
    x = normal(2, 3, 12)
    split = split_heads(jnp.asarray(x), 4)
    np.testing.assert_array_equal(np.asarray(split)[1, 2, 3], x[1, 2, 9:12])
    np.testing.assert_array_equal(merge_heads(split), x)


@pytest.mark.parametrize("cross", [False, True])
def test_multihead_is_torchs(cross):
    module = MultiheadAttention(12, 3, nnx.Rngs(0))
    for layer, width in ((module.in_proj, 36), (module.out_proj, 12)):
        layer.bias = nnx.Param(jnp.asarray(normal(width)))
    x, context = normal(2, 5, 12), normal(2, 7, 12)
    tokens = context if cross else x
    mask = RNG.random(tokens.shape[:2]) > 0.4  # seed 0 leaves some in each row
    forward = jax.jit(lambda x, context, mask: module(x, context, mask))
    out = np.asarray(forward(x, context if cross else None, mask))
    p = {name: {"kernel": np.asarray(getattr(module, name).kernel[...]),
                "bias": np.asarray(getattr(module, name).bias[...])}
         for name in ("in_proj", "out_proj")}  # fmt: skip
    for row in range(2):
        close(out[row], reference.multihead(p, x[row], tokens[row][mask[row]], 3), 1e-4)
    nothing = forward(x, context if cross else None, np.zeros_like(mask))
    close(nothing, np.broadcast_to(p["out_proj"]["bias"], x.shape))
