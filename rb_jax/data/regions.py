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
    pixels: UInt8[np.ndarray, "S S 3"], grid: int, max_regions: int
) -> tuple[Bool[np.ndarray, "{max_regions} {grid} {grid}"], Bool[np.ndarray, " {max_regions}"]]:
    """Region masks on a grid x grid raster, and which of the rows hold a region.

    Regions do not overlap and come largest first, then by position (row-major first cell).
    Deterministic. Raises ValueError if the side is not a multiple of ``grid``.
    """
    side = pixels.shape[0]
    if pixels.shape[1] != side or side % grid:
        raise ValueError(f"a square with a side that {grid} divides is needed, got {pixels.shape}")
    labels = _merge(_colour(_cells(pixels, grid)))
    roots, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    kept = [roots[i] for i in order if counts[i] >= min(MIN_CELLS, grid * grid)][:max_regions]
    masks = np.zeros((max_regions, grid, grid), bool)
    valid = np.zeros(max_regions, bool)
    for row, root in enumerate(kept):
        masks[row] = (labels == root).reshape(grid, grid)
    valid[: len(kept)] = True
    return masks, valid


def _cells(pixels: np.ndarray, grid: int) -> Float[np.ndarray, "{grid} {grid} 3"]:
    """The mean colour of each cell."""
    block = pixels.shape[0] // grid
    # Whole rows first, as integers: several times faster than float sums of single cells.
    rows = pixels.reshape(grid, block, -1).sum(1, np.uint32).reshape(grid, grid, block, 3)
    return rows.sum(2, np.uint32).astype(np.float32) / (block * block)


def _colour(rgb: np.ndarray) -> np.ndarray:
    """RGB to lightness and two opponent axes, with chroma stretched as the eye does."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    light = 0.3 * red + 0.59 * green + 0.11 * blue
    return np.stack([light, red - green, 0.5 * (red + green) - blue], axis=-1)


def _merge(colour: np.ndarray) -> np.ndarray:
    """Union-find over the grid's edges; [G*G] root of every cell."""
    grid = colour.shape[0]
    index = np.arange(grid * grid).reshape(grid, grid)
    across = np.linalg.norm(colour[:, 1:] - colour[:, :-1], axis=-1).ravel()
    down = np.linalg.norm(colour[1:] - colour[:-1], axis=-1).ravel()
    weights = np.concatenate([across, down])
    left = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    right = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    order = np.argsort(weights, kind="stable")
    # Plain lists: indexing single NumPy elements would be several times slower.
    edges = zip(left[order].tolist(), right[order].tolist(), weights[order].tolist(), strict=True)
    parent = list(range(grid * grid))
    size = [1] * (grid * grid)
    limit = [SLACK] * (grid * grid)
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
