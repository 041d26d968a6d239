"""transformers' SamModel.state_dict() as our flat path -> array, by the family's table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rb_jax.config import SAMConfig
from rb_jax.port.exporting import Arrays
from rb_jax.port.families.sam import FAMILY
from rb_jax.port.family import Part, porter
from rb_jax.port.table import Porter


def table(config: SAMConfig) -> Porter:
    part, layout = Part({"sam": dataclasses.asdict(config)}), FAMILY.layouts[0]
    return porter(FAMILY, layout, part, layout.first_names())


def our_path(name: str, config: SAMConfig) -> str:
    """The path of the parameter that transformers calls ``name``."""
    return table(config).sources[name].rule.target[0].removeprefix("sam/")


def convert(state: Mapping[str, Any], config: SAMConfig) -> dict[str, np.ndarray]:
    """Every array under our path, stacks in the order of their layers."""
    ported = table(config)
    source = Arrays({name: tensor.detach().numpy() for name, tensor in state.items()})
    ported.check_import(source, "SamModel")
    arrays = {}
    for path, slot in ported.targets.items():
        layers = list(ported.to_ours(source, path))
        stacked = slot.rule.layers is not None
        arrays[path.removeprefix("sam/")] = np.stack(layers) if stacked else layers[0]
    return arrays
