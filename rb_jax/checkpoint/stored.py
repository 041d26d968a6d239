"""Reading checkpoints outside of training: to edit, evaluate and export with, and to compare."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from rb_jax.checkpoint import manager as checkpoint
from rb_jax.config import Config, ConfigError, from_stored
from rb_jax.errors import InputError, listed
from rb_jax.weights.folder import STEM, has_weights, open_weights, resolve
from rb_jax.weights.folder import stored_config as folder_config
from rb_jax.weights.params import Params, check_weights, definition


def find(folder: str | Path) -> tuple[Path, int | None] | None:
    """Where the checkpoints are and which step is meant (None: the newest), or None if nowhere.

    ``folder`` may be a workdir, its checkpoints folder, or one checkpoint.
    """
    folder = Path(folder).resolve()
    if folder.name.isdecimal() and (folder / checkpoint.STATE).is_dir():
        return folder.parent, int(folder.name)
    for place in (folder / checkpoint.FOLDER, folder):
        if checkpoint.steps(place):
            return place, None
    return None


def open_good(folder: str | Path) -> Path:
    """The checkpoint that ``folder`` means, its files verified.

    Of a workdir the newest that is whole, with a warning about those that are not. Raises
    InputError when there is none.
    """
    location = find(folder)
    if location is None:
        raise InputError(f"{folder}: no checkpoint in it")
    place, step = location
    for each in [step] if step is not None else reversed(checkpoint.steps(place)):
        wrong = checkpoint.problems(place / str(each))
        if not wrong:
            return place / str(each)
        text = f"{place}/{each} is damaged: {listed(wrong, '; ')}"
        if step is not None:
            raise InputError(text)
        warnings.warn(f"{text}; looking for an older one", stacklevel=2)
    raise checkpoint.none_good(place)


def stored_config(source: str | Path) -> Config:
    """The configuration of a weights folder, a workdir or "shipped"; InputError without one."""
    folder = resolve(source)
    if has_weights(folder) or not find(folder):
        return folder_config(folder)
    return _config_of(open_good(folder), folder)


def load_weights(source: str | Path) -> tuple[Config, Params]:
    """Configuration and arrays (path -> NumPy array, as stored) of a weights folder or a workdir.

    "shipped" is the editing model that comes with the package. Of a training workdir, or one of its
    checkpoints, the newest running-average weights are taken. Raises InputError when nothing is
    there, when a file is damaged, and when the paths or shapes are not exactly those of the
    configuration's model.
    """
    folder = resolve(source)
    if has_weights(folder):
        config, files = open_weights(folder)
        params = {path: files.read(path, checksum=True) for path in files}
    elif find(folder):
        config, params = load_ema(folder)
    else:
        raise InputError(f"{folder}: no {STEM}.safetensors and no checkpoint in it")
    check_weights(params, definition(config)[1], where=f"the weights in {folder}")
    return config, params


def load_ema(folder: str | Path) -> tuple[Config, Params]:
    """Configuration and weights (NumPy; trainable ones as their running average) of a checkpoint.

    Raises InputError when there is none, or it cannot be read.
    """
    place = open_good(folder)
    there = checkpoint.array_metadata(place)
    trained = "ema/" if any(name.startswith("ema/") for name in there) else "params/"
    arrays = _numpy(place, [name for name in there if name.startswith((trained, "frozen/"))])
    return _config_of(place, folder), {
        name.split("/", 1)[1]: value for name, value in arrays.items()
    }


def _config_of(place: Path, folder: str | Path) -> Config:
    try:
        return from_stored(checkpoint.read_metadata(place)["config"])
    except ConfigError as error:
        raise InputError(f"{folder}: {error}") from error


def load_arrays(folder: str | Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint's state, by ``checkpoint.flat``'s names."""
    place = open_good(folder)
    return _numpy(place, list(checkpoint.array_metadata(place)))


def state_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: equal if and only if every bit is."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, str(array.dtype), array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _numpy(place: Path, names: list[str]) -> dict[str, Any]:
    return checkpoint.read_arrays(
        place, {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    )
