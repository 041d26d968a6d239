"""Reading checkpoints outside of training: to edit, evaluate and export with, and to compare."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rb_jax.checkpoint import fingerprints, layout, seal
from rb_jax.config import Config, ConfigError, from_stored
from rb_jax.errors import InputError, listed
from rb_jax.storage import check_there, place, reaching
from rb_jax.weights.folder import STEM, has_weights, open_weights, resolve
from rb_jax.weights.folder import stored_config as folder_config
from rb_jax.weights.params import Params, check_weights, definition

T = TypeVar("T")
Source = str | os.PathLike[str]


def find(folder: Source) -> tuple[epath.Path, int | None] | None:
    """Where the checkpoints are and which step is meant (None: the newest), or None if nowhere.

    ``folder`` may be a workdir, its checkpoints folder, or one checkpoint.
    """
    root = place(folder)
    with reaching(root):
        layout.refuse_old(root)
        if root.name.isdecimal() and (root / layout.LOOP).is_dir():
            return root.parent, int(root.name)
        for where in (root / layout.FOLDER, root):
            if layout.steps(where):
                return where, None
    return None


def newest_good(folder: Source, read: Callable[[epath.Path], T]) -> T:
    """What ``read`` makes of the checkpoint that ``folder`` means, its files verified.

    Of a workdir the newest that is whole, with a warning about those that are not; ``read`` raises
    InputError for one that it finds damaged. Raises InputError when there is none.
    """
    location = find(folder)
    if location is None:
        check_there(epath.Path(folder))
        raise InputError(f"{folder}: no checkpoint in it")
    where, chosen = location
    with reaching(where):
        for step in [chosen] if chosen is not None else reversed(layout.steps(where)):
            each = where / str(step)
            layout.refuse_old(each)
            wrong = layout.problems(each)
            if not wrong:
                try:
                    return read(each)
                except layout.Damaged as error:
                    wrong = [str(error)]
            text = f"{each} is damaged: {listed(wrong, '; ')}"
            if chosen is not None:
                raise InputError(text)
            warnings.warn(f"{text}; looking for an older one", stacklevel=2)
    raise layout.none_good(where)


def stored_config(source: Source) -> Config:
    """The configuration of a weights folder, a workdir or "shipped"; InputError without one."""
    folder = resolve(source)
    if has_weights(folder) or not find(folder):
        return folder_config(folder)
    return newest_good(folder, _config_of)


def load_weights(source: Source) -> tuple[Config, Params]:
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
        check_there(epath.Path(folder))
        raise InputError(f"{folder}: no {STEM}.safetensors and no checkpoint in it")
    check_weights(params, definition(config)[1], where=f"the weights in {folder}")
    return config, params


def load_ema(folder: Source) -> tuple[Config, Params]:
    """Configuration and weights (NumPy; trainable ones as their running average) of a checkpoint.

    Raises InputError when there is none, or it cannot be read.
    """

    def read(each: epath.Path) -> tuple[Config, Params]:
        trained = layout.EMA if layout.EMA in layout.items_of(each) else None
        arrays = _arrays(each, [trained or layout.PARAMS])
        return _config_of(each), {path: x for item in arrays.values() for path, x in item.items()}

    return newest_good(folder, read)


def load_arrays(folder: Source) -> dict[str, np.ndarray]:
    """Every value of a checkpoint's state, by ``layout.flat``'s names."""
    names = {item: first for first, item in layout.ITEMS.items()}

    def read(each: epath.Path) -> dict[str, np.ndarray]:
        arrays = _arrays(each, layout.items_of(each))
        scalars = layout.read_loop(each)["scalars"]
        found = {name: np.asarray(x["value"], x["dtype"]) for name, x in scalars.items()}
        for item, tree in arrays.items():
            found |= {f"{names.get(item, item)}/{path}": x for path, x in tree.items()}
        return found

    return newest_good(folder, read)


def state_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: equal if and only if every bit is."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, str(array.dtype), array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _config_of(each: epath.Path) -> Config:
    try:
        return from_stored(layout.read_loop(each)["config"])
    except ConfigError as error:
        raise InputError(f"{each}: {error}") from error


def _arrays(each: epath.Path, items: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """These items of a checkpoint and its frozen parameters, as NumPy arrays; or Damaged."""
    folders = {item: (each / item, each) for item in items}
    if hash_ := layout.read_loop(each)["frozen"]:
        if wrong := layout.frozen_problems(each, hash_):
            raise layout.Damaged(listed(wrong, "; "))
        frozen = layout.frozen_folder(each, hash_)
        folders[layout.FROZEN] = frozen, frozen
    arrays = {}
    for item, (folder, sealed) in folders.items():
        there = layout.array_metadata(folder)
        arrays[item] = layout.read_arrays(
            folder, {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in there}
        )
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            found = fingerprints.of(arrays[item])
        if wrong := seal.differences(sealed, item, found):
            raise layout.Damaged(listed(wrong, "; "))
    return arrays
