"""Stacked blocks run by one scan equal the same blocks run one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rb_jax.models.layers.stack import scan_blocks, stack
from rb_jax.weights.params import flatten, merge

X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)), jnp.float32)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.linear(x))


def blocks():
    return stack(Block, 4, nnx.Rngs(7))


def test_layers_are_stacked_and_differ():
    params = flatten(blocks())
    assert {k: v.shape for k, v in params.items()} == {
        "linear/kernel": (4, 5, 5),
        "linear/bias": (4, 5),
    }
    kernels = np.asarray(params["linear/kernel"])
    assert all(np.any(kernels[0] != kernels[i]) for i in range(1, 4))


def test_scan_is_a_loop():
    stacked = blocks()
    params = {k: np.asarray(v) for k, v in flatten(stacked).items()}
    last, seen = scan_blocks(stacked, X, lambda block, h: block(h), collect=lambda h: 2 * h)
    x = np.asarray(X)
    for i in range(4):
        x = x + np.tanh(x @ params["linear/kernel"][i] + params["linear/bias"][i])
        np.testing.assert_allclose(np.asarray(seen)[i], 2 * x, rtol=1e-5)
    np.testing.assert_allclose(last, x, rtol=1e-5)
    assert scan_blocks(stacked, X, lambda block, h: block(h))[1] is None


def test_remat_changes_no_value_and_no_gradient():
    graphdef, _ = nnx.split(blocks())
    params = flatten(blocks())

    def loss(params, remat):
        out, _ = scan_blocks(merge(graphdef, params), X, lambda block, h: block(h), remat=remat)
        return (out**2).sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, again = (value_and_grad(params, remat) for remat in ("off", "full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, again)
    traced = [str(jax.make_jaxpr(lambda p, r=r: loss(p, r))(params)) for r in ("off", "full")]
    assert ["checkpoint[" in text or "remat" in text for text in traced] == [False, True]
