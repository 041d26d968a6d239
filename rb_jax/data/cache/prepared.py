"""A data set made ready once: rendered, tokenised, segmented, encoded, and memory-mapped.

A folder holds one ``.npy`` file for each field of ``Batch``, one row per example, and
``meta.json`` with the fingerprint of all that determined them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from rb_jax.config import Config
from rb_jax.data.formats import shards
from rb_jax.data.formats.reason50k import read_manifest
from rb_jax.data.pipeline import loader
from rb_jax.data.pipeline.collate import OBJECT_TOKENS
from rb_jax.data.pipeline.order import Order, whole
from rb_jax.errors import InputError
from rb_jax.files import locked
from rb_jax.models.types import Batch, Text
from rb_jax.runtime.progress import progress_bar

# Of the layout and of the values: whoever changes what is drawn, read, segmented or tokenised
# raises it, and tests/data/cache/test_prepared.py notices when that is forgotten.
VERSION = 3
CHUNK = 64  # examples made, or encoded, at a time
POOL_FROM = 1024  # examples from which starting more processes pays off
POOL = max(2, min(16, os.cpu_count() or 1))  # of them; more would wait for the one that writes

_LOCK = "lock"  # held by the process that fills an unfinished folder

EncodeLatents = Callable[[UInt8[np.ndarray, "B Y X 3"]], Float[Any, "B H W C"]]


class Prepared:
    """A finished folder, opened read-only."""

    def __init__(self, folder: str | os.PathLike[str]):
        """InputError if the folder is not a finished one."""
        self.folder = Path(folder)
        meta = _read_meta(self.folder)
        if meta is None:
            raise InputError(f"{folder}: not a prepared data set; prepare it (again)")
        self.fingerprint: str = meta["fingerprint"]
        try:
            self._fields = {
                name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in meta["fields"]
            }
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{folder}: damaged ({error}); delete it and prepare again") from error

    def __len__(self) -> int:
        return len(self._fields["source"])

    def __getitem__(self, numbers: Int[np.ndarray, " B"] | slice) -> Batch:
        """The examples with these numbers, copied out of the files; latents are float16."""
        return _to_batch({name: np.array(values[numbers]) for name, values in self._fields.items()})

    def batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rows: Int[np.ndarray, " R"] | None = None,
    ) -> Iterator[Batch]:
        """The endless stream of batches, in the order of ``loader.batches``."""
        order = Order(batch_size, seed, start_step, rows)
        return loader.ordered(whole(len(self)), order, self.__getitem__, threads=1)


def prepare(
    config: Config,
    split: str,
    folder: str | os.PathLike[str],
    encode_latents: EncodeLatents | None = None,
    fingerprint: str = "",
    progress: bool = True,
) -> Prepared:
    """Makes the split of the configuration's data set ready in ``folder``, or reuses it.

    ``encode_latents`` maps pictures to latents, stored as float16; ``fingerprint`` says which
    encoder it is and is required with it. A finished folder made from the same ingredients is
    reused, one from others is replaced. InputError if the data set is broken or ``folder`` holds
    something else.
    """
    if (encode_latents is None) != (fingerprint == ""):
        raise ValueError("encode_latents and its fingerprint go together")
    folder = Path(folder)
    wanted = dataset_fingerprint(config, split, fingerprint)
    meta = _read_meta(folder)
    if meta is not None and meta["fingerprint"] == wanted:
        return Prepared(folder)
    if meta is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not a prepared data set; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    lock = contextlib.ExitStack()
    lock.enter_context(locked(partial / _LOCK, wait=False))
    try:
        fields = _write_fields(config, split, partial, progress)
        if encode_latents is not None:
            fields += _write_latents(partial, encode_latents, progress)
        text = json.dumps({"version": VERSION, "fingerprint": wanted, "fields": fields}, indent=1)
        (partial / "meta.json").write_text(text + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp's folders are private
        (partial / _LOCK).unlink()
        _publish(partial, folder, wanted)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.close()
    return Prepared(folder)


def _sweep(folder: Path) -> None:
    """Removes what processes that were killed left beside ``folder``."""
    for partial in folder.parent.glob(f".{folder.name}.*"):
        # Without a lock it is not ours; with one that is held somebody is at work there.
        with contextlib.suppress(OSError), locked(partial / _LOCK, wait=False, create=False):
            shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path, wanted: str) -> None:
    """Renames a finished folder into place, unless another process was first with the same."""
    for attempt in range(3):
        meta = _read_meta(folder)
        if meta is not None and meta["fingerprint"] == wanted:
            return
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(partial, folder)
            return
        except OSError:
            if attempt == 2:
                raise


def dataset_fingerprint(config: Config, split: str, encoder: str = "") -> str:
    """SHA-256 over everything that determines the values of a prepared split."""
    collator = loader.Collator(config)
    data = dataclasses.asdict(config.data)
    for key in ("workers", "prepare", "prepared_dir", "split", "val_split"):
        del data[key]  # these decide how and when, not what
    ingredients = {
        "version": VERSION,
        "data": data,
        "split": split,
        "tokenizers": [collator.text_tokenizer.fingerprint, collator.prompt_tokenizer.fingerprint],
        "lengths": [collator.text_length, collator.prompt_length, OBJECT_TOKENS],
        "sizes": [collator.max_objects, collator.max_regions, collator.grid],
        "encoder": encoder,
        "pictures_only": collator.pictures_only,
    }
    if config.data.name == "folder":
        ingredients["folder"] = folder_hash(config.data.path, split, collator.pictures_only)
    if config.data.name == "records":
        ingredients["records"] = dataclasses.asdict(shards.read_manifest(config.data.path, split))
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def folder_hash(path: str, split: str, pictures_only: bool = False) -> str:
    """Hash of a manifest's records with the sizes and times of their files, which are not read."""
    digest = hashlib.sha256()
    for record in read_manifest(path, split, pictures_only):
        record = dataclasses.replace(record, place="")  # a blank line more changes nothing
        stats = [os.stat(file) for file in (record.source, record.target)]
        digest.update(repr((record, [(s.st_size, s.st_mtime_ns) for s in stats])).encode())
    return digest.hexdigest()


def _write_fields(config: Config, split: str, folder: Path, progress: bool) -> list[str]:
    """Writes a file for each field of the collated examples; returns the fields' names."""
    count = len(loader.open_checked(config, split, loader.Collator(config)))
    files: dict[str, np.ndarray] = {}
    with progress_bar(count, f"preparing {split}", "example", enabled=progress) as bar:
        for start, arrays in _chunks(config, split, count):
            for name, values in arrays.items():
                if name not in files:
                    shape = (count, *values.shape[1:])
                    files[name] = np.lib.format.open_memmap(
                        folder / f"{name}.npy", "w+", values.dtype, shape
                    )
                files[name][start : start + len(values)] = values
            bar.update(len(arrays["source"]))
    for values in files.values():
        values.flush()  # pyright: ignore[reportAttributeAccessIssue]
    return list(files)


def _write_latents(folder: Path, encode: EncodeLatents, progress: bool) -> list[str]:
    """Encodes the pictures of a folder; returns the names of the fields written."""
    names = [name for name in ("source", "target") if (folder / f"{name}.npy").exists()]
    for name in names:
        pictures = np.load(folder / f"{name}.npy", mmap_mode="r")
        with progress_bar(len(pictures), f"encoding {name}", "picture", enabled=progress) as bar:
            _encode_file(pictures, folder / f"{name}_latent.npy", encode, bar.update)
    return [f"{name}_latent" for name in names]


def _encode_file(
    pictures: np.ndarray, path: Path, encode: EncodeLatents, advance: Callable[[int], object]
) -> None:
    latents = None
    for start in range(0, len(pictures), CHUNK):
        chunk = np.array(pictures[start : start + CHUNK])
        # One batch size throughout: another would be compiled anew.
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], CHUNK - len(chunk), axis=0)])
        values = np.asarray(encode(padded), np.float32)[: len(chunk)].astype(np.float16)
        if not np.isfinite(values).all():
            raise ValueError(f"encode_latents gave values beyond float16 near example {start}")
        if latents is None:
            shape = (len(pictures), *values.shape[1:])
            latents = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        latents[start : start + len(values)] = values
        advance(len(values))
    if latents is not None:
        latents.flush()


def _chunks(config: Config, split: str, count: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """First number and arrays of each chunk, in order; in processes if there is enough work."""
    starts = range(0, count, CHUNK)
    done = 0
    if count >= POOL_FROM and _can_spawn():
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(POOL, context, _start_worker, (config, split)) as pool:
            try:
                for start, arrays in zip(starts, pool.map(_work, starts), strict=True):
                    yield start, arrays
                    done += 1
                return
            except BrokenProcessPool:
                pass  # e.g. a script without a __main__ guard: go on in this process
            finally:
                pool.shutdown(cancel_futures=True)
    worker = _Worker(config, split)
    for start in starts[done:]:
        yield start, worker(start)


def _can_spawn() -> bool:
    """Spawned processes import __main__ again; code typed into an interpreter has no such file."""
    if multiprocessing.parent_process() is not None:
        return False
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return True
    path = getattr(main, "__file__", None)
    return path is not None and os.path.exists(path)


class _Worker:
    def __init__(self, config: Config, split: str):
        self._collate = loader.Collator(config)
        pictures_only = self._collate.pictures_only
        self._source = loader.open_source(config.data, split, pictures_only=pictures_only)

    def __call__(self, start: int) -> dict[str, np.ndarray]:
        stop = min(start + CHUNK, len(self._source))
        return _to_arrays(self._collate(loader.take(self._source, range(start, stop))))


_worker: _Worker | None = None  # one for each process of the pool


def _start_worker(config: Config, split: str) -> None:
    global _worker
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = _Worker(config, split)


def _die_with_parent() -> None:
    """Ends this process when its parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(start: int) -> dict[str, np.ndarray]:
    if _worker is None:
        raise RuntimeError("the worker was not started")
    return _worker(start)


def _to_arrays(batch: Batch) -> dict[str, np.ndarray]:
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Text):
            arrays[f"{field.name}_ids"], arrays[f"{field.name}_mask"] = value.ids, value.mask
        elif value is not None:
            arrays[field.name] = value
    return arrays


def _to_batch(arrays: dict[str, np.ndarray]) -> Batch:
    values: dict[str, Any] = {"target": None}
    for name, array in arrays.items():
        if name.endswith("_ids"):
            stem = name.removesuffix("_ids")
            mask: Any = arrays[f"{stem}_mask"]
            values[stem] = Text(ids=array, mask=mask)  # pyright: ignore[reportArgumentType]
        elif f"{name.removesuffix('_mask')}_ids" not in arrays:
            values[name] = array
    return Batch(**values)


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """A finished folder's description, None if there is none."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    good = isinstance(meta, dict) and isinstance(meta.get("fingerprint"), str)
    return meta if good and isinstance(meta.get("fields"), list) else None
