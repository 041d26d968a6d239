"""Folders of records: ``SPLIT-00000-of-00003.array_record``, ``SPLIT.manifest.json``, and tfds's
``dataset_info.json`` and ``features.json``.

ArrayRecord notices changed bytes in a record, but takes a file whose end is damaged for an empty
one; so a shard is trusted only as far as the manifest and the records' own checksums agree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_data_source
from array_record.python import array_record_module as array_record  # pyright: ignore
from jaxtyping import UInt8

from rb_jax.data.formats.records import FEATURES, SCHEMA_VERSION, EditRecord, decode, encode
from rb_jax.data.formats.schema import CATEGORIES, EditExample
from rb_jax.data.inputs.buckets import Shape, kept
from rb_jax.data.inputs.images import decode_resized, picture_size
from rb_jax.errors import InputError, reason
from rb_jax.files import file_hash, to_json, whole_file, write_text, writing

# One record per chunk, for random access; pictures are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
TFDS_VERSION = f"{SCHEMA_VERSION}.0.0"
TFDS_TEMPLATE = "{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}"
_MAX_MANIFEST = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of a split. The places of its records begin with ``unit``, or are empty if it is."""

    file: str
    unit: str
    examples: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What ``SPLIT.manifest.json`` says about a split."""

    schema: int
    dataset: str
    split: str
    fingerprint: str  # of the source and the options
    options: dict[str, Any]
    source: dict[str, Any]  # path, files, bytes
    examples: int
    targets: int  # examples with a target picture
    categories: dict[str, int]
    rejects: int  # lines of SPLIT.rejects.jsonl
    notes: list[str]
    shards: list[Shard]


def place(unit: str, number: int) -> str:
    """What the record with this number in a shard carries with it."""
    return f"{unit}/{number}" if unit else ""


def shard_name(split: str, number: int, count: int, kind: str = "array_record") -> str:
    digits = max(5, len(str(count)))
    return f"{split}-{number:0{digits}d}-of-{count:0{digits}d}.{kind}"


def manifest_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.manifest.json"


def splits_in(folder: Path, kind: str = "manifest.json") -> list[str]:
    """The splits that have a manifest here."""
    return sorted(path.name.removesuffix(f".{kind}") for path in folder.glob(f"*.{kind}"))


def read_manifest(folder: str | os.PathLike[str], split: str) -> Manifest:
    """The manifest of a split; InputError if there is none or it is damaged."""
    path = manifest_path(Path(folder), split)
    with reading(path, "rb-jax data import", "schema", SCHEMA_VERSION) as values:
        names = {f.name for f in dataclasses.fields(Manifest)}
        shards = [Shard(**shard) for shard in values["shards"]]
        manifest = Manifest(**{**{n: values[n] for n in names}, "shards": shards})
        if manifest.split != split:
            raise ValueError("the name of the split")
        check_shards(shards, manifest.examples)
    return manifest


@contextlib.contextmanager
def reading(path: Path, command: str, key: str, version: int) -> Iterator[dict[str, Any]]:
    """The values of a manifest that ``command`` wrote; whatever is wrong becomes InputError.

    ``key`` holds the manifest's version. The body may raise what damaged values raise.
    """
    if not path.is_file():
        kind = path.name.partition(".")[2]
        splits = ", ".join(splits_in(path.parent, kind)) or "none"
        raise InputError(f"{path}: no such manifest; splits in this folder: {splits} ({command})")
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise InputError(f"{path}: larger than {_MAX_MANIFEST >> 20} MiB")
        values = json.loads(path.read_text("utf-8"))
        if values[key] != version:
            raise InputError(
                f"{path}: {key} {values[key]}, and this program reads {version}: {command} again"
            )
        yield values
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"{path}: damaged manifest ({why}); {command} again") from None


def check_shards(shards: Sequence[Shard], examples: int) -> None:
    """ValueError if the numbers do not fit together, or a name leaves the folder."""
    names = [shard.file for shard in shards]
    if len(set(names)) < len(names):
        raise ValueError("two shards of one name")
    if any(name in (".", "..") or "/" in name or "\0" in name for name in names):
        raise ValueError("a shard outside the folder")
    if any(type(s.examples) is not int or s.examples < 1 for s in shards):
        raise ValueError("examples of a shard")
    if sum(s.examples for s in shards) != examples:
        raise ValueError("the shards' examples do not add up")


def write_shard(path: Path, unit: str, records: Iterable[EditRecord]) -> int:
    """``write_records`` of edits. Equal records give equal bytes."""
    return write_records(path, (encode(r, place(unit, n)) for n, r in enumerate(records)))


def write_records(path: Path, records: Iterable[bytes]) -> int:
    """Writes records to a new file and flushes it to the disk; returns how many.

    InputError if it cannot be written; then no file is left, and none if there are no records.
    """
    count = 0
    with whole_file(path) as partial:
        with writing(path, RuntimeError):
            writer = array_record.ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        try:
            for data in records:
                with writing(path, RuntimeError):
                    writer.write(data)
                count += 1
        finally:
            with writing(path, RuntimeError):
                writer.close()
        with writing(path, RuntimeError):
            if count_records(partial) != count:
                raise OSError("it does not read back: is the disk full?")
        if not count:
            partial.unlink()
    return count


def write_chunks(path: Path, chunks: Iterable[np.ndarray]) -> None:
    """Writes bytes one after the other to a new file and flushes it to the disk.

    InputError if it cannot be written; then no file is left.
    """
    with whole_file(path) as partial, open(partial, "wb") as file:
        for chunk in chunks:
            with writing(path, RuntimeError):
                file.write(chunk.data)
        with writing(path, RuntimeError):
            file.flush()


def count_records(path: Path) -> int:
    reader = array_record.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    try:
        return reader.num_records()
    finally:
        reader.close()


def raw_records(path: Path, examples: int) -> Iterator[bytes]:
    """The records of a file as they are, one at a time; InputError if it has fewer."""
    source = open_files([(path, examples)])
    for number in range(examples):
        try:
            data = source[number]
        except Exception as error:  # array_record raises RuntimeError, IndexError, ValueError, ...
            raise InputError(f"{path}: record {number}: {reason(error)}") from None
        yield data


def describe_shard(path: Path, unit: str, examples: int) -> Shard:
    return Shard(path.name, unit, examples, path.stat().st_size, file_hash(path))


def write_tfds_info(folder: Path, aside: Path) -> None:
    """What ``tfds.builder_from_directory(folder)`` reads, for all splits that have a manifest."""
    manifests = [read_manifest(folder, split) for split in splits_in(folder)]
    splits = [
        {
            "filepathTemplate": TFDS_TEMPLATE,
            "name": m.split,
            "numBytes": str(sum(s.bytes for s in m.shards)),
            "shardLengths": [str(s.examples) for s in m.shards],
        }
        for m in manifests
    ]
    info = {
        "fileFormat": "array_record",
        "moduleName": "rb_jax.data.formats.tfds",
        "name": manifests[0].dataset,
        "splits": splits,
        "version": TFDS_VERSION,
    }
    write_text(folder / "features.json", to_json(_tfds_features()), aside)
    write_text(folder / "dataset_info.json", to_json(info), aside)


def splits_in_tfds_info(folder: Path) -> list[str]:
    """The splits that ``write_tfds_info`` has described."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        return [split["name"] for split in info["splits"]]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return []


def _tfds_features() -> dict[str, Any]:
    core = "tensorflow_datasets.core.features"
    text = {"pythonClassName": f"{core}.text_feature.Text", "text": {}}
    tensor = {"dtype": "int64", "encoding": "none", "shape": {}}
    kinds = {
        "bytes": text,
        "int": {"pythonClassName": f"{core}.scalar.Scalar", "tensor": tensor},
        "list": {
            "pythonClassName": f"{core}.sequence_feature.Sequence",
            "sequence": {"feature": text, "length": "-1"},
        },
    }
    return {
        "featuresDict": {"features": {name: kinds[kind] for name, kind in FEATURES.items()}},
        "pythonClassName": f"{core}.features_dict.FeaturesDict",
    }


def open_files(files: Sequence[tuple[Path, int]]) -> array_record_data_source.ArrayRecordDataSource:
    """Files with so many records each; nothing is opened before it is read."""
    instructions: list[Any] = [_Instruction(str(path), 0, count, count) for path, count in files]
    return array_record_data_source.ArrayRecordDataSource(instructions)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """How array_record is told to take all of a file without counting first."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Records:
    """Map-style, read-only: the EditRecords of a split."""

    def __init__(self, folder: str | os.PathLike[str], split: str, verify: bool = False):
        """Checks the manifest and the size of each shard, with ``verify`` also its SHA-256.

        Raises InputError naming the file that is missing or is not what the manifest says.
        """
        self.folder = Path(folder)
        self.manifest = read_manifest(folder, split)
        if not self.manifest.shards:
            raise InputError(f"{folder}: the split {split!r} has no examples")
        for shard in self.manifest.shards:
            check_shard(self.folder / shard.file, shard, verify)
        self._starts = np.cumsum([0, *(s.examples for s in self.manifest.shards)])
        self._data = open_files([(self.folder / s.file, s.examples) for s in self.manifest.shards])

    def __len__(self) -> int:
        return self.manifest.examples

    def __getitem__(self, index: int, /) -> EditRecord:
        """Record ``index``; InputError names shard and record if it is damaged."""
        shard, number = self._find(index)
        where = self.where(index)
        try:
            data = self._data[index]
        except Exception as error:  # array_record raises RuntimeError, IndexError, ValueError, ...
            raise InputError(f"{where}: damaged file ({reason(error)}); import again") from None
        try:
            return decode(data, place(shard.unit, number))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def __getitems__(self, indices: Sequence[int], /) -> list[EditRecord]:
        """The records with these indices, read together; raises as ``records[index]``."""
        located = [self._find(index) for index in indices]
        try:
            read = self._data.__getitems__(indices)
            places = (place(shard.unit, number) for shard, number in located)
            return [decode(data, where) for data, where in zip(read, places, strict=True)]
        except Exception:
            return [self[index] for index in indices]  # which of them it was

    def where(self, index: int) -> str:
        """A record's place, for messages: its shard's file and its number in it."""
        shard, number = self._find(index)
        return f"{self.folder / shard.file}: record {number}"

    def _find(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.manifest.shards[shard], int(index - self._starts[shard])


class RecordSource:
    """Map-style data set over a folder of records, pictures decoded when asked for."""

    def __init__(self, folder: str | os.PathLike[str], split: str, size: int):
        """InputError as ``Records``."""
        self.records = Records(folder, split)
        self._shape = (size, size)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> EditExample:
        """Example ``index``, pictures stretched to the size; InputError names a broken record."""
        return self.example(self.records[index], index)

    def example(self, record: EditRecord, index: int, shape: Shape | None = None) -> EditExample:
        """Record ``index`` with its pictures decoded: stretched to the size, or covering ``shape``.

        The target is cut exactly as the source.
        """
        target, keep, where = record.target, (1.0, 1.0), self.records.where(index)
        if shape is not None:
            keep = kept(picture_size(record.source, f"{record.id}: source"), shape)

        def decoded(picture: bytes, which: str) -> UInt8[np.ndarray, "Y X 3"]:
            name = f"{where} ({record.id}): {which}"
            return decode_resized(picture, name, *(shape or self._shape), keep)

        return EditExample(
            id=record.id,
            category=record.category if record.category in CATEGORIES else "",
            instruction=record.instruction,
            objects=record.objects,
            source=decoded(record.source, "source"),
            target=None if target is None else decoded(target, "target"),
            target_caption=record.target_caption,
            place=where,
        )


def check_shard(path: Path, shard: Shard, verify: bool) -> None:
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise InputError(f"{path}: no such shard; import again")
        if size != shard.bytes:
            raise InputError(
                f"{path}: {size} bytes, and the manifest says {shard.bytes}: damaged; import again"
            )
        if verify and file_hash(path) != shard.sha256:
            raise InputError(f"{path}: its SHA-256 is not the manifest's: damaged; import again")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
