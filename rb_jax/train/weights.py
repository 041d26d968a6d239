"""Weights to ship and to edit with: a folder of ``model.safetensors`` and ``config.json``.

Large models are several files with an index, as Hugging Face's libraries lay them out.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from rb_jax.config import Config, ConfigError, differing_keys, from_stored
from rb_jax.errors import InputError
from rb_jax.sharding.processes import host_pieces, is_primary
from rb_jax.tensor_files import TensorFiles
from rb_jax.tensor_writer import TensorSpec, new_folder, write_tensors
from rb_jax.train.state import Params, check_weights, definition
from rb_jax.train.stored import find, load_ema
from rb_jax.types import ENCODERS

STEM, CONFIG = "model", "config.json"
# How a value of the configuration names the weights that come with the package.
SHIPPED = {"init_from": "reasonworld", "autoencoder_from": "reasonworld_vae"}

MEANINGLESS = ("model.dtype",
               "model.autoencoder.scale_factor", "model.autoencoder.shift_factor")  # fmt: skip

WeightDtype = Literal["float32", "bfloat16", "float16"]


def save_weights(
    folder: str | Path, config: Config, params: Mapping[str, Any], dtype: WeightDtype = "float32"
) -> None:
    """Writes every array of ``params`` (path -> array), floating ones as ``dtype``.

    Of several processes, which must all call this, the first writes. The folder appears complete
    or not at all. Raises ValueError when a value that is finite now would not be finite in
    ``dtype``.
    """

    def produce(path: str) -> Iterator[np.ndarray]:
        for piece in host_pieces(params[path]):
            yield _as(piece, dtype, path)

    specs = [TensorSpec(p, _stored_dtype(x, dtype), np.shape(x)) for p, x in params.items()]
    if is_primary():
        with new_folder(Path(folder), replace=True) as new:
            write_tensors(new, STEM, specs, produce, checksums=True)
            write_config(new, config)
    else:
        for spec in specs:  # in the writer's order: a piece is brought together by all processes
            for _ in host_pieces(params[spec.name]):
                pass


def write_config(folder: Path, config: Config) -> None:
    """The configuration beside the weights, with the tokenizers that it names."""
    for name in ("text", "prompt"):
        tokenizer = getattr(config.data, f"{name}_tokenizer")
        if tokenizer:
            shutil.copyfile(tokenizer, folder / f"{name}_tokenizer.json")
    data = dataclasses.replace(config.data, text_tokenizer="", prompt_tokenizer="")
    config = dataclasses.replace(config, data=data)
    text = json.dumps(dataclasses.asdict(config), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def has_weights(folder: Path) -> bool:
    """Whether weights lie in the folder itself (a workdir has them in its checkpoints)."""
    return any((folder / f"{STEM}.safetensors{end}").is_file() for end in ("", ".index.json"))


def load_weights(folder: str | Path) -> tuple[Config, Params]:
    """Configuration and arrays (path -> NumPy array, as stored) of a weights folder or a workdir.

    Of a training workdir, or one of its checkpoints, the newest running-average weights are
    taken. Raises InputError when nothing is there, when a file is damaged, and when the paths or
    shapes are not exactly those of the configuration's model.
    """
    folder = Path(folder)
    if has_weights(folder):
        config, files = open_weights(folder)
        params = {path: files.read(path, checksum=True) for path in files}
    elif find(folder):
        config, params = load_ema(folder)
    else:
        raise InputError(f"{folder}: no {STEM}.safetensors and no checkpoint in it")
    check_weights(params, definition(config)[1], where=f"the weights in {folder}")
    return config, params


def initial_weights(config: Config) -> Params:
    """What config.train.init_from or .autoencoder_from put in place of the random values.

    ``init_from`` brings the whole model; without it, ``autoencoder_from`` brings the autoencoder.
    A model of cached features takes no encoders. Raises InputError when the other model's
    configuration differs, naming the keys.
    """
    without = config.data.inputs == "features"
    for key, parts in (("init_from", ("model",)), ("autoencoder_from", ("model", "autoencoder"))):
        source = getattr(config.train, key)
        if not source or (without and key == "autoencoder_from"):
            continue
        other, params = load_weights(resolve(source, SHIPPED[key]))
        differing = differing_model_keys(other, config, parts)
        if differing:
            raise InputError(
                f"config.train.{key}={source!r} has another model: {', '.join(differing)} differ"
            )
        if key == "init_from":
            if without:
                params = {p: x for p, x in params.items() if p.split("/")[0] not in ENCODERS}
            check_weights(params, definition(config)[1], where=f"config.train.init_from={source!r}")
            return params
        return {path: v for path, v in params.items() if path.startswith("autoencoder/")}
    return {}


def encoder_weights(config: Config, stages: Collection[str] = ENCODERS) -> tuple[Config, Params]:
    """These encoders of config.train.init_from, and its configuration; nothing without a source.

    The rest of the model is not read. Raises InputError as ``load_weights``.
    """
    if not config.train.init_from:
        return config, {}
    folder = resolve(config.train.init_from, SHIPPED["init_from"])
    if not has_weights(folder):
        other, params = load_weights(folder)
        return other, {path: x for path, x in params.items() if path.split("/")[0] in stages}
    other, files = open_weights(folder)
    wanted = {p: x for p, x in definition(other)[1].items() if p.split("/")[0] in stages}
    params = {path: files.read(path, checksum=True) for path in files if path in wanted}
    check_weights(params, wanted, where=f"the encoders in {folder}")
    return other, params


def whole_model(config: Config, params: Params) -> tuple[Config, Params]:
    """A model trained from cached features with the encoders that it started with, if any.

    Such a model can edit pictures; others are returned as they are.
    """
    if config.data.inputs == "pixels" or config.train.task != "edit":
        return config, params
    other, encoders = encoder_weights(config)
    if not encoders:
        return config, params
    data = dataclasses.replace(other.data, image_size=config.data.image_size)
    return dataclasses.replace(config, data=data), encoders | params


def resolve(source: str, shipped: str) -> Path:
    """The folder that ``source`` means; 'shipped' is the one in the package's assets."""
    if source != "shipped":
        return Path(source)
    return Path(str(importlib.resources.files("rb_jax"))) / "assets" / shipped


def differing_model_keys(a: Config, b: Config, parts: tuple[str, ...] = ("model",)) -> list[str]:
    """Keys under ``parts`` that change what the weights mean.

    dtype does not, nor do the latents' scale and shift: these are known only once the
    autoencoder is trained, and belong to the flow model that uses it.
    """
    left, right = dataclasses.asdict(a), dataclasses.asdict(b)
    for part in parts:
        left, right = left[part], right[part]
    keys = differing_keys(left, right, ".".join(parts) + ".")
    return [key for key in keys if key not in MEANINGLESS]


def open_weights(folder: Path) -> tuple[Config, TensorFiles]:
    """The configuration and the files of a weights folder, arrays unread; raises InputError."""
    return stored_config(folder), TensorFiles.open(folder)


def stored_config(folder: Path) -> Config:
    """The configuration of a weights folder; its tokenizers are those in the folder, if any are.

    Raises InputError when it cannot be read, and when the folder holds only a part of a model.
    """
    path = folder / CONFIG
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(stored, dict) and "family" in stored:
            raise InputError(
                f"{folder} is one part of a model ({stored['family']}); "
                "put parts together with rb-jax assemble"
            )
        config = from_stored(stored)
    except (OSError, ValueError, ConfigError) as error:
        raise error if type(error) is InputError else InputError(f"{path}: {error}") from error
    names = [f"{name}_tokenizer" for name in ("text", "prompt")]
    found = {n: str(folder / f"{n}.json") for n in names if (folder / f"{n}.json").is_file()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **found))


def _stored_dtype(value: Any, dtype: str) -> np.dtype:
    floating = jax.numpy.issubdtype(value.dtype, np.floating)
    return np.dtype(getattr(ml_dtypes, dtype, dtype) if floating else value.dtype)


def _as(value: np.ndarray, dtype: str, path: str) -> np.ndarray:
    if not jax.numpy.issubdtype(value.dtype, np.floating):
        return np.ascontiguousarray(value)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(value, dtype=_stored_dtype(value, dtype))
    if not np.all(np.isfinite(cast.astype(np.float32)) == np.isfinite(value.astype(np.float32))):
        raise ValueError(f"{path}: some values are too large for {dtype}")
    return cast
