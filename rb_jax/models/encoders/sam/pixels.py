"""Pictures to the image encoder's input, and mask logits back to the picture's pixels.

A picture fills the encoder's square from the top left corner; the rest is zeros.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

# ImageNet's.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def preprocess(images: UInt8[Array, "B S S 3"], size: int) -> Float[Array, "B Z Z 3"]:
    """Antialiased bilinear resize to ``size`` and ImageNet's normalisation of the channels."""
    pixels = images.astype(jnp.float32) / 255.0
    if images.shape[1] != size:
        shape = (images.shape[0], size, size, 3)
        pixels = jax.image.resize(pixels, shape, "linear", antialias=True)
    return (pixels - jnp.array(MEAN)) / jnp.array(STD)


def fitted_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of a picture whose longest side becomes ``size``; never zero."""
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def preprocess_picture(
    picture: UInt8[np.ndarray, "H W 3"], size: int
) -> Float[np.ndarray, "1 {size} {size} 3"]:
    """One picture of any shape as SAM sees it: fitted, normalised, zeros below or to the right.

    Pillow resizes, as in SAM's own code, so the bytes are the same as there.
    """
    height, width = fitted_size(picture.shape[0], picture.shape[1], size)
    if picture.shape[:2] != (height, width):
        resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        picture = np.asarray(resized)
    pixels = np.zeros((1, size, size, 3), np.float32)
    pixels[0, :height, :width] = (picture / 255.0 - MEAN) / STD
    return pixels


def bilinear_matrix(source: int, target: int) -> Float[np.ndarray, "{target} {source}"]:
    """Interpolation along one axis as a matrix: torch's bilinear with ``align_corners=False``.

    Pixel centres are half-way between integers; nothing is antialiased.
    """
    position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    low = np.minimum(position.astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((target, source))
    matrix[np.arange(target), low] = 1 - (position - low)
    matrix[np.arange(target), high] += position - low
    return matrix


def upscale_matrices(
    height: int, width: int, size: int, logits: int
) -> tuple[Float[np.ndarray, "{height} {logits}"], Float[np.ndarray, "{width} {logits}"]]:
    """(rows, columns) such that ``rows @ low @ columns.T`` is a mask at the picture's size.

    SAM enlarges the logits [``logits`` ``logits``] to the encoder's square of ``size``, cuts off
    the padding and resizes what is left to [H W]. All three steps are linear in either axis.
    """
    enlarge = bilinear_matrix(logits, size)
    fitted = fitted_size(height, width, size)
    rows, columns = (
        bilinear_matrix(inner, outer) @ enlarge[:inner]
        for inner, outer in zip(fitted, (height, width), strict=True)
    )
    return rows.astype(np.float32), columns.astype(np.float32)
