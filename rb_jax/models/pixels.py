"""Pictures as numbers: 8-bit levels, the range [-1, 1] of the models, and PSNR."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from rb_jax.models.types import Array


def to_float(images: UInt8[Array, "B Y X 3"]) -> Float[Array, "B Y X 3"]:
    """[0, 255] -> [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "B Y X 3"]) -> UInt8[Array, "B Y X 3"]:
    """[-1, 1] -> [0, 255], rounded and clipped; NumPy or JAX as the input."""
    xp = jnp if isinstance(images, jax.Array) else np
    return xp.clip(xp.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def psnr(mse: float, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error; ``peak`` is the range of values.

    Infinite for an error of zero, NaN for one that is NaN.
    """
    if mse == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mse) if mse > 0 else math.nan
