"""One example of the task, whatever it came from."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, UInt8

from rb_jax.config.sizes import CATEGORIES


def category_number(name: str) -> int:
    """Place in ``CATEGORIES``; -1 for any other."""
    return CATEGORIES.index(name) if name in CATEGORIES else -1


# Masks, and which of them hold a region.
Regions = tuple[Bool[np.ndarray, "R G_y G_x"], Bool[np.ndarray, " R"]]


@dataclasses.dataclass(frozen=True)
class EditExample:
    """A picture, a hypothetical instruction and, when it is known, the picture that answers it.

    Pictures are sRGB, both of one size: squares of the data set's, or of a bucket's shape.
    ``objects`` are the things that the instruction names, in its order; empty when nobody extracted
    them. ``regions`` are masks on the model's grid and which of them hold a region; None leaves
    them to rb_jax.data.inputs.regions.
    ``category`` is one of CATEGORIES, or empty for data sets that have others or none.
    """

    id: str
    category: str
    instruction: str
    objects: tuple[str, ...]
    source: UInt8[np.ndarray, "Y X 3"]
    target: UInt8[np.ndarray, "Y X 3"] | None = None
    target_caption: str | None = None
    regions: Regions | None = None
    place: str = ""  # where it was read, for messages: "set/train.jsonl:12"
