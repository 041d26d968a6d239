"""An imported part of a model: a folder of ``model.safetensors`` and ``config.json``.

Parameters have the paths that they have in the whole model; ``extras/`` holds, unchanged and under
their own names, tensors that the whole model does not use, so that an export gives them back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb_jax.config import ModelConfig, checks, from_values
from rb_jax.errors import InputError
from rb_jax.port.families import FAMILIES
from rb_jax.port.family import Family, Layout, Names, Part, read_json
from rb_jax.port.table import EXTRAS
from rb_jax.tensor_files import CheckedFiles, TensorFiles

CONFIG, STEM = "config.json", "model"
TOKENIZER = "tokenizer.json"
# No size of any model comes near; what is computed with smaller ones stays harmless.
LARGEST = 2**24
MAY_BE_ZERO = (*checks.MAY_BE_ZERO, "image_tokens")
ANY_SIGN = ("feature_layer", "shift_factor")


@dataclass(frozen=True)
class Component:
    """``names`` are the prefixes of the files that it came from, ``source_config`` theirs."""

    family: Family
    layout: Layout
    names: Names
    part: Part
    source_config: Mapping[str, Any]
    files: TensorFiles
    folder: Path

    @property
    def paths(self) -> list[str]:
        """The parameters, without what is only carried along."""
        return [path for path in self.files if not path.startswith(EXTRAS)]


def is_component(folder: Path) -> bool:
    return "family" in read_json(folder / CONFIG)


def open_component(folder: Path) -> Component:
    """Opens an imported folder; InputError when it is not one."""
    stored = read_json(folder / CONFIG)
    family = FAMILIES.get(str(stored.get("family")))
    layouts = {layout.name: layout for layout in family.layouts} if family else {}
    names, layout = stored.get("names"), layouts.get(str(stored.get("layout")))
    if family is None or layout is None or not isinstance(names, dict):
        raise InputError(f"{folder}: not a folder that rb-jax import wrote")
    part = Part(checked_values(stored.get("model"), str(folder / CONFIG)))
    files = CheckedFiles(TensorFiles.open(folder))
    config = stored.get("source_config") or {}
    return Component(family, layout, names, part, config, files, folder)


def describe(
    family: Family, layout: Layout, names: Names, part: Part, source_config: Mapping[str, Any]
) -> str:
    """The text of a component's config.json."""
    content = {
        "family": family.name,
        "layout": layout.name,
        "names": dict(names),
        "model": {group: dict(values) for group, values in part.values.items()},
        "source_config": dict(source_config),
    }
    return json.dumps(content, indent=2) + "\n"


def checked_values(values: Any, where: str) -> dict[str, dict[str, Any]]:
    """Values of config.model, partly given; InputError for unknown keys and impossible values."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: no values of the model")
    defaults, checked = dataclasses.asdict(ModelConfig()), {}
    for group, given in values.items():
        if not isinstance(given, dict) or not isinstance(defaults.get(group), dict):
            raise InputError(f"{where}: config.model.{group}: no such group")
        whole = from_values(ModelConfig, defaults | {group: defaults[group] | given}, "model.")
        checked[group] = {key: getattr(getattr(whole, group), key) for key in given}
        for key, value in checked[group].items():
            if not _possible(key, value):
                raise InputError(f"{where}: config.model.{group}.{key} cannot be {value!r}")
    return checked


def _possible(key: str, value: Any) -> bool:
    """Whether every number in a value is one that a model can have."""
    values = value if isinstance(value, tuple) else (value,)
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if key in ANY_SIGN:
        return all(-LARGEST < v < LARGEST for v in numbers)
    return all(0 < v < LARGEST or (v == 0 and key.endswith(MAY_BE_ZERO)) for v in numbers)
