"""The small layers: activations, feed-forward, LoRA, embeddings of scalars, matching widths."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rb_jax.models.layers.embeddings import MLPEmbedder, timestep_embedding
from rb_jax.models.layers.linear import Same, match_width
from rb_jax.models.layers.lora import LoRALinear
from rb_jax.models.layers.mlp import MLP, GatedMLP, gelu, gelu_tanh, quick_gelu
from rb_jax.weights.params import flatten
from tests.models import reference

RNG = np.random.default_rng(0)
X = jnp.linspace(-6.0, 6.0, 41)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def tree(module):
    return reference.tree({f"m/{path}": value for path, value in flatten(module).items()}, "m")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (gelu, reference.gelu),
        (gelu_tanh, reference.gelu_tanh),
        (quick_gelu, lambda x: x / (1 + np.exp(-1.702 * x))),
    ],
)
def test_activations(function, expected):
    np.testing.assert_allclose(function(X), expected(np.asarray(X, np.float64)), atol=2e-6)


def test_feed_forward():
    module = MLP(6, 10, nnx.Rngs(0), gelu_tanh)
    x = normal(2, 3, 6)
    expected = reference.mlp(tree(module), np.asarray(x), reference.gelu_tanh)
    np.testing.assert_allclose(module(x), expected, rtol=1e-4, atol=1e-5)


def test_gated_feed_forward():
    module = GatedMLP(6, 10, nnx.Rngs(0))
    p, x = tree(module), normal(2, 3, 6)
    gate, up = (x @ p[name]["kernel"] for name in ("gate_proj", "up_proj"))
    expected = (reference.silu(gate) * up) @ p["down_proj"]["kernel"]
    np.testing.assert_allclose(module(x), expected, rtol=1e-4, atol=1e-5)
    assert all("bias" not in part for part in p.values())


def test_lora_starts_as_the_layer_it_adapts():
    module, x = LoRALinear(6, 9, 2, 5.0, nnx.Rngs(0)), normal(4, 6)
    np.testing.assert_allclose(module(x), x @ module.kernel[...], rtol=1e-5)
    module.lora_b[...] = normal(2, 9)
    p = {k: np.asarray(v) for k, v in flatten(module).items()}
    assert np.abs(p["lora_a"]).min() > 0
    expected = x @ (p["kernel"] + 5.0 / 2 * p["lora_a"] @ p["lora_b"])
    np.testing.assert_allclose(module(x), expected, rtol=1e-4, atol=1e-5)


def test_lora_of_rank_zero_is_a_plain_layer():
    module = LoRALinear(6, 9, 0, 5.0, nnx.Rngs(0))
    assert set(flatten(module)) == {"kernel"}
    np.testing.assert_allclose(module(normal(4, 6)).shape, (4, 9))


def adapted(rank):
    """A layer 6 -> 9 with a bias, away from where training starts."""
    module = LoRALinear(6, 9, rank, 5.0, nnx.Rngs(0), use_bias=True)
    module.bias[...] = normal(9)
    if rank:
        module.lora_b[...] = normal(rank, 9)
    return module


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("first", [1, 4, 5])
def test_outputs_and_inputs_in_parts_are_the_whole_product(rank, first):
    module, x = adapted(rank), normal(4, 7, 6)
    whole = module(x)
    left, right = module.parts(x, first)
    assert left.shape[-1] == first
    np.testing.assert_allclose(jnp.concatenate([left, right], -1), whole, rtol=1e-5, atol=1e-5)
    made = module.of_parts(x[..., :first], x[..., first:])
    np.testing.assert_allclose(made, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", ["none", "outputs", "inputs"])
def test_gradient_of_lora(cut):
    """Of sum(w y): scale (x A)^T w by B, scale x^T w B^T by A, x^T w by W, the sum of w by b."""
    module, x, w = adapted(2), normal(4, 6), normal(4, 9)

    def loss(module):
        if cut == "outputs":
            return (jnp.concatenate(module.parts(x, 5), -1) * w).sum()
        if cut == "inputs":
            return (module.of_parts(x[:, :2], x[:, 2:]) * w).sum()
        return (module(x) * w).sum()

    gradient = nnx.grad(loss)(module)
    grads = {path[0]: value.get_value() for path, value in nnx.to_flat_state(gradient)}
    a, b = module.lora_a[...], module.lora_b[...]
    expected = {
        "lora_a": 2.5 * x.T @ w @ b.T,
        "lora_b": 2.5 * (x @ a).T @ w,
        "kernel": x.T @ w,
        "bias": w.sum(0),
    }
    assert grads.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(grads[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_timestep_embedding():
    t = jnp.array([0.0, 0.001, 0.37, 1.0, 3.5])
    phase = 1000 * np.asarray(t, np.float64)[:, None] * 10_000.0 ** (-np.arange(128) / 128)
    expected = np.concatenate([np.cos(phase), np.sin(phase)], -1)
    out = timestep_embedding(t)
    assert out.shape == (5, 256) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=5e-4)
    half = timestep_embedding(jnp.asarray([0.5], jnp.bfloat16))
    np.testing.assert_allclose(half, timestep_embedding(jnp.array([0.5])))


def test_embedder_takes_its_weights_precision():
    module, x = MLPEmbedder(6, 10, nnx.Rngs(0)), normal(3, 6)
    p = tree(module)
    expected = reference.linear(
        p["out_layer"], reference.silu(reference.linear(p["in_layer"], np.asarray(x)))
    )
    np.testing.assert_allclose(module(x), expected, rtol=1e-4, atol=1e-5)


def test_match_width_adds_a_layer_only_where_widths_differ():
    x = normal(2, 5)
    same, other = match_width(5, 5, nnx.Rngs(0)), match_width(5, 8, nnx.Rngs(0))
    np.testing.assert_array_equal(same(x), x)
    assert other(x).shape == (2, 8)
    assert isinstance(same, Same) and not flatten(same)
