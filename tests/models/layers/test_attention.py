"""Attention against loops over queries, with what is masked left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rb_jax.models.layers import attention as kernels
from rb_jax.models.layers.attention import MultiheadAttention, attention, merge_heads, split_heads
from rb_jax.models.layers.splash import largest, splash_attention
from rb_jax.sharding.mesh import AXES, abstract_mesh, make_mesh
from tests.models import reference

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames="causal")
def run(q, k, v, mask=None, causal=False, segments=None):
    return attention(q, k, v, mask, causal, segments)


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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_documents_of_a_row_do_not_see_each_other(causal, masked):
    q, k, v = normal(2, 9, 4, 6), normal(2, 9, 2, 6), normal(2, 9, 2, 6)
    ids = np.array([[0, 0, 0, 3, 3, 1, 1, 1, 1], [2, 0, 2, 0, 0, 5, 5, 2, 7]], np.int32)
    key_ids = ids if causal else np.roll(ids, 2, axis=1)
    mask = np.ones((2, 9), bool)
    if masked:
        mask[0, 3:5] = False
        mask[1] = key_ids[1] != 7  # the last query has no key left
    out = np.asarray(run(q, k, v, mask if masked else None, causal, (ids, key_ids)))
    for row in range(2):
        for i in range(9):
            seen = mask[row] & (key_ids[row] == ids[row, i])
            if causal:
                seen &= np.arange(9) <= i
            expected = reference.attention(q[row, i : i + 1], k[row][seen], v[row][seen])
            close(out[row, i], expected[0])
    assert np.any(out[1, 8]) != masked


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
    p = {
        name: {
            "kernel": np.asarray(getattr(module, name).kernel[...]),
            "bias": np.asarray(getattr(module, name).bias[...]),
        }
        for name in ("in_proj", "out_proj")
    }
    for row in range(2):
        close(out[row], reference.multihead(p, x[row], tokens[row][mask[row]], 3), 1e-4)
    nothing = forward(x, context if cross else None, np.zeros_like(mask))
    close(nothing, np.broadcast_to(p["out_proj"]["bias"], x.shape))


def mesh_of(platform: str, kind: str, **sizes: int):
    """A mesh of devices that need not be here."""
    device = jax.sharding.AbstractDevice(kind, None, platform)
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return abstract_mesh(shape, device)


TPU = mesh_of("tpu", "TPU v5p", fsdp=4)
GPU = mesh_of("gpu", "NVIDIA H100", fsdp=4)
CPU = mesh_of("cpu", "cpu", fsdp=4)
# mesh, (queries, keys, heads, key heads, head width), dtype -> the kernel.
BACKENDS = [
    (TPU, (512, 512, 4, 4, 128), "bfloat16", "splash"),
    (TPU, (128, 513, 4, 2, 256), "float32", "splash"),
    (TPU, (127, 512, 4, 4, 128), "bfloat16", "xla"),
    (TPU, (512, 511, 4, 4, 128), "bfloat16", "xla"),
    (TPU, (512, 512, 4, 4, 64), "bfloat16", "xla"),
    (mesh_of("tpu", "TPU v4", tensor=2), (512, 512, 6, 2, 128), "bfloat16", "splash"),
    (mesh_of("tpu", "TPU v4", tensor=2), (512, 512, 6, 3, 128), "bfloat16", "xla"),
    (mesh_of("tpu", "TPU v4", tensor=2, context=2), (512, 512, 6, 6, 128), "bfloat16", "splash"),
    (GPU, (512, 512, 4, 4, 128), "bfloat16", "cudnn"),
    (GPU, (128, 515, 4, 2, 64), "float16", "cudnn"),
    (GPU, (512, 512, 4, 4, 128), "float32", "xla"),
    (GPU, (512, 512, 4, 4, 136), "bfloat16", "xla"),
    (GPU, (512, 512, 4, 4, 60), "bfloat16", "xla"),
    (GPU, (512, 500, 4, 4, 128), "bfloat16", "xla"),
    (mesh_of("gpu", "NVIDIA H100", tensor=4), (512, 512, 6, 6, 128), "bfloat16", "xla"),
    (CPU, (512, 512, 4, 4, 128), "bfloat16", "xla"),
]


@pytest.mark.parametrize(("mesh", "sizes", "dtype", "expected"), BACKENDS)
def test_the_mesh_and_the_shapes_choose_the_kernel(mesh, sizes, dtype, expected):
    q_len, k_len, heads, kv_heads, width = sizes
    q = jax.ShapeDtypeStruct((2, q_len, heads, width), dtype)
    k = jax.ShapeDtypeStruct((2, k_len, kv_heads, width), dtype)
    with jax.sharding.use_abstract_mesh(mesh):
        assert chosen(q, k) == expected
    assert chosen(q, k) == "xla"  # without a mesh by the devices that are here


def chosen(*shapes):
    found = []
    jax.eval_shape(lambda q, k: found.append(kernels.backend(q, k)), *shapes)
    return found[0]


def test_blocks_of_the_kernel_divide_every_length():
    for length in range(128, 6000, 128):
        for limit in (128, 512, 1152, 1536):
            block = largest(length, limit)
            assert length % block == 0 and block % 128 == 0 and block <= limit
    assert largest(4352, 1152) == 256 and largest(4608, 1152) == 1152 and largest(128, 512) == 128


# queries, keys, heads, key heads, head width; neither length is whole blocks.
SHAPES = [(200, 333, 3, 3, 128), (333, 200, 4, 2, 128), (129, 129, 2, 1, 256)]


def pair(q_len, k_len, heads, kv_heads, width):
    shapes = (q_len, heads, width), (k_len, kv_heads, width), (k_len, kv_heads, width)
    return [jnp.asarray(normal(2, *shape)) for shape in shapes]


def with_gradient(function, *values):
    """A random projection's gradient by each of ``values``, and the output."""
    weights = jnp.cos(jnp.arange(values[0].size)).reshape(values[0].shape)

    def loss(*values):
        out = function(*values)
        return (out * weights).sum(), out

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return [np.asarray(x) for x in jax.tree.leaves(grad(*values))]


def ids(kind: str, q_len: int, k_len: int):
    """(segments, key mask) of queries and keys; every query has a key."""
    q_ids, k_ids = (jnp.tile(jnp.arange(n) * 3 // n, (2, 1)) for n in (q_len, k_len))
    holes = jnp.asarray(RNG.random((2, k_len)) > 0.3).at[:, 0].set(True)
    return {
        "all": (None, None),
        "holes": (None, holes),
        "documents": ((q_ids, k_ids), None),
        "both": ((q_ids, k_ids), holes),
    }[kind]


@pytest.fixture
def splash(monkeypatch):
    """The TPU's kernel, interpreted, wherever attention would choose it."""
    from rb_jax.models.layers import splash as module

    interpreted = functools.partial(splash_attention, interpret=True)
    monkeypatch.setattr(module, "splash_attention", interpreted)
    monkeypatch.setattr(kernels, "backend", lambda q, k: "splash")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", SHAPES)
def test_the_tpu_kernel_alone(sizes, causal):
    if causal and sizes[0] > sizes[1]:
        sizes = (sizes[1], *sizes[1:])
    values = pair(*sizes)
    run = functools.partial(splash_attention, causal=causal, interpret=True)
    expected = with_gradient(functools.partial(attention, causal=causal), *values)
    for made, right in zip(with_gradient(run, *values), expected, strict=True):
        close(made, right, 1e-4)


@pytest.mark.parametrize("kind", ["all", "holes", "documents", "both"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_the_tpu_kernel(kind, causal, monkeypatch, splash):
    length = 200
    values = pair(length, length if causal else 333, 4, 2, 128)
    segments, mask = ids(kind, length, values[1].shape[1])
    run = functools.partial(attention, key_mask=mask, causal=causal, segments=segments)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        made = with_gradient(run, *values)
    monkeypatch.setattr(kernels, "backend", lambda q, k: "xla")
    for a, b in zip(made, with_gradient(run, *values), strict=True):
        close(a, b, 1e-4)


def test_rows_without_any_key_by_the_tpu_kernel(splash):
    values = pair(130, 140, 2, 2, 128)
    mask = jnp.ones((2, 140), bool).at[1].set(False)
    document = jnp.zeros((2, 130), jnp.int32).at[0, 100:].set(4)  # of queries alone
    segments = document, jnp.zeros((2, 140), jnp.int32)
    run = functools.partial(attention, key_mask=mask, segments=segments)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        *grads, out = with_gradient(run, *values)
    assert not np.any(out[1]) and not np.any(out[0, 100:]) and np.all(np.any(out[0, :100], -1))
    assert all(np.isfinite(g).all() for g in grads) and not any(np.any(g[1]) for g in grads)
