"""Our norms are Flax's, in values and gradients, and keep less for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rb_jax.models.layers import norms

WIDTH = 13
KINDS = {
    "layer": (norms.LayerNorm, nnx.LayerNorm, {}),
    "layer, plain": (norms.LayerNorm, nnx.LayerNorm, {"use_bias": False, "use_scale": False}),
    "layer, scaled": (norms.LayerNorm, nnx.LayerNorm, {"use_bias": False}),
    "rms": (norms.RMSNorm, nnx.RMSNorm, {}),
}


def made(kind):
    """Ours and Flax's with the same random parameters."""
    ours, theirs, options = KINDS[kind]
    layers = [each(WIDTH, epsilon=1e-5, rngs=nnx.Rngs(0), **options) for each in (ours, theirs)]
    rng = np.random.default_rng(1)
    for name in ("scale", "bias"):
        if getattr(layers[1], name, None) is not None:
            values = jnp.asarray(rng.normal(1, 0.5, WIDTH), jnp.float32)
            for layer in layers:
                getattr(layer, name)[...] = values
    return layers


def gradients(layer, x, weights):
    """Of a weighted sum of the outputs: of the parameters and of the input."""
    graphdef, params = nnx.split(layer)

    def total(params, x):
        return (nnx.merge(graphdef, params)(x).astype(jnp.float32) * weights).sum()

    params, x = jax.jit(jax.grad(total, argnums=(0, 1)))(params, x)
    return [*jax.tree.leaves(params), x]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(WIDTH,), (5, WIDTH), (2, 3, 5, WIDTH)])
def test_values_and_gradients(kind, shape):
    ours, theirs = made(kind)
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(0.7, 3, shape), jnp.float32)
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(ours, x, weights), gradients(theirs, x, weights), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    ours, theirs = made(kind)
    x = jnp.asarray(np.random.default_rng(3).normal(2, 1, (7, WIDTH)), jnp.bfloat16)
    assert ours(x).dtype == theirs(x).dtype
    weights = jnp.ones_like(x, jnp.float32).at[::2].set(-2)
    for each in (x, x.astype(jnp.float32)):
        np.testing.assert_allclose(
            np.asarray(ours(each), np.float32), np.asarray(theirs(each), np.float32), atol=0.02
        )
    for a, b in zip(gradients(ours, x, weights), gradients(theirs, x, weights), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=0.05)


def test_rows_without_variance_have_finite_gradients():
    for kind in KINDS:
        ours, _ = made(kind)
        x = jnp.stack([jnp.zeros(WIDTH), jnp.full(WIDTH, 1e4)])
        for value in gradients(ours, x, jnp.arange(2.0 * WIDTH).reshape(2, WIDTH)):
            assert np.isfinite(value).all(), kind


def test_what_the_backward_pass_keeps():
    """The input, which is there anyway, and two numbers a row: not arrays of its size."""
    ours, theirs = made("layer")
    x = jnp.ones((11, WIDTH))

    def kept(layer):
        graphdef, params = nnx.split(layer)
        backward = jax.vjp(lambda x: nnx.merge(graphdef, params)(x), x)[1]
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(ours) <= x.size + 2 * len(x) + 2 * WIDTH < kept(theirs)
