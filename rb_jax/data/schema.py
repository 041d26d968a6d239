"""One example of the task, whatever it came from."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import UInt8

CATEGORIES = ("physical", "temporal", "causal", "story")


@dataclasses.dataclass(frozen=True)
class EditExample:
    """A picture, a hypothetical instruction and, when it is known, the picture that answers it.

    Pictures are sRGB squares of the data set's size. ``objects`` are the things that the
    instruction names, in its order; empty when nobody extracted them.
    """

    id: str
    category: str
    instruction: str
    objects: tuple[str, ...]
    source: UInt8[np.ndarray, "S S 3"]
    target: UInt8[np.ndarray, "S S 3"] | None = None
    target_caption: str | None = None
