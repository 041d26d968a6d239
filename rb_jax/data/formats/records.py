"""The one schema of edits on disk: an example is a ``tf.train.Example`` in an ArrayRecord file.

Pictures are the encoded bytes as they were found. Absent values are empty ones, and every record
has every feature, so that ``tfds`` and TensorFlow read the files as they are (FEATURES). A checksum
covers all values and the place of the record in its file: what was changed, or moved, is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from rb_jax.data.formats.untrusted import checked_caption, checked_instruction, checked_text
from rb_jax.errors import InputError

SCHEMA_VERSION = 1
MAX_NAME = 1000  # characters of an id, a category, an object's name
MAX_OBJECTS = 256
_CHECKSUM_BYTES = 16

# Name of each feature -> its kind. ``objects`` has any number of values, the others have one.
FEATURES = {
    "schema": "int",  # SCHEMA_VERSION
    "place": "bytes",  # SHARD/NUMBER, where the record was written; empty: anywhere
    "checksum": "bytes",  # SHA-256 over all the others, its first 16 bytes
    "id": "bytes",
    "dataset": "bytes",
    "category": "bytes",
    "instruction": "bytes",
    "objects": "list",
    "turn": "int",
    "source": "bytes",
    "target": "bytes",
    "mask": "bytes",
    "source_caption": "bytes",
    "target_caption": "bytes",
}


@dataclasses.dataclass(frozen=True)
class EditRecord:
    """One edit. ``source``, ``target`` and ``mask`` are whole picture files (PNG, JPEG, ...)."""

    id: str
    dataset: str
    instruction: str
    source: bytes
    target: bytes | None = None
    mask: bytes | None = None
    category: str = ""  # the data set's own; empty if it has none
    objects: tuple[str, ...] = ()
    turn: int = 1  # of a session of edits, from 1
    source_caption: str | None = None
    target_caption: str | None = None


def encode(record: EditRecord, place: str = "") -> bytes:
    """The record as a serialized tf.train.Example; equal records give equal bytes.

    ``place`` names where it will be stored. InputError if a value is not what the schema asks for.
    """
    message = _Example()
    for name, value in feature_values(record, place).items():
        feature = message.features.feature[name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.SetInParent()  # also for an empty list
            feature.bytes_list.value.extend(value if isinstance(value, list) else [value])
    return message.SerializeToString(deterministic=True)


def decode(data: bytes, place: str | None = None) -> EditRecord:
    """The record in these bytes; InputError unless it is one of this version, whole and unchanged.

    With ``place``, a record that was written to another place is refused too.
    """
    message = _Example()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InputError("not a record of edits (damaged)") from None
    features = message.features.feature
    version = _value(features, "schema", "int")
    if version != SCHEMA_VERSION:
        raise InputError(f"schema version {version}; this program reads version {SCHEMA_VERSION}")
    if wrong := set(FEATURES) ^ set(features):
        raise InputError(f"damaged record: feature {sorted(wrong)[0]!r} missing or unknown")
    values = {name: _value(features, name, kind) for name, kind in FEATURES.items()}
    return from_features(values, place)


def feature_values(record: EditRecord, place: str = "") -> dict[str, Any]:
    """The value of every feature: int, bytes or a list of bytes; InputError as ``encode``."""
    check(record)
    values: dict[str, Any] = {"schema": SCHEMA_VERSION, "place": place.encode()}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, str):
            value = value.encode("utf-8")
        elif isinstance(value, tuple):
            value = [name.encode("utf-8") for name in value]
        values[field.name] = b"" if value is None else value
    return values | {"checksum": _checksum(values)}


def from_features(values: Mapping[str, Any], place: str | None = None) -> EditRecord:
    """The record with these features, checked as ``decode`` does."""
    if values["checksum"] != _checksum(values):
        raise InputError("damaged record: its checksum does not agree with its content")
    if place is not None and values["place"] != place.encode():
        raise InputError(f"damaged file: this record was written to {values['place']!r}")
    try:
        record = EditRecord(
            id=values["id"].decode("utf-8"),
            dataset=values["dataset"].decode("utf-8"),
            instruction=values["instruction"].decode("utf-8"),
            source=values["source"],
            target=values["target"] or None,
            mask=values["mask"] or None,
            category=values["category"].decode("utf-8"),
            objects=tuple(name.decode("utf-8") for name in values["objects"]),
            turn=values["turn"],
            source_caption=values["source_caption"].decode("utf-8") or None,
            target_caption=values["target_caption"].decode("utf-8") or None,
        )
    except UnicodeDecodeError:
        raise InputError("damaged record: a text is not UTF-8") from None
    check(record)
    return record


def check(record: EditRecord) -> None:
    """InputError naming the first value that is not what the schema asks for."""
    checked_instruction(record.instruction)
    for name in ("id", "dataset", "category"):
        checked_text(getattr(record, name), name, MAX_NAME)
    for name in ("id", "dataset"):
        if not getattr(record, name):
            raise InputError(f"{name} is empty")
    if not isinstance(record.objects, tuple) or len(record.objects) > MAX_OBJECTS:
        raise InputError(f"objects must be a tuple of at most {MAX_OBJECTS} strings")
    for name in record.objects:
        checked_text(name, "an object's name", MAX_NAME)
    for name in ("source_caption", "target_caption"):
        checked_caption(getattr(record, name), name)
    turn = record.turn
    if not isinstance(turn, int) or isinstance(turn, bool) or not 1 <= turn < 2**31:
        raise InputError(f"turn must be a whole number from 1, got {turn!r}")
    for name in ("source", "target", "mask"):
        picture = getattr(record, name)
        if not isinstance(picture, bytes) and (picture is not None or name == "source"):
            raise InputError(f"{name} must be the bytes of a picture, got {type(picture).__name__}")
        if picture == b"":
            raise InputError(f"{name} is empty")


def _checksum(values: Mapping[str, Any]) -> bytes:
    """A hash of the values, independent of the order in which a writer put them."""
    digest = hashlib.sha256()
    for name, kind in FEATURES.items():
        if name == "checksum":
            continue
        value = values[name]
        parts = value if kind == "list" else [b"%d" % value if kind == "int" else value]
        digest.update(b"%s %d\n" % (name.encode(), len(parts)))
        for part in parts:
            digest.update(b"%d\n" % len(part))
            digest.update(part)
    return digest.digest()[:_CHECKSUM_BYTES]


def _value(features: Any, name: str, kind: str) -> Any:
    if name not in features:
        raise InputError(f"not a record of edits: it has no feature {name!r}")
    feature = features[name]
    expected = "int64_list" if kind == "int" else "bytes_list"
    found = feature.WhichOneof("kind")
    if found != expected and not (kind == "list" and found is None):
        raise InputError(f"damaged record: feature {name!r} is {found}, not {expected}")
    values = list(getattr(feature, expected).value)
    if kind == "list":
        return values
    if len(values) != 1:
        raise InputError(f"damaged record: feature {name!r} has {len(values)} values, not 1")
    return values[0]


def _example_class() -> Any:
    """tf.train.Example, in a pool of its own so as not to meet TensorFlow's."""
    proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow")
    file.syntax = "proto3"

    def add(parent: Any, name: str, *fields: tuple) -> Any:
        message = parent.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, 1):
            label = proto.LABEL_REPEATED if repeated else proto.LABEL_OPTIONAL
            described = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                described.type, described.type_name = proto.TYPE_MESSAGE, f".tensorflow.{kind}"
            else:
                described.type = kind
        return message

    messages = file.message_type
    add(messages, "BytesList", ("value", proto.TYPE_BYTES, True))
    add(messages, "FloatList", ("value", proto.TYPE_FLOAT, True))
    add(messages, "Int64List", ("value", proto.TYPE_INT64, True))
    kinds = ("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")
    feature = add(messages, "Feature", *((name, kind, False) for name, kind in kinds))
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = add(messages, "Features", ("feature", "Features.FeatureEntry", True))
    key, value = ("key", proto.TYPE_STRING, False), ("value", "Feature", False)
    add(features.nested_type, "FeatureEntry", key, value).options.map_entry = True
    add(messages, "Example", ("features", "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _example_class()
