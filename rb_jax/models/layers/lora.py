"""Low-rank adaptation of linear layers (arXiv 2106.09685)."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float


class LoRALinear(nnx.Module):
    """y = x W + b + (alpha / rank) x A B; B starts at zero, so y = x W + b at first.

    Rank 0 leaves a plain linear layer with no extra parameters.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        rank: int,
        alpha: float,
        rngs: nnx.Rngs,
        use_bias: bool = False,
    ):
        self.rank = rank
        self.scale = alpha / rank if rank else 0.0
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (in_width, out_width)))
        self.use_bias = use_bias
        if use_bias:
            self.bias = nnx.Param(jax.numpy.zeros((out_width,)))
        if rank:
            he_uniform = nnx.initializers.he_uniform()
            self.lora_a = nnx.Param(he_uniform(rngs.params(), (in_width, rank)))
            self.lora_b = nnx.Param(jax.numpy.zeros((rank, out_width)))

    def __call__(self, x: Float[Array, "*B C_in"]) -> Float[Array, "*B C_out"]:
        return self._apply(x, slice(None), slice(None), self.use_bias)

    def parts(
        self, x: Float[Array, "*B C_in"], first: int
    ) -> tuple[Float[Array, "*B C_1"], Float[Array, "*B C_2"]]:
        """The first ``first`` outputs and the others, each a product of its own."""
        columns = slice(None, first), slice(first, None)
        left, right = (self._apply(x, slice(None), c, self.use_bias) for c in columns)
        return left, right

    def of_parts(
        self, left: Float[Array, "*B C_1"], right: Float[Array, "*B C_2"]
    ) -> Float[Array, "*B C_out"]:
        """The output for [left, right], without ever concatenating the two."""
        first = left.shape[-1]
        y = self._apply(left, slice(None, first), slice(None), self.use_bias)
        return y + self._apply(right, slice(first, None), slice(None), False)

    def _apply(self, x: jax.Array, rows: slice, columns: slice, bias: bool) -> jax.Array:
        y = x @ self.kernel[...][rows, columns]
        if bias:
            y = y + self.bias[...][columns]
        if self.rank:
            y = y + (x @ self.lora_a[...][rows]) @ self.lora_b[...][:, columns] * self.scale
        return y
