"""Export: a checkpoint of ours to the files of another code base, a tensor at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rb_jax.checkpoint.stored import load_weights
from rb_jax.config import Config
from rb_jax.data.inputs.text import Tokenizer
from rb_jax.errors import InputError
from rb_jax.files import check_new_folder, new_folder
from rb_jax.port import adapter
from rb_jax.port.component import CONFIG, TOKENIZER, Component, is_component, open_component
from rb_jax.port.families import FAMILIES
from rb_jax.port.family import Family, Layout, Names, Part, porter
from rb_jax.port.table import EXTRAS, Porter, Tensors, raise_problems
from rb_jax.runtime.logging import LOG
from rb_jax.storage import AnyPath
from rb_jax.weights.folder import has_weights, open_weights, resolve
from rb_jax.weights.safetensors.reader import CheckedFiles
from rb_jax.weights.safetensors.writer import TensorSpec, write_tensors

FORMATS = ("diffusers", "bfl", "hf", "peft", "official", "torch")
# The layouts that a format means, a family each.
LAYOUTS = {
    "diffusers": {"flux": "diffusers", "flux_vae": "diffusers"},
    "bfl": {"flux": "bfl", "flux_vae": "bfl"},
    "hf": {"clip": "hf", "llava": "hf", "sam": "hf"},
    "official": {"reasonbrain": "official", "llava": "original"},
}


@dataclass(frozen=True)
class Arrays:
    """Arrays in memory, read like files."""

    values: Mapping[str, np.ndarray]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def read(self, name: str) -> np.ndarray:
        return self.values[name]

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.values[name][start:stop]


@dataclass(frozen=True)
class Export:
    """One folder of tensors to write: ``part`` of a model in a layout."""

    folder: str  # under --out; "" is --out itself
    family: Family
    layout: Layout
    names: Names
    part: Part
    params: Tensors
    config: Mapping[str, Any] | None  # config.json; None is what the layout writes
    whole: bool = True  # params are those of a whole model, of which this takes a part
    extras: bool = False  # what is carried along goes back; its names are those of one layout


def export_checkpoint(
    checkpoint: str | os.PathLike[str], format: str, out: str | Path, *, progress: bool = False
) -> list[Path]:
    """Writes a component or a whole model in another code base's layout; the files' paths.

    Raises InputError when the format does not exist for this checkpoint or cannot express its
    sizes, listing all reasons; ``out`` then is untouched.
    """
    check_new_folder(Path(out))
    folder = resolve(checkpoint)
    if is_component(folder):
        component = open_component(Path(folder))
        with new_folder(Path(out)) as new:
            _write(_component_export(component, format), new, progress)
            if (folder / TOKENIZER).is_file():
                shutil.copyfile(folder / TOKENIZER, new / TOKENIZER)
        return sorted(path for path in Path(out).rglob("*") if path.is_file())
    config, params = open_model(folder)
    if config.train.task != "edit" and format not in ("diffusers", "bfl"):
        raise InputError(f"{checkpoint} holds an autoencoder: --format is diffusers or bfl for it")
    exports = whole_exports(config, params, format)
    raise_problems([p for e in exports for p in _problems(e)], f"{checkpoint} as {format}")
    with new_folder(Path(out)) as new:
        for export in exports:
            _write(export, new, progress)
        if format == "peft" or (format == "torch" and config.model.mllm.lora_rank):
            at = new / "mllm_adapter" if format == "torch" else new
            adapter.write(config.model.mllm, params, at)
        if format == "torch":
            _write_rest(config, new)
        if format == "official":
            _write_pickle(new)
    return sorted(path for path in Path(out).rglob("*") if path.is_file())


def open_model(folder: AnyPath) -> tuple[Config, Tensors]:
    """A whole model: a weights folder, read as needed, or a training workdir."""
    if has_weights(folder):
        config, files = open_weights(folder)
        return config, CheckedFiles(files)
    config, params = load_weights(folder)
    return config, Arrays(params)


def whole_exports(config: Config, params: Tensors, format: str) -> list[Export]:
    """What a whole model is exported as. Its LoRA is not in these: it goes out as an adapter."""
    model, edit = config.model, config.train.task == "edit"
    groups = {k: v for k, v in dataclasses.asdict(model).items() if isinstance(v, dict)}
    groups["mllm"] |= {"lora_rank": 0}
    off = [name for name in ("frce", "cme") if not getattr(model, name).enabled]
    off += ["cme_proj"] * (not model.cme.enabled)

    def export(
        family: str, layout: str, at: str, absent: Sequence[str] = (), no_groups: Sequence[str] = ()
    ) -> Export:
        found = FAMILIES[family]
        chosen = found.layout(layout)
        part = Part({name: values for name, values in groups.items() if name not in no_groups})
        return Export(at, found, chosen, chosen.first_names(tuple(absent)), part, params, None)

    def painter(layout: str, transformer: str, vae: str) -> list[Export]:
        return [export("flux", layout, transformer)] * edit + [export("flux_vae", layout, vae)]

    def readers() -> list[Export]:
        sam = [export("sam", "hf", "sam")] * (model.regions.encoder == "sam")
        text = export("clip", "hf", "text_encoder", ["vision"], ["vision"])
        return [text, export("llava", "hf", "mllm"), *sam]

    # The authors' file has their modules only; these groups would bring in the others.
    ours = ["autoencoder"] + ["mmdit"] * (not model.cme.enabled)
    return {
        "diffusers": lambda: painter("diffusers", "transformer", "vae"),
        "bfl": lambda: painter("bfl", "", ""),
        "hf": readers,
        "official": lambda: [export("reasonbrain", "official", "", off, ours)],
        "peft": list,
        "torch": lambda: [
            *painter("diffusers", "transformer", "vae"),
            *readers(),
            export("reasonbrain", "torch", "reasonbrain", off),
        ],
    }[format]()


def _component_export(component: Component, format: str) -> Export:
    family = component.family.name
    layout_name = LAYOUTS.get(format, {}).get(family)
    if layout_name is None:
        known = ", ".join(f for f in FORMATS if family in LAYOUTS.get(f, {}))
        raise InputError(
            f"{component.folder} is a {family} part: --format is one of {known} for it"
        )
    layout = component.family.layout(layout_name)
    same = layout is component.layout
    if same:
        names, config = component.names, component.source_config or None
        layout = dataclasses.replace(layout, fill=None)  # the files had all that they need
    else:
        absent = [
            k for k, p in layout.prefixes.items() if not p.needed and k not in component.names
        ]
        names, config = layout.first_names(tuple(absent)), None
    export = Export(
        "",
        component.family,
        layout,
        names,
        component.part,
        component.files,
        config,
        whole=False,
        extras=same,
    )
    raise_problems(_problems(export), f"{component.folder} as {format}")
    return export


def _problems(export: Export) -> list[str]:
    return export.layout.problems(export.part) if export.layout.problems else []


def _write(export: Export, root: Path, progress: bool) -> None:
    table = porter(export.family, export.layout, export.part, export.names)
    where = export.folder or export.family.name
    table.check_export(export.params, where, whole=export.whole)
    added = export.layout.fill(export.part, export.names) if export.layout.fill else {}
    kept = [p.removeprefix(EXTRAS) for p in export.params if p.startswith(EXTRAS)]
    carried = [name for name in kept if export.extras and table.carries(name)]
    specs = [*_specs(table, export.params), *_carried_specs(carried, export.params)]
    if specs:
        dtype = specs[0].dtype
        specs += [TensorSpec(name, dtype, value.shape) for name, value in added.items()]
        added = {name: value.astype(dtype) for name, value in added.items()}

    def produce(name: str) -> Iterator[np.ndarray]:
        return iter([added[name]]) if name in added else table.to_torch(export.params, name)

    folder = root / export.folder
    folder.mkdir(parents=True, exist_ok=True)
    label = f"exporting {export.family.name}"
    write_tensors(
        folder,
        export.layout.stem,
        specs,
        produce,
        metadata={"format": "pt"},
        label=label,
        progress=progress,
    )
    config = export.config
    if config is None and export.layout.write is not None:
        config = export.layout.write(export.part)
    if config:
        text = json.dumps(dict(config), indent=2, sort_keys=False) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")


def _specs(table: Porter, params: Tensors) -> list[TensorSpec]:
    return [
        TensorSpec(name, table.torch_dtype(params, name), table.source_shape(name))
        for name in table.sources
    ]


def _carried_specs(names: Sequence[str], params: Tensors) -> list[TensorSpec]:
    infos = [(name, params[EXTRAS + name]) for name in names]
    return [TensorSpec(name, info.dtype, tuple(info.shape)) for name, info in infos]


def _write_rest(config: Config, folder: Path) -> None:
    """What rb_jax.port.torch needs besides tensors: the configuration and both tokenizers."""
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    for name in ("text", "prompt"):
        tokenizer = Tokenizer.load(getattr(config.data, f"{name}_tokenizer"))
        (folder / f"{name}_tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")


def _write_pickle(folder: Path) -> None:
    """``reasonbrain.pt`` beside the safetensors file: what the authors' loader looks for."""
    try:
        import torch
        from safetensors.torch import load_file
    except ImportError:
        LOG.warning("reasonbrain.pt is left out: it needs PyTorch, of the extra [torch]")
        return
    torch.save(load_file(folder / "reasonbrain.safetensors"), folder / "reasonbrain.pt")
