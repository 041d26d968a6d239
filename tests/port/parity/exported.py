"""A model of ours in --format=torch, for tests of the PyTorch side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rb_jax.config import Config
from rb_jax.port.exporting import Arrays, export_checkpoint
from rb_jax.port.families.reasonbrain import FAMILY
from rb_jax.port.family import Part, porter
from rb_jax.weights.folder import save_weights


def export(folder: Path, params: Mapping[str, Any], config: Config) -> Path:
    save_weights(folder.with_name("weights"), config, params)
    export_checkpoint(folder.with_name("weights"), "torch", folder)
    return folder


def torch_names(params: Mapping[str, Any], config: Config) -> dict[str, torch.Tensor]:
    """Some of our own modules' parameters (or gradients) as the PyTorch side names them."""
    layout = FAMILY.layout("torch")
    table = porter(FAMILY, layout, Part(groups(config)), layout.first_names())
    arrays = Arrays({path: np.asarray(value) for path, value in params.items()})
    return {
        name: torch.from_numpy(np.array(next(table.to_torch(arrays, name))))
        for name, slot in table.sources.items()
        if slot.rule.target[0] in params
    }


def groups(config: Config) -> dict[str, dict[str, Any]]:
    values = dataclasses.asdict(config.model)
    return {name: group for name, group in values.items() if isinstance(group, dict)}
