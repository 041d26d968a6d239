"""Low-rank adaptation of linear layers (arXiv 2106.09685)."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float


class LoRALinear(nnx.Module):
    """y = x W + (alpha / rank) x A B without bias; B starts at zero, so y = x W at first.

    Rank 0 leaves a plain linear layer with no extra parameters.
    """

    def __init__(self, in_width: int, out_width: int, rank: int, alpha: float, rngs: nnx.Rngs):
        self.rank = rank
        self.scale = alpha / rank if rank else 0.0
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (in_width, out_width)))
        if rank:
            he_uniform = nnx.initializers.he_uniform()
            self.lora_a = nnx.Param(he_uniform(rngs.params(), (in_width, rank)))
            self.lora_b = nnx.Param(jax.numpy.zeros((rank, out_width)))

    def __call__(self, x: Float[Array, "*B C_in"]) -> Float[Array, "*B C_out"]:
        y = x @ self.kernel[...]
        if self.rank:
            y = y + (x @ self.lora_a[...]) @ self.lora_b[...] * self.scale
        return y
