"""Embeddings of scalars: time and guidance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

TIMESTEP_WIDTH = 256  # width of FLUX's sinusoidal features


def timestep_embedding(
    t: Float[Array, " B"], width: int = TIMESTEP_WIDTH, time_factor: float = 1000.0
) -> Float[Array, "B C"]:
    """Sinusoids [cos, sin] of ``time_factor * t`` in float32 (flux/modules/layers.py)."""
    half = width // 2
    # The exponents rounded to float32, as torch has them: a phase of thousands shows every bit.
    exponents = np.float32(-np.log(10_000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents, dtype=np.float64).astype(np.float32)
    phase = time_factor * t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class MLPEmbedder(nnx.Module):
    """Linear, SiLU, linear: FLUX's embedder of time, guidance and the pooled text vector."""

    def __init__(self, in_width: int, width: int, rngs: nnx.Rngs):
        self.in_layer = nnx.Linear(in_width, width, rngs=rngs)
        self.out_layer = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B C_in"]) -> Float[Array, "B C"]:
        x = x.astype(self.in_layer.kernel.dtype)
        return self.out_layer(jax.nn.silu(self.in_layer(x)))
