"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.models.layers.remat import name


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, torch's default."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU with the tanh approximation, used by FLUX."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), used by OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


class MLP(nnx.Module):
    """Two linear layers with a non-linearity between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] = gelu,
    ):
        self.activation = activation
        self.fc1 = nnx.Linear(width, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        return self.fc2(self.activation(self.fc1(x)))


class GatedMLP(nnx.Module):
    """LLaMA's SwiGLU: down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.gate_proj = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.up_proj = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.down_proj = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        gate, up = name((self.gate_proj(x), self.up_proj(x)), "mlp")
        return name(self.down_proj(jax.nn.silu(gate) * up), "out")
