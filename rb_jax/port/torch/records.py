"""The records of rb_jax.models.types as plain dataclasses of torch tensors, field by field.

Its axis letters are used here. Masks are boolean and True where there is content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Text:
    """Token ids [*B T] with their mask; rows are left-aligned, padding comes last."""

    ids: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Batch:
    source: torch.Tensor  # [B S S 3], uint8
    text: Text  # [B T], for the CLIP text tower
    prompt: Text  # [B L], for the language model
    objects: Text  # [B O K], names of the objects in the instruction
    object_mask: torch.Tensor  # [B O]
    regions: torch.Tensor  # [B R G G], boolean
    region_mask: torch.Tensor  # [B R]
    source_latent: torch.Tensor | None = None  # [B H W C_z], when it is known already


@dataclass(frozen=True)
class Features:
    """Outputs of the encoders."""

    image: torch.Tensor  # [B E C_i], class token first
    patches: torch.Tensor  # [B P C_i]
    regions: torch.Tensor  # [B R C_r]
    region_mask: torch.Tensor  # [B R]
    text: torch.Tensor  # [B T C_t]
    text_mask: torch.Tensor  # [B T]
    pooled: torch.Tensor  # [B C_t]
    objects: torch.Tensor  # [B O C_t]
    object_mask: torch.Tensor  # [B O]
    prompt: Text  # [B L]
    source_latent: torch.Tensor  # [B H W C_z]


@dataclass(frozen=True)
class Cues:
    """FRCE's outputs R_V and R_T (PAPER section 4.2)."""

    visual: torch.Tensor  # [B V C]
    visual_mask: torch.Tensor  # [B V]
    textual: torch.Tensor  # [B O C]
    textual_mask: torch.Tensor  # [B O]


@dataclass(frozen=True)
class Conditioning:
    """What the flow model is given besides z_t."""

    tokens: torch.Tensor  # [B M C]
    vector: torch.Tensor  # [B C_v]
    source_latent: torch.Tensor  # [B H W C_z]


def batch_of(arrays: Mapping[str, Any], device: str | torch.device = "cpu") -> Batch:
    """A Batch of NumPy arrays, such as ``ArrayCollator.arrays`` makes; other keys are left out.

    A text is anything with ``ids`` and ``mask``.
    """

    def tensor(value: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(value)).to(device)

    def text(value: Any) -> Text:
        return Text(tensor(value.ids).long(), tensor(value.mask))

    latent = arrays.get("source_latent")
    return Batch(
        source=tensor(arrays["source"]),
        text=text(arrays["text"]),
        prompt=text(arrays["prompt"]),
        objects=text(arrays["objects"]),
        object_mask=tensor(arrays["object_mask"]),
        regions=tensor(arrays["regions"]),
        region_mask=tensor(arrays["region_mask"]),
        source_latent=None if latent is None else tensor(latent),
    )
