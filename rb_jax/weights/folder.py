"""Weights to ship and to edit with: a folder of ``model.safetensors`` and ``config.json``.

Large models are several files with an index, as Hugging Face's libraries lay them out.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from rb_jax.config import Config, ConfigError, differing_keys, from_stored
from rb_jax.errors import InputError
from rb_jax.files import new_folder
from rb_jax.runtime.processes import from_primary, host_pieces, is_primary
from rb_jax.storage import AnyPath, fetched, is_bucket, place, reaching, upload
from rb_jax.weights.safetensors.reader import TensorFiles
from rb_jax.weights.safetensors.writer import TensorSpec, write_tensors

STEM, CONFIG = "model", "config.json"
# How a value of the configuration names the weights that come with the package.
SHIPPED = {"init_from": "reasonworld", "autoencoder_from": "reasonworld_vae"}

MEANINGLESS = ("model.dtype", "model.autoencoder.scale_factor", "model.autoencoder.shift_factor")

WeightDtype = Literal["float32", "bfloat16", "float16"]


def save_weights(
    folder: str | os.PathLike[str],
    config: Config,
    params: Mapping[str, Any],
    dtype: WeightDtype = "float32",
) -> None:
    """Writes every array of ``params`` (path -> array), floating ones as ``dtype``.

    Of several processes, which must all call this, the first writes. The folder appears complete
    or not at all; in a bucket, to which it is copied from a temporary folder here, config.json
    appears last. Raises ValueError when a value that is finite now would not be finite in
    ``dtype``, InputError when the folder cannot be written; the other processes then raise
    InputError too.
    """

    def produce(path: str) -> Iterator[np.ndarray]:
        for piece in host_pieces(params[path]):
            yield _as(piece, dtype, path)
            from_primary(False)  # all is well so far

    specs = [TensorSpec(p, _stored_dtype(x, dtype), np.shape(x)) for p, x in params.items()]
    if not is_primary():
        for spec in specs:  # in the writer's order: a piece is brought together by all processes
            for _ in host_pieces(params[spec.name]):
                _follow(folder)
        _follow(folder)
        return
    try:
        local = tempfile.mkdtemp(prefix="rb_jax-") if is_bucket(folder) else folder
        with new_folder(Path(local), replace=True) as new:
            write_tensors(new, STEM, specs, produce, checksums=True)
            write_config(new, config)
        if is_bucket(folder):
            upload(Path(local), place(folder), last=CONFIG)
            shutil.rmtree(local, ignore_errors=True)
    except Exception:
        from_primary(True)
        raise
    from_primary(False)


def _follow(folder: str | os.PathLike[str]) -> None:
    """On another process than the first: raises InputError when that one has failed."""
    if from_primary(False):
        raise InputError(f"{folder}: the first process could not write it; its output says why")


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


def has_weights(folder: AnyPath) -> bool:
    """Whether a folder holds weights itself (a workdir has them in its checkpoints)."""
    return any((folder / f"{STEM}.safetensors{end}").is_file() for end in ("", ".index.json"))


def resolve(source: str | os.PathLike[str], shipped: str = SHIPPED["init_from"]) -> AnyPath:
    """The folder that ``source`` means; 'shipped' is the one in the package's assets.

    Of weights in a bucket it is a copy on this machine; of a workdir there, its epath.Path.
    """
    if str(source) == "shipped":
        return Path(str(importlib.resources.files("rb_jax"))) / "assets" / shipped
    if not is_bucket(source):
        return Path(source)
    folder: Any = place(source)
    with reaching(folder):
        return fetched(folder) if has_weights(folder) else folder


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


def open_weights(folder: AnyPath) -> tuple[Config, TensorFiles]:
    """The configuration and the files of a weights folder, arrays unread; raises InputError."""
    return stored_config(folder), TensorFiles.open(folder)


def stored_config(folder: AnyPath) -> Config:
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
    tokenizers = {n: str(folder / f"{n}.json") for n in names if (folder / f"{n}.json").is_file()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **tokenizers))


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
