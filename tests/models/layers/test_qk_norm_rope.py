"""Heads apart, normed and rotated: the formula, and the kernel that replaces it on a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rb_jax.models.layers import qk_norm_rope as heads
from rb_jax.models.layers.qk_norm_rope import LANES, normed_heads, reference
from rb_jax.sharding.mesh import abstract_mesh
from tests import tiny

HEADS = 3
NAMES = ("queries", "keys", "values")
# Tokens: within one step of the kernel, rows of 8 not full, steps not full, several steps.
LENGTHS = [5, 154, 512, 1029]


def inputs(tokens: int, width: int = LANES, count: int = HEADS, batch: int = 2):
    qkv = 3 * tiny.normal(batch, tokens, 3 * count * width)
    scales = [1 + 0.3 * tiny.normal(width, seed=seed) for seed in (1, 2)]
    return tuple(map(jnp.asarray, (qkv, *scales, 5 * tiny.normal(tokens, width // 2, seed=3))))


def kernel_inputs(tokens: int):
    """As the kernel takes them: cosine and sine of each lane."""
    qkv, q_scale, k_scale, angle = inputs(tokens)
    return qkv, q_scale, k_scale, *(jnp.repeat(f(angle), 2, axis=-1) for f in (jnp.cos, jnp.sin))


@pytest.mark.parametrize(("width", "count"), [(LANES, HEADS), (20, 5)])
def test_norm_and_rotation_are_fluxs(width, count):
    """Each pair of lanes is a complex number that is turned by its angle."""
    qkv, *scales, angle = inputs(7, width, count)
    out = jax.jit(normed_heads)(qkv, *scales, angle)
    apart = np.asarray(qkv).reshape(2, 7, 3, count, width)
    for i, scale in enumerate(scales):
        norm = nnx.RMSNorm(width, epsilon=1e-6, rngs=nnx.Rngs(0))
        assert norm.scale is not None
        norm.scale[...] = scale
        x = np.asarray(norm(jnp.asarray(apart[:, :, i])), np.float64)
        turn = np.exp(1j * np.asarray(angle, np.float64))[:, None]
        turned = (x[..., ::2] + 1j * x[..., 1::2]) * turn
        expected = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
        np.testing.assert_allclose(out[i], expected, rtol=1e-4, atol=1e-4, err_msg=NAMES[i])
    np.testing.assert_array_equal(out[2], apart[:, :, 2])


@pytest.mark.parametrize("tokens", LENGTHS)
def test_the_kernel_is_the_formula(tokens):
    given = kernel_inputs(tokens)
    made, _ = jax.jit(lambda *a: heads._forward(a[0], a[1], a[2], a[3], a[4], interpret=True))(
        *given
    )
    expected = reference(*inputs(tokens))
    for name, a, b in zip(NAMES, made, expected, strict=True):
        np.testing.assert_allclose(a.swapaxes(1, 2), b, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_the_kernels_gradient_is_the_formulas(tokens):
    qkv, q_scale, k_scale, angle = inputs(tokens)
    grads = [jnp.asarray(tiny.normal(2, tokens, HEADS, LANES, seed=s)) for s in (5, 6, 7)]
    _, pull = jax.vjp(lambda a, b, c: reference(a, b, c, angle), qkv, q_scale, k_scale)
    expected = pull(tuple(grads))
    across = tuple(g.swapaxes(1, 2) for g in grads)
    made = jax.jit(lambda r, g: heads._backward(r, g, interpret=True))(
        kernel_inputs(tokens), across
    )
    assert len(made) == 5  # of all inputs, the angles' being constants
    for name, a, b in zip(("qkv", "q_scale", "k_scale"), made, expected, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("platform", "tensor", "width", "expected"),
    [("tpu", 1, 128, True), ("tpu", 2, 128, False), ("tpu", 1, 64, False), ("gpu", 1, 128, False)],
)
def test_when_the_kernel_runs(platform, tensor, width, expected):
    device = jax.sharding.AbstractDevice(f"some {platform}", None, platform)
    with jax.sharding.use_abstract_mesh(abstract_mesh((1, 2, tensor, 1), device)):
        assert heads.fused(width) is expected
    assert not heads.fused(width)
