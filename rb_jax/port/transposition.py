"""A tiled transpose of large matrices: PyTorch keeps linear layers the other way round."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Rows and columns that are transposed at once; fewer items than SMALL fit the cache anyway.
TILE, SMALL = (256, 128), 2**20


def transpose_last(x: np.ndarray) -> np.ndarray:
    """``x.T`` of a matrix as a C-contiguous array; ValueError for other numbers of axes.

    It goes tile by tile: through a copy that fits the cache, whose rows do not fall on the same
    cache lines as those of a matrix whose width is a power of two.
    """
    if x.ndim != 2:
        raise ValueError(f"expected a matrix, not shape {x.shape}")
    if x.size < SMALL:
        return np.ascontiguousarray(x.T)
    result = np.empty(x.shape[::-1], x.dtype)

    def turn(start: int) -> None:
        columns = slice(start, start + TILE[1])
        tile = np.empty((TILE[0], TILE[1] + 64 // x.itemsize), x.dtype)
        turned = np.empty(TILE[::-1], x.dtype)
        for row in range(0, x.shape[0], TILE[0]):
            block = x[row : row + TILE[0], columns]
            height, width = block.shape
            tile[:height, :width] = block
            turned[:width, :height] = tile[:height, :width].T
            result[columns, row : row + TILE[0]] = turned[:width, :height]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(turn, range(0, x.shape[1], TILE[1])))
    return result
