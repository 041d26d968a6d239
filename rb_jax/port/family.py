"""What the importer and the exporter know of a family of models: its layouts on disk."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from rb_jax.config import ModelConfig
from rb_jax.errors import InputError
from rb_jax.port.table import Porter, Shape, Table
from rb_jax.weights.safetensors.reader import TensorFiles

Names = Mapping[
    str, str
]  # what a layout's prefixes are in the files at hand; absent parts are not in it
Modules = Mapping[str, Callable[[nnx.Rngs], nnx.Module]]
MAX_CONFIG_BYTES = 10 * 2**20


@dataclass(frozen=True)
class Source:
    """The files of another code base: tensors, and the ``config.json`` beside them (or {})."""

    files: TensorFiles
    config: Mapping[str, Any]
    path: Path


@dataclass(frozen=True)
class Part:
    """The part of a model that a family fills: the values of config.model that its files fix."""

    values: Mapping[str, Mapping[str, Any]]

    @property
    def model(self) -> ModelConfig:
        """``values`` over the defaults; only the groups in ``values`` mean anything."""
        base = ModelConfig()
        groups = {k: dataclasses.replace(getattr(base, k), **v) for k, v in self.values.items()}
        return dataclasses.replace(base, **groups)


@dataclass(frozen=True)
class Prefix:
    """How the names of a part of the files may begin; a name in ``probe`` must follow."""

    probe: str | tuple[str, ...]
    choices: tuple[str, ...] = ("",)
    needed: bool = True


@dataclass(frozen=True)
class Layout:
    """One way a family's files look.

    ``read`` finds the sizes, ``table`` names the tensors, ``write`` makes the config.json of an
    export (None: the layout has none); ``stem`` is the name of the exported file; ``problems``
    lists what of a model the layout cannot express; ``fill`` makes tensors that the other code
    base has, without effect, and we do not.
    """

    name: str
    prefixes: Mapping[str, Prefix]
    read: Callable[[Source, Names], dict[str, Any]]
    table: Callable[[Part, Names], Table]
    write: Callable[[Part], dict[str, Any]] | None = None
    stem: str = "model"
    problems: Callable[[Part], list[str]] | None = None
    fill: Callable[[Part, Names], dict[str, np.ndarray]] | None = None

    def names(self, files: TensorFiles) -> Names | None:
        """The prefixes of these files, or None when they are not in this layout."""
        found = {}
        for part, prefix in self.prefixes.items():
            probes = (prefix.probe,) if isinstance(prefix.probe, str) else prefix.probe
            match = [c for c in prefix.choices if any(c + p in files for p in probes)]
            if match:
                found[part] = match[0]
            elif prefix.needed:
                return None
        return found or None

    def first_names(self, without: tuple[str, ...] = ()) -> Names:
        """The preferred spelling, for a new export."""
        return {k: p.choices[0] for k, p in self.prefixes.items() if k not in without}


@dataclass(frozen=True)
class Family:
    name: str
    layouts: tuple[Layout, ...]
    modules: Callable[[Part], Modules]

    def layout(self, name: str) -> Layout:
        return next(layout for layout in self.layouts if layout.name == name)


def shapes(modules: Modules) -> dict[str, Shape]:
    """Path -> shape of every parameter of the modules, without making one."""
    flat = {}
    for prefix, make in modules.items():
        module = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param)):
            flat["/".join([prefix, *map(str, path)])] = tuple(leaf.shape)
    return flat


def porter(family: Family, layout: Layout, part: Part, names: Names) -> Porter:
    """The family's table applied to a model of this size."""
    return Porter(layout.table(part, names), shapes(family.modules(part)))


def open_source(path: str | Path, allow_pickle: bool = False) -> Source:
    """Opens a file or folder; InputError when there is nothing to read or it is damaged."""
    path = Path(path)
    files = TensorFiles.open(path, allow_pickle=allow_pickle)
    folder = path if path.is_dir() else path.parent
    return Source(files, read_json(folder / "config.json"), path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} when there is no such file; InputError when it is something else."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InputError(f"{path}: larger than {MAX_CONFIG_BYTES // 2**20} MB, not a configuration")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object")
    return values


def need(source: Source, name: str) -> Shape:
    """The shape of a tensor that says how large the model is; InputError without it."""
    if name not in source.files:
        raise InputError(f"{source.path}: missing {name}")
    return tuple(source.files[name].shape)


def numbered(source: Source, pattern: str) -> int:
    """One more than the largest number in the place of "{}" at the start of any name."""
    compiled = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d{1,4})"))
    numbers = [int(m.group(1)) for name in source.files if (m := compiled.match(name))]
    return max(numbers, default=-1) + 1


def expect(source: Source, values: Mapping[str, Any], **required: Any) -> None:
    """InputError for settings of a configuration that our modules do not have."""
    for key, want in required.items():
        have = values.get(key, want)
        if have != want:
            raise InputError(f"{source.path}: {key}={have!r} is not supported, only {want!r} is")
