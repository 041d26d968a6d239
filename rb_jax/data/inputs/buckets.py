"""Batches of pictures that are not square: a few shapes, of which each picture takes the nearest.

A picture is scaled until it covers its shape and what sticks out is cut off, the same on both
sides. The shapes are few because each is a program to compile.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

from rb_jax.config import Config

Shape = tuple[int, int]  # height, width
MAX_ASPECT = 2.0  # of derived shapes, either way


def bucket_shapes(config: Config) -> tuple[Shape, ...]:
    """The shapes of batches; empty for squares of data.image_size."""
    data = config.data
    if data.bucket_count:
        return derive(data.bucket_count, data.image_size, config.model.pixel_multiple)
    return data.buckets


def derive(count: int, side: int, multiple: int) -> tuple[Shape, ...]:
    """At most ``count`` shapes of about side * side pixels, from flat to tall.

    Their proportions are spaced evenly, on a log scale, between 1:2 and 2:1; each side is a
    multiple of ``multiple``. Where that makes two of them the same there are fewer.
    """
    span = math.log(MAX_ASPECT)
    aspects = np.exp(np.linspace(-span, span, count)) if count > 1 else np.ones(1)
    cells, shapes = side / multiple, []
    for aspect in aspects.tolist():
        height = max(1, round(cells * math.sqrt(aspect)))
        width = max(1, round(cells**2 / height))
        shapes.append((height * multiple, width * multiple))
    return tuple(dict.fromkeys(shapes))


def nearest(sizes: Int[np.ndarray, "N 2"], shapes: tuple[Shape, ...]) -> Int[np.ndarray, " N"]:
    """The place of the shape nearest in log aspect ratio to each (height, width); the first if
    several are."""
    aspects = np.log(np.array([height / width for height, width in shapes]))
    ratios = np.log(sizes[:, 0] / sizes[:, 1])
    return np.abs(ratios[:, None] - aspects).argmin(axis=1)


def kept(size: Shape, shape: Shape) -> tuple[float, float]:
    """Which share of height and width of a picture remains when it covers ``shape``."""
    ratio = (size[0] / size[1]) / (shape[0] / shape[1])
    return min(1.0, 1 / ratio), min(1.0, ratio)
