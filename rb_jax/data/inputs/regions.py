"""Regions of a picture, where no SAM weights are at hand.

Cells of a coarse grid are merged by colour, strongest resemblance first, with the criterion of
Felzenszwalb and Huttenlocher (2004): two regions merge when the step between them is no larger
than the steps inside either, plus a slack that shrinks with the region's size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

SLACK = 100.0  # colour distance, in the units of _colour; larger gives fewer, larger regions
MIN_CELLS = 2


def segment(
    pixels: UInt8[np.ndarray, "Y X 3"], grid: int, max_regions: int
) -> tuple[Bool[np.ndarray, "{max_regions} {grid} G_x"], Bool[np.ndarray, " {max_regions}"]]:
    """Region masks on a raster of ``grid`` square cells down, and which of the rows hold a region.

    Regions do not overlap and come largest first, then by position (row-major first cell).
    Deterministic. Raises ValueError if such cells do not fill the
    picture.
    """
    height, width = pixels.shape[:2]
    if height % grid or width % (height // grid):
        raise ValueError(f"{grid} rows of square cells do not fill a picture of {pixels.shape}")
    shape = grid, width // (height // grid)
    labels = _merge(_colour(_cells(pixels, shape)))
    roots, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    kept = roots[order[counts[order] >= min(MIN_CELLS, len(labels))]][:max_regions]
    masks = np.zeros((max_regions, *shape), bool)
    masks[: len(kept)] = (labels == kept[:, None]).reshape(-1, *shape)
    return masks, np.arange(max_regions) < len(kept)


def _cells(pixels: np.ndarray, shape: tuple[int, int]) -> Float[np.ndarray, "G_y G_x 3"]:
    """The mean colour of each cell."""
    (rows, columns), block = shape, pixels.shape[0] // shape[0]
    # Whole rows first, as small integers, then a product: many times faster than sums of cells.
    sums = pixels.reshape(rows, block, -1).sum(1, np.uint16 if block <= 257 else np.uint32)
    sums = sums.reshape(rows, columns, 3 * block).astype(np.float64) @ np.tile(
        np.eye(3), (block, 1)
    )
    return sums.astype(np.float32) / (block * block)


def _colour(rgb: np.ndarray) -> np.ndarray:
    """RGB to lightness and two opponent axes, with chroma stretched as the eye does."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    light = 0.3 * red + 0.59 * green + 0.11 * blue
    return np.stack([light, red - green, 0.5 * (red + green) - blue], axis=-1)


def _merge(colour: np.ndarray) -> np.ndarray:
    """Union-find over the grid's edges; [G_y*G_x] root of every cell."""
    cells = colour.shape[0] * colour.shape[1]
    index = np.arange(cells).reshape(colour.shape[:2])
    across = np.linalg.norm(colour[:, 1:] - colour[:, :-1], axis=-1).ravel()
    down = np.linalg.norm(colour[1:] - colour[:-1], axis=-1).ravel()
    weights = np.concatenate([across, down])
    left = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    right = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    order = np.argsort(weights, kind="stable")
    # Plain lists: indexing single NumPy elements would be several times slower.
    edges = zip(left[order].tolist(), right[order].tolist(), weights[order].tolist(), strict=True)
    parent = list(range(cells))
    size = [1] * cells
    limit = [SLACK] * cells
    for a, b, weight in edges:
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and weight <= limit[a] and weight <= limit[b]:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            limit[a] = weight + SLACK / size[a]
    labels = np.asarray(parent)
    while not np.array_equal(labels, labels[labels]):
        labels = labels[labels]
    return labels
