"""Large safetensors files, written as a stream, and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from rb_jax.errors import InputError
from rb_jax.files import writing
from rb_jax.runtime.progress import LoggedProgress, progress_bar
from rb_jax.weights.safetensors.header import (
    CHECKSUMS,
    DTYPES,
    MAX_AXES,
    MAX_HEADER_BYTES,
    name_problem,
)

# A checksum and a step of the progress bar go over a chunk. It is written in pieces: with a
# mebibyte or more at once, Linux takes several times as long for the same bytes.
CHUNK_BYTES, PIECE_BYTES = 2**24, 2**18
T = TypeVar("T")
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


def write_tensors(
    folder: Path,
    stem: str,
    specs: Sequence[TensorSpec],
    produce: Callable[[str], Iterable[np.ndarray]],
    *,
    metadata: Mapping[str, str] | None = None,
    checksums: bool = False,
    shard_bytes: int = 5 * 10**9,
    label: str = "",
    progress: bool = False,
) -> list[Path]:
    """Writes the tensors, in this order, to ``stem``.safetensors; returns the files' paths.

    ``produce(name)`` gives C-contiguous arrays of the tensor's dtype whose bytes, in order, are
    the tensor. What exceeds ``shard_bytes`` goes to numbered files with an index, as Hugging
    Face's libraries lay them out. ``checksums`` stores each tensor's CRC-32 for
    ``reader.verify``. Files are not synced to the disk: ``new_folder`` does that.

    Raises ValueError for specs that no file can hold and for what ``produce`` gives against its
    spec, and InputError when the disk is full or fails. After any error no file is left.
    """
    _check_specs(specs)
    shards = _split(specs, shard_bytes)
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    paths = [folder / name for name in (names if len(shards) > 1 else [f"{stem}.safetensors"])]
    total = sum(spec.size for spec in specs)
    index = folder / f"{stem}.safetensors.index.json"
    _check_room([*paths, index], total)
    try:
        with progress_bar(total, label, "B", enabled=progress) as bar:
            for path, shard in zip(paths, shards, strict=True):
                _write_shard(path, shard, produce, dict(metadata or {}), checksums, bar)
        if len(shards) > 1:
            pairs = zip(paths, shards, strict=True)
            weight_map = {spec.name: path.name for path, shard in pairs for spec in shard}
            content = {"metadata": {"total_size": total}, "weight_map": weight_map}
            with writing(index):
                index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            return [*paths, index]
    except BaseException:
        for path in [*paths, index]:
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    return paths


def _check_specs(specs: Sequence[TensorSpec]) -> None:
    """ValueError for what the reader would refuse."""
    names = set()
    for spec in specs:
        problem = name_problem(spec.name)
        if spec.name in names:
            problem = "is there twice"
        elif spec.dtype not in _CODES:
            problem = f"dtype {spec.dtype} is not supported"
        elif len(spec.shape) > MAX_AXES or any(axis < 0 for axis in spec.shape):
            problem = f"shape {spec.shape} is not supported"
        if problem:
            raise ValueError(f"{spec.name}: {problem}")
        names.add(spec.name)


def _check_room(paths: list[Path], total: int) -> None:
    """InputError when one of the files is there already, or the disk cannot hold the bytes."""
    folder = paths[0].parent
    with writing(folder):
        there = [path for path in paths if path.exists()]
        free = shutil.disk_usage(folder).free
    if there:
        raise InputError(f"{there[0]}: exists already")
    if total > free:
        raise InputError(f"{folder}: needs {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _split(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Consecutive tensors of at most ``shard_bytes`` together; a larger one is alone."""
    shards, filled = [[]], 0
    for spec in specs:
        if shards[-1] and filled + spec.size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.size
    return shards


def _write_shard(
    path: Path,
    specs: list[TensorSpec],
    produce: Callable[[str], Iterable[np.ndarray]],
    metadata: dict[str, str],
    checksums: bool,
    bar: tqdm | LoggedProgress,
) -> None:
    """One file. Checksums are known last: their place in the header is kept until then."""
    computed = {spec.name: 0 for spec in specs} if checksums else None
    with writing(path):
        # Unbuffered: what is written is large, and closing cannot fail on what is left in a buffer.
        file = io.FileIO(path, "x")
    with file, ThreadPoolExecutor(1) as pool:
        _write(path, file, _header(specs, metadata, computed))
        arrays = groupby(_ahead(_arrays(specs, produce)), key=lambda pair: pair[0])
        for spec, group in arrays:
            checksum = 0
            for chunk in _chunks(spec, (array for _, array in group)):
                task = pool.submit(zlib.crc32, chunk, checksum) if checksums else None
                _write(path, file, chunk)
                checksum = task.result() if task else 0
                bar.update(len(chunk))
            if computed is not None:
                computed[spec.name] = checksum
        if computed is not None:
            with writing(path):
                file.seek(0)
            _write(path, file, _header(specs, metadata, computed))
        with writing(path):
            file.close()


def _header(
    specs: list[TensorSpec], metadata: dict[str, str], checksums: dict[str, int] | None
) -> bytes:
    """Length prefix and JSON, padded so that the data start at a multiple of eight bytes.

    Its length does not depend on the checksums' values.
    """
    if checksums is not None:
        digits = {name: f"{checksum:08x}" for name, checksum in checksums.items()}
        metadata = {**metadata, CHECKSUMS: json.dumps(digits)}
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.size],
        }
        offset += spec.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes is more than safetensors allows")
    return len(text).to_bytes(8, "little") + text


def _arrays(
    specs: list[TensorSpec], produce: Callable[[str], Iterable[np.ndarray]]
) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """What is produced for each tensor, at least one array."""
    for spec in specs:
        yield spec, np.empty(0, spec.dtype)
        for array in produce(spec.name):
            yield spec, array


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made by another thread while the one before is used."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item


def _chunks(spec: TensorSpec, arrays: Iterable[np.ndarray]) -> Iterator[memoryview]:
    """The bytes of a tensor piece by piece; ValueError when they are not what ``spec`` says."""
    left = spec.size
    for array in arrays:
        if array.dtype != spec.dtype or not array.flags.c_contiguous:
            order = "" if array.flags.c_contiguous else ", not C-contiguous"
            raise ValueError(f"{spec.name}: got {array.dtype}{order}, not {spec.dtype}")
        left -= array.nbytes
        if left < 0:
            break
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]
    if left:
        raise ValueError(f"{spec.name}: got {spec.size - left} bytes or more, not {spec.size}")


def _write(path: Path, file: io.FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    with writing(path):
        while view:
            view = view[file.write(view[:PIECE_BYTES]) :]
