"""The feature cache on disk: what the frozen encoders say of every example.

``SPLIT-00000-of-00003.array_record`` and ``SPLIT.features.json``. A record is a stamp of its place
and size (16 bytes) and then the arrays of one example (those of FeatureBatch, without the leading
axis) as they lie in memory, in the order of the manifest's ``fields``. ArrayRecord's own hash
notices changed bytes; the stamp notices records and files in another one's place.
rb_jax.encoders.cache writes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Int

from rb_jax.config import Config, differing_keys
from rb_jax.data import loader
from rb_jax.data.order import Order, whole
from rb_jax.data.shards import Shard, check_shard, open_files, reason_of
from rb_jax.errors import InputError
from rb_jax.types import ENCODERS, FeatureBatch, Features, Text

# Of the files' layout and of all that is done to a picture or a text before an encoder sees it:
# a change of either makes older caches unusable.
VERSION = 2
_STAMP_BYTES = 16
_MAX_MANIFEST = 64 * 2**20


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


def manifest_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.features.json"


def read_manifest(folder: str | os.PathLike[str], split: str) -> FeatureManifest:
    """InputError if there is no such cache or its manifest is damaged."""
    path = manifest_path(Path(folder), split)
    if not path.is_file():
        found = Path(folder).glob("*.features.json")
        splits = ", ".join(sorted(p.name.removesuffix(".features.json") for p in found)) or "none"
        raise InputError(
            f"{path}: no finished feature cache; splits in this folder: {splits} "
            "(rb-jax data cache)"
        )
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise InputError(f"{path}: larger than {_MAX_MANIFEST >> 20} MiB")
        values = json.loads(path.read_text("utf-8"))
        if values["version"] != VERSION:
            raise InputError(
                f"{path}: version {values['version']}, and this program reads {VERSION}: "
                "compute the cache again"
            )
        manifest = FeatureManifest(**{**values, "shards": [Shard(**s) for s in values["shards"]]})
        _check(manifest)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged manifest ({reason_of(error)})") from None
    return manifest


def _check(manifest: FeatureManifest) -> None:
    names = [shard.file for shard in manifest.shards]
    if any(name in (".", "..") or "/" in name or "\0" in name for name in names):
        raise ValueError("a shard outside the folder")
    if sum(shard.examples for shard in manifest.shards) != manifest.examples:
        raise ValueError("the shards' examples do not add up")
    for dtype, shape in manifest.fields.values():
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("the shape of a field")
        dtype_of(dtype)


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


def encode(example: Mapping[str, np.ndarray], place: str) -> bytes:
    """One example's arrays as a record; ``place`` names where it will lie."""
    body = b"".join(np.ascontiguousarray(x).tobytes() for x in example.values())
    return _stamp(place, len(body)) + body


def _stamp(place: str, size: int) -> bytes:
    return hashlib.blake2b(f"{place} {size}".encode(), digest_size=_STAMP_BYTES).digest()


class FeatureCache:
    """Map-style, read-only: the features of a split."""

    def __init__(self, folder: str | os.PathLike[str], split: str):
        """InputError naming the file that is missing or is not what the manifest says."""
        self.folder = Path(folder)
        self.manifest = read_manifest(folder, split)
        shards = self.manifest.shards
        for shard in shards:
            check_shard(self.folder / shard.file, shard, verify=False)
        self._starts = np.cumsum([0, *(shard.examples for shard in shards)])
        self._data = open_files([(self.folder / s.file, s.examples) for s in shards])
        self._fields = {
            name: (dtype_of(dtype), tuple(shape))
            for name, (dtype, shape) in self.manifest.fields.items()
        }
        self._bytes = sum(dtype.itemsize * math.prod(s) for dtype, s in self._fields.values())

    def __len__(self) -> int:
        return self.manifest.examples

    def __getitem__(self, numbers: Int[np.ndarray, " B"]) -> FeatureBatch:
        """The examples with these numbers; InputError names shard and record if one is damaged."""
        rows = [int(number) for number in numbers]
        try:
            records: Sequence[bytes] = self._data.__getitems__(rows)
        except Exception as error:  # array_record raises RuntimeError, IndexError, ValueError, ...
            shard, _ = self._find(rows[0])
            raise InputError(f"{self.folder / shard.file}: damaged ({reason_of(error)})") from None
        decoded = [self._decode(data, row) for data, row in zip(records, rows, strict=True)]
        return unflatten({name: np.stack([d[name] for d in decoded]) for name in self._fields})

    def _decode(self, data: bytes, row: int) -> dict[str, np.ndarray]:
        shard, number = self._find(row)
        body = memoryview(data)[_STAMP_BYTES:]
        stamp = _stamp(f"{shard.unit}/{number}", self._bytes)
        if len(body) != self._bytes or stamp != data[:_STAMP_BYTES]:
            raise InputError(
                f"{self.folder / shard.file}: record {number} is damaged; delete the shard and "
                "compute the cache again"
            )
        arrays, at = {}, 0
        for name, (dtype, shape) in self._fields.items():
            count = math.prod(shape)
            arrays[name] = np.frombuffer(body, dtype, count, at).reshape(shape)
            at += count * dtype.itemsize
        return arrays

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
