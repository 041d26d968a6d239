"""Exact scores for edits of ReasonWorld pictures: no judge, the right answer is known.

An edit is *aligned* when the edited picture is nearer to the right outcome than to the unchanged
source and to every wrong outcome, compared where these candidates differ at all.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from rb_jax.data.reasonworld import CATEGORIES, Example
from rb_jax.models.pixels import psnr

PSNR_CAP = 60.0  # dB; reported for identical pixels, and where there is nothing to compare
_Z95 = 1.959964


@dataclasses.dataclass(frozen=True)
class EditScore:
    """`nearest`: "right", "unchanged" or "wrong:<k>", the k-th alternative. PSNRs in dB."""

    aligned: bool
    nearest: str
    edited_psnr: float
    preservation_psnr: float


def score_edit(example: Example, edited: np.ndarray) -> EditScore:
    """Scores one edited picture.

    Args:
        example: what was asked, with its right and wrong outcomes.
        edited: the model's picture, uint8 [S, S, 3], the size of the example's.

    Raises:
        ValueError: if `edited` is not uint8 or has another shape than the source.
    """
    if edited.dtype != np.uint8 or edited.shape != example.source.shape:
        raise ValueError(
            f"edited must be uint8 {example.source.shape}, not {edited.dtype} {edited.shape}"
        )
    names = ["unchanged", "right", *(f"wrong:{k}" for k in range(len(example.alternatives)))]
    candidates = np.stack([example.source, example.target, *example.alternatives])
    region = (candidates != candidates[0]).any(axis=(0, 3))
    errors = [_mse(edited, candidate, region) for candidate in candidates]
    nearest = names[int(np.argmin(errors))]  # a tie with the source counts as unchanged
    return EditScore(
        aligned=nearest == "right",
        nearest=nearest,
        edited_psnr=min(PSNR_CAP, psnr(_mse(edited, example.target, example.mask))),
        preservation_psnr=min(PSNR_CAP, psnr(_mse(edited, example.source, ~example.mask))),
    )


def summarize(scores: Iterable[tuple[str, EditScore]]) -> dict[str, dict[str, Any]]:
    """Totals of (category, score) pairs: "overall" and one entry per category that occurs.

    Each entry has `count`, `ins_align` with its 95% Wilson interval `ins_align_ci` (low, high),
    and the means `edited_psnr`, `preservation_psnr` with half-widths of their 95% normal intervals
    in `*_ci` (nan for a single score). ValueError if there are no scores.
    """
    pairs = list(scores)
    if not pairs:
        raise ValueError("there are no scores to summarize")
    present = {category for category, _ in pairs}
    known = [c for c in CATEGORIES if c in present]
    groups = {"overall": [score for _, score in pairs]}
    for category in (*known, *sorted(present - set(known))):
        groups[category] = [score for c, score in pairs if c == category]
    return {name: _summary(group) for name, group in groups.items()}


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% Wilson interval of a proportion; (0, 1) when nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    p, z2 = hits / count, _Z95**2
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _summary(scores: Sequence[EditScore]) -> dict[str, Any]:
    hits = sum(score.aligned for score in scores)
    edited, edited_ci = _mean([score.edited_psnr for score in scores])
    kept, kept_ci = _mean([score.preservation_psnr for score in scores])
    return {
        "count": len(scores),
        "ins_align": hits / len(scores),
        "ins_align_ci": wilson(hits, len(scores)),
        "edited_psnr": edited,
        "edited_psnr_ci": edited_ci,
        "preservation_psnr": kept,
        "preservation_psnr_ci": kept_ci,
    }


def _mean(values: Sequence[float]) -> tuple[float, float]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), _Z95 * spread / math.sqrt(len(values))


def _mse(
    a: UInt8[np.ndarray, "S S 3"], b: UInt8[np.ndarray, "S S 3"], where: Bool[np.ndarray, "S S"]
) -> float:
    """Mean squared error over the chosen pixels, on a scale of 0..1; 0 if there are none."""
    if not where.any():
        return 0.0
    difference = a[where].astype(np.float64) - b[where]
    return float(np.mean(difference**2)) / 255.0**2
