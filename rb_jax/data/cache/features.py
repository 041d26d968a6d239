"""The feature cache on disk: what the frozen encoders say of every example.

``SPLIT-00000-of-00003.features`` and ``SPLIT.features.json``. A shard is one example after the
other, all of the same size: the arrays (those of FeatureBatch, without the leading axis) as they
lie in memory, in the order of the manifest's ``fields``, then a checksum of 16 bytes over them and
their place. So a batch is read into its arrays without a copy between. rb_jax.data.cache.encode
writes it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Int, UInt8

from rb_jax.config import Config, differing_keys
from rb_jax.data.formats import shards
from rb_jax.data.formats.shards import Shard, check_shard, describe_shard, shard_name, write_chunks
from rb_jax.data.pipeline import loader
from rb_jax.data.pipeline.order import Order, whole
from rb_jax.errors import InputError, reason
from rb_jax.models.types import ENCODERS, FeatureBatch, Features, Text

# Of the files' layout and of all that is done to a picture or a text before an encoder sees it:
# a change of either makes older caches unusable.
VERSION = 3
_CHECKSUM_BYTES = 16
_BLOCK = 4096  # bytes
_OPEN_FILES = 256

Rows = UInt8[np.ndarray, "B _"]  # bytes of examples


@dataclasses.dataclass(frozen=True)
class FeatureManifest:
    """What ``SPLIT.features.json`` says."""

    version: int
    split: str
    preprocessing: dict[str, Any]  # ``preprocessing`` of the configuration
    encoders: str  # SHA-256 over the encoders' weights
    source: dict[str, Any]  # which data set
    fields: dict[str, list[Any]]  # name -> [dtype, shape of one example]
    examples: int
    shards: list[Shard]


def preprocessing(config: Config) -> dict[str, Any]:
    """All values of a configuration on which the features depend, the weights left aside."""
    model, collator = config.model, loader.Collator(config)
    used = ["vision", "text", "regions", "autoencoder"]
    used += ["sam"] if model.regions.encoder == "sam" else []
    return {
        "model": {name: _plain(dataclasses.asdict(getattr(model, name))) for name in used},
        "dtype": model.dtype,
        "image_size": config.data.image_size,
        "max_objects": collator.max_objects,
        "prompt_length": collator.prompt_length,
        "tokenizers": {
            "text": collator.text_tokenizer.fingerprint,
            "prompt": collator.prompt_tokenizer.fingerprint,
        },
    }


def _plain(values: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(values))


def weights_hash(weights: Mapping[str, Any]) -> str:
    """SHA-256 over the encoders' arrays among these (path -> array): names, dtypes, bytes."""
    digest = hashlib.sha256()
    for path in sorted(weights):
        if path.split("/")[0] in ENCODERS:
            array = np.ascontiguousarray(weights[path])
            digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def shard_path(folder: Path, split: str, number: int, count: int) -> Path:
    return folder / shard_name(split, number, count, "features")


def manifest_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.features.json"


def read_manifest(folder: str | os.PathLike[str], split: str) -> FeatureManifest:
    """InputError if there is no such cache or its manifest is damaged."""
    path = manifest_path(Path(folder), split)
    with shards.reading(path, "rb-jax data cache", "version", VERSION) as values:
        manifest = FeatureManifest(**{**values, "shards": [Shard(**s) for s in values["shards"]]})
        shards.check_shards(manifest.shards, manifest.examples)
        for dtype, shape in manifest.fields.values():
            if not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError("the shape of a field")
            dtype_of(dtype)
    return manifest


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def flatten(batch: FeatureBatch) -> dict[str, Any]:
    """Arrays by name: "image", "prompt/ids", ..., "target_latent"."""
    named = {f.name: getattr(batch.features, f.name) for f in dataclasses.fields(Features)}
    prompt = named.pop("prompt")
    named |= {"prompt/ids": prompt.ids, "prompt/mask": prompt.mask}
    return named | {"target_latent": batch.target_latent, "category": batch.category}


def unflatten(arrays: Mapping[str, Any]) -> FeatureBatch:
    """Inverse of ``flatten``."""
    named = dict(arrays)
    prompt = Text(ids=named.pop("prompt/ids"), mask=named.pop("prompt/mask"))
    target, category = named.pop("target_latent"), named.pop("category")
    return FeatureBatch(Features(prompt=prompt, **named), target, category)


class Layout:
    """The byte layout of an example in a shard: its arrays in order, then their checksum."""

    def __init__(self, fields: Mapping[str, Sequence[Any]]):
        """``fields``: name -> [dtype, shape of one example]."""
        self.fields = {
            name: (dtype_of(dtype), tuple(shape)) for name, (dtype, shape) in fields.items()
        }
        self.sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in self.fields.values()]
        self.bytes = sum(self.sizes) + _CHECKSUM_BYTES

    def rows(self, count: int) -> list[Rows]:
        """Room for the arrays of ``count`` examples, and for their checksums."""
        return [np.empty((count, size), np.uint8) for size in (*self.sizes, _CHECKSUM_BYTES)]

    def arrays(self, rows: Sequence[Rows]) -> dict[str, np.ndarray]:
        """The same bytes, as arrays [B, ...] by name."""
        return {
            name: x.reshape(-1).view(dtype).reshape(len(x), *shape)
            for (name, (dtype, shape)), x in zip(self.fields.items(), rows[:-1], strict=True)
        }


def checksums(rows: Sequence[Rows], places: Sequence[str]) -> Rows:
    """The checksums of examples, each of which includes its place: [B, 16].

    Words are added up in blocks of 4 KiB, as fast as memory is read; the sums, what is left over
    and the place are hashed.
    """
    parts = []
    for x in rows:
        blocks = x.shape[1] // _BLOCK
        words = x[:, : blocks * _BLOCK].reshape(len(x), blocks, _BLOCK).view(np.uint64)
        parts += [words.sum(-1).view(np.uint8), x[:, blocks * _BLOCK :]]
    sums = np.concatenate(parts, axis=1)
    digests = [
        hashlib.blake2b(sums[row].tobytes() + where.encode(), digest_size=_CHECKSUM_BYTES).digest()
        for row, where in enumerate(places)
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), _CHECKSUM_BYTES)


def write_shard(path: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> Shard:
    """Writes batches of examples (name -> array [B, ...]) to a new file and flushes it to the disk.

    InputError if it cannot be written; then no file is left.
    """
    count = 0

    def content() -> Iterator[Rows]:
        nonlocal count
        for arrays in batches:
            size = len(next(iter(arrays.values())))
            rows = [
                np.ascontiguousarray(x).reshape(size, -1).view(np.uint8) for x in arrays.values()
            ]
            places = [f"{path.name}/{count + row}" for row in range(size)]
            yield np.concatenate([*rows, checksums(rows, places)], axis=1)
            count += size

    write_chunks(path, content())
    return describe_shard(path, path.name, count)


class _File:
    """An open file, closed when nobody reads from it any more."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        os.close(self.descriptor)


class FeatureCache:
    """Map-style, read-only: the features of a split."""

    def __init__(self, folder: str | os.PathLike[str], split: str):
        """InputError naming the file that is missing or is not what the manifest says."""
        self.folder = Path(folder)
        self.manifest = read_manifest(folder, split)
        self._layout = Layout(self.manifest.fields)
        shards = self.manifest.shards
        for shard in shards:
            check_shard(self.folder / shard.file, shard, verify=False)
            if shard.bytes != shard.examples * self._layout.bytes:
                raise InputError(f"{self.folder / shard.file}: not of the fields in the manifest")
        self._starts = np.cumsum([0, *(shard.examples for shard in shards)])
        self._open = functools.lru_cache(_OPEN_FILES)(lambda file: _File(self.folder / file))

    def __len__(self) -> int:
        return self.manifest.examples

    def __getitem__(self, numbers: Int[np.ndarray, " B"]) -> FeatureBatch:
        """The examples with these numbers; InputError names shard and number of a damaged one."""
        rows, located = self._layout.rows(len(numbers)), [self._find(int(n)) for n in numbers]
        for row, (shard, number) in enumerate(located):
            try:
                file = self._open(shard.file)
                into = [memoryview(x[row]) for x in rows]
                size = os.preadv(file.descriptor, into, number * self._layout.bytes)
            except OSError as error:
                raise InputError(f"{self.folder / shard.file}: {reason(error)}") from error
            if size != self._layout.bytes:
                raise InputError(f"{self.folder / shard.file}: ends within example {number}")
        places = [f"{shard.unit}/{number}" for shard, number in located]
        good = (checksums(rows[:-1], places) == rows[-1]).all(axis=1)
        if not good.all():
            shard, number = located[int(np.argmin(good))]
            raise InputError(
                f"{self.folder / shard.file}: example {number} is damaged; delete the shard and "
                "compute the cache again"
            )
        return unflatten(self._layout.arrays(rows))

    def _find(self, row: int) -> tuple[Shard, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.manifest.shards[shard], int(row - self._starts[shard])

    def batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rows: Int[np.ndarray, " R"] | None = None,
        threads: int = 2,
    ) -> Iterator[FeatureBatch]:
        """The endless stream of batches, in the order of ``loader.batches``."""
        order = Order(batch_size, seed, start_step, rows)
        return loader.ordered(whole(len(self)), order, self.__getitem__, threads)

    def check(self, config: Config) -> None:
        """InputError naming the values in which a configuration would make other features."""
        keys = differing_keys(self.manifest.preprocessing, preprocessing(config))
        if keys:
            raise InputError(
                f"{self.folder}: these features were made with other settings: "
                f"{', '.join(keys)} differ; compute the cache again"
            )
