"""Projections between stages."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx


class Same(nnx.Module):
    """Passes its input on."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def match_width(in_width: int, out_width: int, rngs: nnx.Rngs) -> Callable[[jax.Array], jax.Array]:
    """A linear layer when the widths differ; without parameters when they agree."""
    return Same() if in_width == out_width else nnx.Linear(in_width, out_width, rngs=rngs)
