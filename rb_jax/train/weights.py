"""Weights to ship and to edit with: a folder of ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from rb_jax.config import Config, ConfigError, differing_keys, from_stored
from rb_jax.errors import InputError
from rb_jax.train import checkpoint
from rb_jax.train.state import Params, check_weights, definition

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# How a value of the configuration names the weights that come with the package.
SHIPPED = {"init_from": "reasonworld", "autoencoder_from": "reasonworld_vae"}

MEANINGLESS = ("model.dtype", "model.remat",
               "model.autoencoder.scale_factor", "model.autoencoder.shift_factor")  # fmt: skip

WeightDtype = Literal["float32", "bfloat16", "float16"]


def save_weights(
    folder: str | Path, config: Config, params: Mapping[str, Any], dtype: WeightDtype = "float32"
) -> None:
    """Writes every array of ``params`` (path -> array), floating ones as ``dtype``.

    The folder appears complete or not at all. Raises ValueError when a value that is finite now
    would not be finite in ``dtype``.
    """
    folder = Path(folder).resolve()
    arrays = {path: _as(np.asarray(value), dtype, path) for path, value in params.items()}
    checksums = json.dumps({path: zlib.crc32(value.tobytes()) for path, value in arrays.items()})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        safetensors.numpy.save_file(arrays, new / WEIGHTS, {"crc32": checksums})
        text = json.dumps(dataclasses.asdict(config), indent=2)
        (new / CONFIG).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def load_weights(folder: str | Path) -> tuple[Config, Params]:
    """Configuration and arrays (path -> NumPy array, as stored) of a weights folder or a workdir.

    Of a training workdir, or one of its checkpoints, the newest running-average weights are
    taken. Raises InputError when nothing is there, when a file is damaged, and when the paths or
    shapes are not exactly those of the configuration's model.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        config = _read_config(folder / CONFIG)
        params = _read_arrays(folder / WEIGHTS)
    elif checkpoint.find(folder):
        config, params = checkpoint.load_ema(folder)
    else:
        raise InputError(f"{folder}: no {WEIGHTS} and no checkpoint in it")
    check_weights(params, definition(config)[1], where=f"the weights in {folder}")
    return config, params


def initial_weights(config: Config) -> Params:
    """What config.train.init_from or .autoencoder_from put in place of the random values.

    ``init_from`` brings the whole model; without it, ``autoencoder_from`` brings the autoencoder.
    Raises InputError when the other model's configuration differs, naming the keys.
    """
    for key, parts in (("init_from", ("model",)), ("autoencoder_from", ("model", "autoencoder"))):
        source = getattr(config.train, key)
        if not source:
            continue
        other, params = load_weights(resolve(source, SHIPPED[key]))
        differing = differing_model_keys(other, config, parts)
        if differing:
            raise InputError(
                f"config.train.{key}={source!r} has another model: {', '.join(differing)} differ"
            )
        if key == "init_from":
            check_weights(params, definition(config)[1], where=f"config.train.init_from={source!r}")
            return params
        return {path: v for path, v in params.items() if path.startswith("autoencoder/")}
    return {}


def resolve(source: str, shipped: str) -> Path:
    """The folder that ``source`` means; 'shipped' is the one in the package's assets."""
    if source != "shipped":
        return Path(source)
    return Path(str(importlib.resources.files("rb_jax"))) / "assets" / shipped


def differing_model_keys(a: Config, b: Config, parts: tuple[str, ...] = ("model",)) -> list[str]:
    """Keys under ``parts`` that change what the weights mean.

    dtype and remat do not, nor the latents' scale and shift: these are known only once the
    autoencoder is trained, and belong to the flow model that uses it.
    """
    left, right = dataclasses.asdict(a), dataclasses.asdict(b)
    for part in parts:
        left, right = left[part], right[part]
    keys = differing_keys(left, right, ".".join(parts) + ".")
    return [key for key in keys if key not in MEANINGLESS]


def _read_config(path: Path) -> Config:
    try:
        return from_stored(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise InputError(f"{path}: {error}") from error


def _read_arrays(path: Path) -> Params:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from error
    checksums = json.loads(metadata.get("crc32", "{}"))
    damaged = [n for n, v in arrays.items() if checksums.get(n, 0) not in (0, zlib.crc32(v))]
    if damaged:
        raise InputError(f"{path}: damaged, the checksum of {', '.join(damaged[:8])} is wrong")
    return arrays


def _as(value: np.ndarray, dtype: str, path: str) -> np.ndarray:
    if not jax.numpy.issubdtype(value.dtype, np.floating):
        return np.ascontiguousarray(value)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(value, dtype=getattr(ml_dtypes, dtype, dtype))
    if not np.all(np.isfinite(cast.astype(np.float32)) == np.isfinite(value.astype(np.float32))):
        raise ValueError(f"{path}: some values are too large for {dtype}")
    return cast
