"""What the two sides of a family of models are, and the random inputs they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import torch

from rb_jax.models.types import Array
from rb_jax.port.family import Part
from rb_jax.port.torch.records import Text

Record = TypeVar("Record")

Inputs = dict[str, Any]  # name -> NumPy array
# What a stage gives, by its name.
Ours = dict[str, jax.Array]
Theirs = dict[str, torch.Tensor]
ROWS, WORDS = 2, 9
# Of FLUX's inputs, which are embedded as sines and cosines of 1000 times their value. Of larger
# ones the last bit of a frequency, which torch does not always round to nearest, would show most.
TIMES, GUIDANCE = (0.6, 0.2), (0.1, 0.4)


@dataclass(frozen=True)
class Pair:
    """One family: the same inputs into the same stages on both sides.

    ``stock`` loads PyTorch's module from a folder in ``layout``. ``ours`` is traceable by JAX and
    given our modules by their path; ``theirs`` is differentiable by PyTorch.
    """

    layout: str
    stock: Callable[[Path, Part], Any]
    inputs: Callable[[Part, Any, np.random.Generator], Inputs]
    ours: Callable[[Mapping[str, Any], Part, Inputs], Ours]
    theirs: Callable[[Any, Part, Inputs], Theirs]


def pictures(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(0, 256, (ROWS, size, size, 3)).astype(np.uint8)


def lengths_mask(rng: np.random.Generator, low: int, length: int) -> np.ndarray:
    """Masks [B T] of left-aligned rows of ``low`` tokens or more; the first row is full."""
    lengths = rng.integers(low, length + 1, ROWS)
    lengths[0] = length
    return np.arange(length) < lengths[:, None]


def words(rng: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids below ``count`` and their mask, each [B T], padded at the right."""
    mask = lengths_mask(rng, 2, length)
    return np.where(mask, rng.integers(0, count, mask.shape), 0).astype(np.int32), mask


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def tensor(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def tensors(record: Any, kind: type[Record]) -> Record:
    """A record of rb_jax.models.types as ``kind``, the one of rb_jax.port.torch.records."""

    def field(value: Any) -> Any:
        if hasattr(value, "ids"):
            return Text(tensor(value.ids).long(), tensor(value.mask))
        return None if value is None else tensor(value)

    names = [f.name for f in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    return kind(**{name: field(getattr(record, name)) for name in names})


def channels_first(x: Array) -> torch.Tensor:
    return tensor(x).permute(0, 3, 1, 2)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)
