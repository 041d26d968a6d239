"""Assemble: imported parts and fresh modules to one whole model."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from rb_jax.config import Config, from_config_dict
from rb_jax.errors import InputError
from rb_jax.files import check_new_folder, new_folder
from rb_jax.port.component import STEM, TOKENIZER, Component, open_component
from rb_jax.port.table import raise_problems
from rb_jax.runtime.compiling import fast_compile
from rb_jax.train.state import trainable_paths
from rb_jax.weights.folder import write_config
from rb_jax.weights.hashed import hashed_key
from rb_jax.weights.params import build, definition, flatten
from rb_jax.weights.safetensors.writer import TensorSpec, write_tensors

# Values that a part's files fix only for itself: in the whole model the configuration decides.
OWN = {"mllm": ("image_tokens", "lora_rank"), "mmdit": ("source", "in_width")}
TOKENIZERS = {"clip": "text_tokenizer.json", "llava": "prompt_tokenizer.json"}
WIDENED = "mmdit/img_in/kernel"


@dataclasses.dataclass(frozen=True)
class Assembled:
    config: Config
    parts: dict[str, list[str]]  # each part's folder: the stages that come from it
    fresh: list[str]  # stages with new parameters
    unused: list[str]  # parameters of the parts that the model has no place for


def assemble(
    config: Config,
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    allow_random_frozen: bool = False,
    progress: bool = False,
) -> Assembled:
    """Writes a weights folder of the model of ``config`` with the parts' sizes and tensors.

    What no part has is freshly initialised from config.train.seed. The input layer of a FLUX that
    knows no source picture is widened with zeros, which leaves its output as it was. Raises
    InputError when parts contradict each other or the configuration, listing all, and, unless
    ``allow_random_frozen``, when a stage would be random and never trained.
    """
    check_new_folder(Path(out))
    components = [open_component(Path(folder)) for folder in folders]
    config = merged_config(config, components)
    shapes = definition(config)[1]
    origin = _origins(components, shapes)
    problems = []
    for path, component in origin.items():
        have, want = tuple(component.files[path].shape), tuple(shapes[path].shape)
        widened = path == WIDENED and have[0] < want[0] and have[1:] == want[1:]
        if have != want and not widened:
            problems.append(
                f"{path} of {component.folder} has shape {have}, the model needs {want}"
            )
    raise_problems(problems, "the parts do not fit together")
    absent = [path for path in shapes if path not in origin]
    if not allow_random_frozen:
        refuse_random_frozen(config, absent, shapes)
    fresh = _fresh(config, absent)
    specs = [
        TensorSpec(path, origin[path].files[path].dtype, tuple(shape.shape))
        if path in origin
        else TensorSpec(path, fresh[path].dtype, tuple(shape.shape))
        for path, shape in shapes.items()
    ]

    def produce(path: str) -> Iterator[np.ndarray]:
        if path not in origin:
            return iter([fresh[path]])
        return _copied(origin[path], path, tuple(shapes[path].shape))

    with new_folder(Path(out)) as folder:
        write_tensors(
            folder, STEM, specs, produce, checksums=True, label="assembling", progress=progress
        )
        write_config(folder, config)
        for component in components:
            name = TOKENIZERS.get(component.family.name)
            if name and (component.folder / TOKENIZER).is_file():
                shutil.copyfile(component.folder / TOKENIZER, folder / name)
    used: dict[str, set[str]] = {str(component.folder): set() for component in components}
    for path, component in origin.items():
        used[str(component.folder)].add(path.split("/")[0])
    unused = [p for c in components for p in c.paths if origin.get(p) is not c]
    parts = {folder: sorted(stages) for folder, stages in used.items()}
    return Assembled(config, parts, sorted({path.split("/")[0] for path in fresh}), unused)


def refuse_random_frozen(config: Config, fresh: Sequence[str], shapes: Mapping[str, Any]) -> None:
    """InputError for stages that no part has weights for and that training will not change."""
    trained = trainable_paths(config, shapes)
    stages = sorted({path.split("/")[0] for path in fresh} - {p.split("/")[0] for p in trained})
    stages += sorted({p.split("/")[0] for p in fresh if p not in trained} - set(stages))
    if stages:
        raise InputError(
            f"no part has weights for {', '.join(stages)}, which the configuration freezes: they "
            "would stay random. Import them (rb-jax import) and name them in --parts, or train "
            "them (config.train.trainable, config.train.frozen); --allow_random_frozen is for tests"
        )


def merged_config(config: Config, components: Sequence[Component]) -> Config:
    """``config`` with the sizes that the parts fix; InputError where two parts differ."""
    values = dataclasses.asdict(config)
    fixed: dict[tuple[str, str], tuple[Any, Component]] = {}
    problems = []
    for component in components:
        for group, key, value in _values(component, components):
            other = fixed.setdefault((group, key), (value, component))
            if other[0] != value:
                problems.append(
                    f"config.model.{group}.{key} is {other[0]} in {other[1].folder} "
                    f"and {value} in {component.folder}"
                )
            values["model"][group][key] = value
    raise_problems(problems, "the parts do not fit together")
    if "sam" in {component.family.name for component in components}:
        width = values["model"]["sam"]["out_channels"]
        values["model"]["regions"] |= {"encoder": "sam", "width": width}
    return from_config_dict(values)


def _values(
    component: Component, components: Sequence[Component]
) -> Iterator[tuple[str, str, Any]]:
    for group, inner in component.part.values.items():
        if group == "vision" and _outranked(component, components):
            continue
        for key, value in inner.items():
            if key not in OWN.get(group, ()):
                yield group, key, value
    mmdit: Mapping[str, Any] = component.part.values.get("mmdit", {})
    if mmdit.get("in_width"):
        yield "mmdit", "in_width", mmdit["in_width"]


def _outranked(component: Component, components: Sequence[Component]) -> bool:
    """A CLIP's vision tower gives way to LLaVA's, which LLaVA's projector was trained on."""
    return component.family.name == "clip" and any(
        c.family.name == "llava" and "layers" in c.part.values.get("vision", {}) for c in components
    )


def _origins(components: Sequence[Component], shapes: Mapping[str, Any]) -> dict[str, Component]:
    """The part that each of the model's parameters comes from."""
    origin: dict[str, Component] = {}
    twice = {}
    for component in components:
        for path in component.paths:
            if path.startswith("vision/") and _outranked(component, components):
                continue
            if path in shapes and path in origin:
                pair = f"{origin[path].folder} and {component.folder}"
                twice.setdefault(f"{pair} both hold {path.split('/')[0]}")
            elif path in shapes:
                origin[path] = component
    raise_problems(list(twice), "the parts do not fit together")
    return origin


def _copied(component: Component, path: str, shape: Sequence[int]) -> Iterator[np.ndarray]:
    have = list(component.files[path].shape)
    if len(have) > 2:  # stacked layers: one at a time
        for layer in range(have[0]):
            yield component.files.read_rows(path, layer, layer + 1)
        return
    x = component.files.read(path)
    yield x
    if tuple(have) != tuple(shape):  # new input rows that say nothing yet
        yield np.zeros((shape[0] - have[0], *shape[1:]), x.dtype)


def _fresh(config: Config, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Initial values of these parameters alone; the compiler drops the others."""

    def create(key: jax.Array) -> dict[str, jax.Array]:
        values = flatten(build(config, nnx.Rngs(key)))
        return {path: values[path] for path in paths}

    made = jax.jit(create, compiler_options=fast_compile())(hashed_key(config.train.seed))
    return {path: np.asarray(value) for path, value in made.items()}
