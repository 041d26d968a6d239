"""The schema: what goes in comes out, and nothing else comes out."""

import dataclasses
import random

import pytest

from rb_jax.data.formats.records import EditRecord, decode, encode
from rb_jax.errors import InputError
from tests.data.edits import picture, record

RECORDS = [
    record(),
    record(1, target=None, mask=picture(9, "GIF"), category="", objects=(), turn=1),
    record(2, source_caption="a glass", target_caption=None, instruction="ü" * 2000),
    EditRecord(id="x", dataset="d", instruction="i", source=b"\0"),
]


@pytest.mark.parametrize("made", RECORDS, ids=range(len(RECORDS)))
def test_round_trip(made):
    data = encode(made, "7/3")
    assert decode(data) == decode(data, "7/3") == made
    assert encode(dataclasses.replace(made), "7/3") == data


def test_a_record_belongs_to_its_place():
    with pytest.raises(InputError, match="written to b'7/3'"):
        decode(encode(record(), "7/3"), "7/4")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"instruction": " "}, "instruction is empty"),
        ({"instruction": "a" * 2001}, "the limit is 2000"),
        ({"id": ""}, "id is empty"),
        ({"dataset": "d" * 1001}, "dataset has 1001 characters"),
        ({"category": "\ud800"}, "not valid Unicode"),
        ({"objects": ("o",) * 257}, "at most 256"),
        ({"source": b""}, "source is empty"),
        ({"mask": b""}, "mask is empty"),
        ({"turn": 0}, "whole number from 1"),
        ({"turn": 2**40}, "whole number from 1"),
        ({"target_caption": "c" * 10_001}, "target_caption has"),
    ],
)
def test_what_the_schema_refuses(changes, why):
    with pytest.raises(InputError, match=why):
        encode(record(**changes))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes removed, doubled, or overwritten."""
    changed = bytearray(data)
    place, size = rng.randrange(len(data)), rng.randrange(1, 30)
    match rng.randrange(5):
        case 0:
            changed[place] ^= 1 << rng.randrange(8)
        case 1:
            del changed[place : place + size]
        case 2:
            changed[place:place] = changed[place : place + size]
        case 3:
            changed[place : place + size] = rng.randbytes(size)
        case 4:
            del changed[place:]
    return bytes(changed)


def test_mutated_records_are_refused_or_right():
    rng, made = random.Random(0), record()
    data, refused = encode(made, "0/0"), 0
    for _ in range(3000):
        try:
            assert decode(mutated(data, rng), "0/0") == made
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 2500


def rewritten(**features):
    """A record's bytes with other features, as another program might write them."""
    from rb_jax.data.formats import records

    message = records._Example()
    message.ParseFromString(encode(record()))
    for name, value in features.items():
        if value is None:
            del message.features.feature[name]
        elif isinstance(value, int):
            message.features.feature[name].int64_list.value[:] = [value]
        elif isinstance(value, float):
            message.features.feature[name].float_list.value[:] = [value]
        else:
            message.features.feature[name].bytes_list.value[:] = value
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("features", "why"),
    [
        ({"schema": 2}, "schema version 2; this program reads version 1"),
        ({"schema": None}, "no feature 'schema'"),
        ({"mask": None}, "feature 'mask' missing"),
        ({"extra": 1}, "feature 'extra' missing or unknown"),
        ({"turn": 1.5}, "feature 'turn' is float_list, not int64_list"),
        ({"id": 7}, "feature 'id' is int64_list"),
        ({"id": [b"a", b"b"]}, "feature 'id' has 2 values"),
        ({"id": [b"other"]}, "checksum"),
        ({"objects": [b"glass"]}, "checksum"),
        ({"turn": 4}, "checksum"),
    ],
)
def test_records_of_other_programs(features, why):
    with pytest.raises(InputError, match=why):
        decode(rewritten(**features))


def test_texts_must_be_text():
    from rb_jax.data.formats.records import feature_values, from_features

    values = feature_values(record()) | {"id": b"\xff"}
    from rb_jax.data.formats import records

    values["checksum"] = records._checksum(values)
    with pytest.raises(InputError, match="not UTF-8"):
        from_features(values)
