"""Checkpoints from outside: safetensors files, and pickles where the caller allows them.

A checkpoint may be hostile and larger than memory. Its header is checked whole before a number in
it is used, and tensors are read one at a time into arrays of their own. Nothing is mapped into
memory where that can be avoided: mapped pages count as the process's memory once touched.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from rb_jax.errors import InputError, reason
from rb_jax.weights.safetensors.header import (
    MAX_HEADER_BYTES,
    TensorInfo,
    listed,
    name_problem,
    parse_json,
    read_header,
    refuse,
    show,
)
from rb_jax.weights.safetensors.pickle import PickleReader, read_pickle

SAFETENSORS, PICKLES, INDEX = (".safetensors",), (".bin", ".pt", ".pth", ".ckpt"), ".index.json"
# What checkpoints are called in the folders of Hugging Face's libraries.
STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


class TensorFiles(Mapping[str, TensorInfo]):
    """The tensors of one checkpoint, in the order of its files; made by ``TensorFiles.open``.

    ``metadata`` is that of the files' headers (a later shard's value wins) without the checksums,
    which are in ``checksums``: name -> CRC-32.
    """

    def __init__(
        self,
        infos: dict[str, TensorInfo],
        metadata: dict[str, str],
        checksums: dict[str, int],
        read_bytes: Callable[[TensorInfo, int, int], np.ndarray],
    ):
        self._infos, self._read_bytes = infos, read_bytes
        self.metadata, self.checksums = metadata, checksums

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, allow_pickle: bool = False) -> TensorFiles:
        """Opens a file, the index of a sharded checkpoint, or the folder that holds either.

        Reads and checks headers only. Raises InputError when nothing or more than one checkpoint
        is there, when files are damaged or do not belong together, and for a pickle unless
        ``allow_pickle``: then torch.load(weights_only=True) reads it.
        """
        path = Path(path)
        try:
            return _open(path, allow_pickle)
        except OSError as error:
            raise InputError(
                f"{error.filename or path}: cannot be read ({reason(error)})"
            ) from error

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    @property
    def nbytes(self) -> int:
        return sum(info.size for info in self.values())

    def read(self, name: str, *, checksum: bool = False) -> np.ndarray:
        """The tensor as a new array.

        Raises InputError when the file cannot be read or was cut off since, and, with
        ``checksum``, when the tensor differs from the checksum stored with it, if there is one.
        """
        info = self[name]
        data = self._read_bytes(info, 0, info.size)
        if checksum and name in self.checksums and zlib.crc32(data.data) != self.checksums[name]:
            raise InputError(damaged(info))
        return data.view(info.dtype).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """``read(name)[start:stop]``, reading no more than that; ValueError outside the tensor."""
        info = self[name]
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise ValueError(f"{name}: no rows {start}:{stop} in shape {info.shape}")
        shape = (stop - start, *info.shape[1:])
        row = info.dtype.itemsize * math.prod(info.shape[1:])
        data = self._read_bytes(info, start * row, (stop - start) * row)
        return data.view(info.dtype).reshape(shape)


class CheckedFiles(TensorFiles):
    """Files whose checksums are compared as they are read: whole tensors, and rows in order."""

    def __init__(self, files: TensorFiles):
        super().__init__(files._infos, files.metadata, files.checksums, files._read_bytes)
        self._so_far: dict[str, tuple[int, int]] = {}  # rows read, and their checksum

    def read(self, name: str, *, checksum: bool = True) -> np.ndarray:
        return super().read(name, checksum=checksum)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """As ``TensorFiles.read_rows``; with the last of rows read in order they are compared."""
        rows = super().read_rows(name, start, stop)
        count, checksum = self._so_far.get(name, (0, 0)) if start else (0, 0)
        if start == count and name in self.checksums:
            checksum = zlib.crc32(rows.reshape(-1).view(np.uint8).data, checksum)
            self._so_far[name] = (stop, checksum)
            if stop == self[name].shape[0] and checksum != self.checksums[name]:
                raise InputError(damaged(self[name]))
        return rows


def damaged(info: TensorInfo) -> str:
    return f"{info.file}: damaged, the checksum of {show(info.name)} is wrong"


def verify(files: TensorFiles) -> None:
    """Reads every tensor that has a checksum; InputError names the first that differs from it."""
    for name in files.checksums:
        files.read(name, checksum=True)


def _open(path: Path, allow_pickle: bool) -> TensorFiles:
    path = _find(path)
    pickled = _kind(path.name) == PICKLES
    if pickled and not allow_pickle:
        raise InputError(
            f"{path}: a pickle, which can run code when it is read; use safetensors files, or "
            f"convert it: rb-jax import --source={shlex.quote(str(path))} --allow_pickle ... "
            "(reads it with torch.load(weights_only=True))"
        )
    weight_map = _read_index(path) if path.name.endswith(INDEX) else None
    shards = [path] if weight_map is None else _shards(path, weight_map)
    parts = [read_pickle(shard) if pickled else read_header(shard) for shard in shards]
    if weight_map is not None:
        held = {(name, info.file.name) for infos, _, _ in parts for name, info in infos.items()}
        mapped = set(weight_map.items())
        problems = [f"{show(n)}: is not in its file {f}" for n, f in sorted(mapped - held)]
        problems += [f"{show(n)}: in {f}, not in the index" for n, f in sorted(held - mapped)]
        refuse(path, problems)
    return TensorFiles(
        {name: info for infos, _, _ in parts for name, info in infos.items()},
        {key: value for _, metadata, _ in parts for key, value in metadata.items()},
        {name: value for _, _, checksums in parts for name, value in checksums.items()},
        PickleReader().read_bytes if pickled else _read_bytes,
    )


def _kind(name: str) -> tuple[str, ...] | None:
    """SAFETENSORS or PICKLES, for a file of tensors as for an index of such files."""
    name = name.removesuffix(INDEX)
    return next((kind for kind in (SAFETENSORS, PICKLES) if name.endswith(kind)), None)


def _find(path: Path) -> Path:
    """The file of tensors or the index that ``path`` means."""
    if path.is_file():
        if _kind(path.name) is None:
            raise InputError(f"{path}: not a checkpoint; give a .safetensors file or its folder")
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    names = sorted(p.name for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    for kind in (SAFETENSORS, PICKLES):
        stems = {n: n.removesuffix(INDEX).rpartition(".")[0] for n in names if _kind(n) == kind}
        candidates = [name for name, stem in stems.items() if stem in STEMS]
        candidates = candidates or [name for name, stem in stems.items() if not _SHARD.search(stem)]
        if len(candidates) > 1:
            raise InputError(
                f"{path}: several checkpoints; give the path of one: {listed(candidates)}"
            )
        if candidates:
            return path / candidates[0]
        if stems:
            raise InputError(f"{path}: has parts but no {INDEX}: {listed(list(stems))}")
    raise InputError(f"{path}: no .safetensors file in it")


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> name of a file in the index's folder."""
    with open(path, "rb") as file:
        raw = file.read(MAX_HEADER_BYTES + 1)
    index, problems = parse_json(raw, path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: no weight_map in it")
    for name, shard in weight_map.items():
        problem = name_problem(name)
        plain = isinstance(shard, str) and shard.isprintable() and not re.search(r"[/\\]", shard)
        if not plain or shard.endswith(INDEX) or _kind(shard) != _kind(path.name):
            problem = f"{show(shard)} is not the name of a {'/'.join(_kind(path.name) or ())} file"
        if problem:
            problems.append(f"{show(name)}: {problem}")
    refuse(path, problems)
    return weight_map


def _shards(index: Path, weight_map: dict[str, str]) -> list[Path]:
    """The index's files; InputError lists those that are missing or in another folder."""
    folder = index.parent.resolve()
    # In Hugging Face's cache, files under snapshots/<revision> are links to <model>/blobs.
    caches = [p.parent / "blobs" for p in folder.parents if p.name == "snapshots"][:1]
    problems = []
    shards = [index.parent / name for name in dict.fromkeys(weight_map.values())]
    for shard in shards:
        if not shard.is_file():
            problems.append(f"{show(shard.name)} is missing")
        elif not any(shard.resolve().is_relative_to(root) for root in [folder, *caches]):
            problems.append(f"{show(shard.name)} is a link that leads out of the folder")
    refuse(index, problems)
    return shards


def _read_bytes(info: TensorInfo, begin: int, size: int) -> np.ndarray:
    try:
        data = np.fromfile(info.file, np.uint8, count=size, offset=info.offset + begin)
    except (OSError, MemoryError) as error:
        raise InputError(f"{info.file}: cannot read {show(info.name)} ({error})") from error
    if len(data) != size:
        raise InputError(f"{info.file}: was cut off while it was read")
    return data
