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

from rb_jax.config import ConfigError, ModelConfig, from_values
from rb_jax.errors import InputError
from rb_jax.port.families import FAMILIES
from rb_jax.port.family import Family, Layout, Names, Part, read_json
from rb_jax.port.table import EXTRAS
from rb_jax.storage import AnyPath, is_bucket
from rb_jax.weights.safetensors.reader import CheckedFiles, TensorFiles

CONFIG, STEM = "config.json", "model"
TOKENIZER = "tokenizer.json"
# No size of any model comes near; what is computed with smaller ones stays harmless.
LARGEST = 2**24


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


def is_component(folder: AnyPath) -> bool:
    """Whether a folder is one part of a model; a bucket's weights are copied here before."""
    return not is_bucket(folder) and "family" in read_json(Path(folder) / CONFIG)


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
        try:
            whole = from_values(ModelConfig, defaults | {group: defaults[group] | given}, "model.")
        except ConfigError as error:
            raise InputError(f"{where}: {error}") from None
        checked[group] = {key: getattr(getattr(whole, group), key) for key in given}
        for key, value in checked[group].items():
            if any(abs(v) >= LARGEST for v in _numbers(value)):
                raise InputError(f"{where}: config.model.{group}.{key} cannot be {value!r}")
    return checked


def _numbers(value: Any) -> list[int | float]:
    values = value if isinstance(value, tuple) else (value,)
    return [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
