"""Automatic mask generation: everything in a picture, from a grid of points.

arXiv 2304.02643, appendix B; the order of the filters is that of transformers'
pipelines/mask_generation.py and models/sam/image_processing_pil_sam.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from rb_jax.errors import InputError
from rb_jax.models.encoders.sam.model import SAM
from rb_jax.models.encoders.sam.pixels import fitted_size, preprocess_picture, upscale_matrices
from rb_jax.models.encoders.sam.prompt_encoder import FOREGROUND, Prompts
from rb_jax.models.types import Array

EDGE_TOLERANCE = 20  # pixels; a box this near to the edge of a crop is taken to be cut off


@dataclasses.dataclass(frozen=True)
class AutomaticMaskSettings:
    """The names and the defaults are those of SAM's own generator; raises InputError.

    Layer l of the crops has 2^l x 2^l of them, each with
    points_per_side / crop_n_points_downscale_factor^l points per side. ``pred_iou_thresh`` and
    ``stability_score_thresh`` let everything pass when they are 0 or less.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    mask_threshold: float = 0.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_overlap_ratio: float = 512 / 1500  # of the shorter side, in the first layer of crops
    crop_n_points_downscale_factor: int = 1

    def __post_init__(self):
        lowest = {"points_per_side": 1, "points_per_batch": 1, "crop_n_layers": 0}
        for name, low in (lowest | {"crop_n_points_downscale_factor": 1}).items():
            if getattr(self, name) < low:
                raise InputError(f"{name}: must be at least {low}, got {getattr(self, name)}")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise InputError(f"crop_overlap_ratio: {self.crop_overlap_ratio} is not in [0, 1)")
        if self.points(self.crop_n_layers) < 1:
            raise InputError(
                f"crop_n_points_downscale_factor: {self.crop_n_points_downscale_factor} leaves no "
                f"point of {self.points_per_side} in layer {self.crop_n_layers} of the crops"
            )

    def points(self, layer: int) -> int:
        """Points a side in the crops of a layer; 0 is the whole picture."""
        return self.points_per_side // self.crop_n_points_downscale_factor**layer


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks of one picture, the highest predicted IoU first. They may overlap."""

    masks: Bool[np.ndarray, "R H W"]
    iou_scores: Float[np.ndarray, " R"]
    boxes: Int[np.ndarray, "R 4"]  # first column, first row, last column, last row


def automatic_masks(
    sam: SAM,
    picture: UInt8[np.ndarray, "H W 3"],
    settings: AutomaticMaskSettings | None = None,
) -> Masks:
    """Masks of whatever SAM finds at a grid of points, at the picture's size. Deterministic.

    As in transformers, one non-maximum suppression runs over all crops. (SAM's own code has one
    for each crop and another that prefers smaller crops; without crops they are the same.)
    Raises InputError for a picture too small to be cut into ``crop_n_layers``.
    """
    settings = settings or AutomaticMaskSettings()
    height, width = picture.shape[:2]
    packed, scores, boxes = [], [], []
    overlap, layers = settings.crop_overlap_ratio, settings.crop_n_layers
    for crop, layer in crop_boxes(height, width, layers, overlap):
        left, top, right, bottom = crop
        part = picture[top:bottom, left:right]
        for masks, iou in _proposals(sam, part, settings.points(layer), settings):
            box = mask_boxes(masks) + np.array([left, top, left, top])
            whole = ~near_crop_edge(box, np.array(crop), np.array([0, 0, width, height]))
            placed = np.zeros((whole.sum(), height, width), bool)
            placed[:, top:bottom, left:right] = masks[whole]
            # A bit a pixel until most of them are gone.
            packed.append(np.packbits(placed, axis=-1))
            scores.append(iou[whole])
            boxes.append(box[whole])
    score, box = np.concatenate(scores), np.concatenate(boxes)
    kept = nms(box, score, settings.box_nms_thresh)
    masks = np.unpackbits(np.concatenate(packed)[kept], axis=-1, count=width).astype(bool)
    return Masks(masks, score[kept], box[kept])


def regions(
    masks: Bool[np.ndarray, "N H W"], grid: int, max_regions: int
) -> tuple[Bool[np.ndarray, "{max_regions} {grid} {grid}"], Bool[np.ndarray, " {max_regions}"]]:
    """The largest masks on a grid x grid raster over the picture, and which rows hold one.

    A cell is on when the mask covers at least half of it; masks without such a cell are dropped.
    Largest area in pixels first, equal ones in the order given.
    """
    _, height, width = masks.shape
    down, across = _cell_matrix(height, grid), _cell_matrix(width, grid)
    cells = np.zeros((max_regions, grid, grid), bool)
    valid = np.zeros(max_regions, bool)
    row = 0
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        if row == max_regions:
            break
        covered = down @ masks[index] @ across.T >= 0.5 - 1e-9
        if covered.any():
            cells[row], valid[row] = covered, True
            row += 1
    return cells, valid


def point_grid(side: int) -> Float[np.ndarray, "{side}*{side} 2"]:
    """(x, y) of the centres of ``side`` x ``side`` equal cells of the unit square, row by row."""
    axis = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).reshape(-1, 2)


def crop_boxes(
    height: int, width: int, layers: int, overlap_ratio: float
) -> list[tuple[tuple[int, int, int, int], int]]:
    """(left, top, right, bottom) of each crop with its layer, the whole picture first.

    Neighbours of layer l overlap by 2 / 2^l x ``overlap_ratio`` of the shorter side. Raises
    InputError when there would be a crop without a pixel.
    """
    crops = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        side = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / side))
        wide = math.ceil((width + overlap * (side - 1)) / side)
        high = math.ceil((height + overlap * (side - 1)) / side)
        for column, row in itertools.product(range(side), repeat=2):
            left, top = column * (wide - overlap), row * (high - overlap)
            if left >= width or top >= height:
                raise InputError(
                    f"crop_n_layers: {layers} is too much for a picture of {width} x {height} "
                    "pixels"
                )
            crops.append(((left, top, min(left + wide, width), min(top + high, height)), layer))
    return crops


def mask_boxes(masks: Bool[np.ndarray, "N H W"]) -> Int[np.ndarray, "N 4"]:
    """First column, first row, last column, last row of each mask; zeros for an empty one."""
    edges = []
    for axis in (1, 2):
        line = np.any(masks, axis=axis)
        last = line.shape[1] - 1 - np.argmax(line[:, ::-1], axis=1)
        edges.append((np.argmax(line, axis=1), np.where(np.any(line, axis=1), last, 0)))
    (left, right), (top, bottom) = edges
    return np.stack([left, top, right, bottom], axis=-1)


def near_crop_edge(
    boxes: Int[np.ndarray, "N 4"], crop: Int[np.ndarray, " 4"], picture: Int[np.ndarray, " 4"]
) -> Bool[np.ndarray, " N"]:
    """Whether a side of the box lies at the same side of the crop and not of the picture."""
    near_crop = np.abs(boxes - crop) <= EDGE_TOLERANCE
    near_picture = np.abs(boxes - picture) <= EDGE_TOLERANCE
    return np.any(near_crop & ~near_picture, axis=1)


def stability_score(
    logits: Float[Array, "*N H W"], threshold: float | Array, offset: float | Array
) -> Float[Array, "*N"]:
    """IoU of the masks cut at ``threshold`` + and - ``offset``; 0 where the larger is empty."""
    inner = (logits > threshold + offset).sum((-2, -1))
    outer = (logits > threshold - offset).sum((-2, -1))
    return inner / jnp.maximum(outer, 1)


def nms(
    boxes: Int[np.ndarray, "N 4"], scores: Float[np.ndarray, " N"], threshold: float
) -> Int[np.ndarray, " K"]:
    """Indices kept by greedy non-maximum suppression, the best score first.

    A box goes when its IoU with a better one is above ``threshold``; of equal scores the first
    counts as better.
    """
    edges = boxes.astype(np.float64)
    area = np.prod(edges[:, 2:] - edges[:, :2], axis=1)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = np.maximum(edges[best, :2], edges[rest, :2])
        high = np.minimum(edges[best, 2:], edges[rest, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        union = area[best] + area[rest] - common
        order = rest[common <= threshold * union]
    return np.array(kept, dtype=np.int64)


def _proposals(
    sam: SAM, picture: np.ndarray, side: int, settings: AutomaticMaskSettings
) -> Iterator[tuple[Bool[np.ndarray, "N H W"], Float[np.ndarray, " N"]]]:
    """Masks and predicted IoU that pass the thresholds, for each batch of points."""
    height, width = picture.shape[:2]
    size, grid = sam.config.image_size, sam.config.image_size // sam.config.patch_size
    rows, columns = upscale_matrices(height, width, size, 4 * grid)
    features = _encode(sam, preprocess_picture(picture, size))
    cut = settings.mask_threshold, settings.stability_score_offset
    points = point_grid(side) * fitted_size(height, width, size)[::-1]
    count = min(settings.points_per_batch, settings.points_per_side**2)
    for start in range(0, len(points), count):
        real = points[start : start + count]
        batch = np.zeros((count, 2), np.float32)  # one shape, one program
        batch[: len(real)] = real
        logits, iou = _decode(sam, features, batch)
        masks, stability = _finish(logits, rows, columns, *cut)
        masks, iou, stability = (np.asarray(x)[: len(real)] for x in (masks, iou, stability))
        kept = np.ones(iou.shape, bool)
        if settings.pred_iou_thresh > 0:
            kept &= iou > settings.pred_iou_thresh
        if settings.stability_score_thresh > 0:
            kept &= stability > settings.stability_score_thresh
        yield masks[kept], iou[kept]


@jax.jit
def _encode(sam: SAM, pixels: Array) -> jax.Array:
    return sam.image_encoder(pixels)


@jax.jit
def _decode(
    sam: SAM, features: Float[Array, "1 G G C"], points: Float[Array, "N 2"]
) -> tuple[Float[Array, "N M Z Z"], Float[Array, "N M"]]:
    """Mask logits and predicted IoU of single points of one picture."""
    labels = jnp.full((1, len(points), 1), FOREGROUND)
    logits, iou = sam.decode(features, Prompts(points=points[None, :, None], labels=labels))
    return logits[0], iou[0]


@jax.jit
def _finish(
    logits: Float[Array, "N M Z Z"],
    rows: Array,
    columns: Array,
    threshold: float | Array,
    offset: float | Array,
) -> tuple[Bool[Array, "N M H W"], Float[Array, "N M"]]:
    """Masks at the picture's size and their stability.

    A program of its own: only this one is compiled anew for pictures of another size.
    """

    def finish(low: Array) -> tuple[Array, Array]:
        full = jnp.einsum("hi,mij,wj->mhw", rows, low, columns, precision=jax.lax.Precision.HIGHEST)
        return full > threshold, stability_score(full, threshold, offset)

    # One point after the other: logits at full size are the largest arrays of all.
    return jax.lax.map(finish, logits)


def _cell_matrix(pixels: int, cells: int) -> Float[np.ndarray, "{cells} {pixels}"]:
    """The share of each cell that each pixel fills, along one axis."""
    edges = np.arange(cells + 1)[:, None] * pixels / cells
    pixel = np.arange(pixels)
    inside = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
    return np.maximum(inside, 0) * cells / pixels
