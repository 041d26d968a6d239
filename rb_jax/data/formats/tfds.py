"""The records of rb_jax.data.formats.records through TensorFlow Datasets; TensorFlow is not needed.

What ``rb-jax data import`` wrote is read by ``tfds.builder_from_directory(folder)`` as it is:

    for example in tfds.builder_from_directory(folder).as_data_source("train"):
        record = to_record(example)

``EditRecords`` writes records the tfds way; ``write_manifests`` then lets training read them too.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rb_jax.data.formats import shards
from rb_jax.data.formats.records import (
    FEATURES,
    SCHEMA_VERSION,
    EditRecord,
    decode,
    feature_values,
    from_features,
)
from rb_jax.errors import InputError
from rb_jax.files import to_json, write_text

try:
    import tensorflow_datasets as tfds
except ImportError:
    raise InputError(
        "this needs TensorFlow Datasets, of the extra [data] (tensorflow is not needed): "
        "pip install tensorflow-datasets importlib_resources"
    ) from None


def features() -> tfds.features.FeaturesDict:
    """The schema; pictures are the bytes of their files, as texts are the bytes of theirs."""
    kinds = {
        "bytes": tfds.features.Text(),
        "int": tfds.features.Scalar(dtype=np.int64),
        "list": tfds.features.Sequence(tfds.features.Text()),
    }
    return tfds.features.FeaturesDict({name: kinds[kind] for name, kind in FEATURES.items()})


def to_record(example: Mapping[str, Any]) -> EditRecord:
    """The record in an example that tfds read; InputError if it is damaged or of another version.

    The checksum is looked at; whether the record is in its place is for ``shards.Records``.
    """
    if missing := sorted(set(FEATURES) - set(example)):
        raise InputError(f"not a record of edits: it has no feature {missing[0]!r}")
    values = {
        name: int(example[name])
        if kind == "int"
        else [bytes(value) for value in example[name]]
        if kind == "list"
        else bytes(example[name])
        for name, kind in FEATURES.items()
    }
    if values["schema"] != SCHEMA_VERSION:
        raise InputError(
            f"schema version {values['schema']}; this program reads version {SCHEMA_VERSION}"
        )
    return from_features(values)


class EditRecords(tfds.core.GeneratorBasedBuilder):
    """Writes splits of EditRecords: ``EditRecords(records={"train": ...}, data_dir=DIR)``.

    ``download_and_prepare()`` does it, in the order given; nothing is downloaded.
    """

    VERSION = tfds.core.Version(shards.TFDS_VERSION)
    name = "edit_records"

    def __init__(self, *, records: Mapping[str, Iterable[EditRecord]] | None = None, **kwargs: Any):
        self._records = dict(records or {})
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=features(), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(made) for name, made in self._records.items()}

    def _generate_examples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, records: Iterable[EditRecord]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in enumerate(records):
            yield number, feature_values(record)


def write_manifests(builder: tfds.core.DatasetBuilder) -> Path:
    """Reads all that a builder wrote and describes it for ``shards.Records``; returns the folder.

    InputError names a file with something else in it than records of edits.
    """
    folder = Path(builder.data_path)
    for split, info in builder.info.splits.items():
        described, count = [], Counter()
        categories: Counter[str] = Counter()
        for name, examples in zip(sorted(info.filenames), info.shard_lengths, strict=True):
            for number, record in enumerate(_read(folder / name, examples)):
                if isinstance(record, InputError):
                    raise InputError(f"{folder / name}: record {number}: {record}")
                count["targets"] += record.target is not None
                categories[record.category] += 1
            described.append(shards.describe_shard(folder / name, "", examples))
        manifest = shards.Manifest(
            schema=SCHEMA_VERSION,
            dataset=builder.name,
            split=split,
            fingerprint="",
            options={},
            source={"path": str(folder), "files": len(described), "bytes": info.num_bytes},
            examples=info.num_examples,
            targets=count["targets"],
            categories=dict(sorted(categories.items())),
            rejects=0,
            notes=[],
            shards=described,
        )
        content = to_json(dataclasses.asdict(manifest))
        write_text(shards.manifest_path(folder, split), content)
    return folder


def _read(path: Path, examples: int) -> Iterator[EditRecord | InputError]:
    for data in shards.raw_records(path, examples):
        try:
            yield decode(data, "")
        except InputError as error:
            yield error
