"""Damaged checkpoints by the thousand: each opens and reads as it says, or raises InputError.

Whatever the original library refuses must be refused here too.
"""

import json
import random
import re
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from rb_jax.errors import InputError
from rb_jax.weights.safetensors.header import DTYPES
from rb_jax.weights.safetensors.reader import TensorFiles

NAMES = [
    "a",
    "",
    "x" * 1025,
    "/a",
    "a/../b",
    "..",
    "a\\b",
    "a\nb",
    "a\0b",
    "\ud800",
    "é",
    "\u202e",
    "__metadata__",
    "dtype",
    " ",
    "layers.0.weight",
]
VALUES = [
    -1,
    0,
    1,
    3,
    4,
    2**31,
    2**48,
    2**53,
    2**63,
    2**64,
    10**30,
    -(2**63),
    1.0,
    -0.0,
    1e300,
    float("nan"),
    float("inf"),
    True,
    False,
    None,
    "4",
    "F32",
    "",
    [],
    {},
    [0],
    [[[]]],
    {"a": 1},
]
NUMBERS = [
    b"-0",
    b"-1",
    b"01",
    b"1e1",
    b"4.0",
    b"0x4",
    b"NaN",
    b"1_0",
    b"18446744073709551616",
    b"9" * 5000,
    b"",
    b" 4 ",
]


def base_files():
    """(header, data) of well-formed files with every dtype, empty tensors, scalars, metadata."""
    rng, files = np.random.default_rng(0), []
    for shapes in ([(3,), (2, 2), (), (0, 5), (1, 2, 3)], [(4,), (4,)], [()]):
        for metadata in ({}, {"__metadata__": {"format": "pt", "note": "ü [{,"}}):
            header: dict[str, Any] = dict(metadata)
            data = b""
            for i, code in enumerate(rng.permutation(list(DTYPES))):
                shape = shapes[i % len(shapes)]
                size = int(np.prod(shape)) * DTYPES[code].itemsize
                offsets = [len(data), len(data) + size]
                name = f"layers.{i}/{code}"
                header[name] = {"dtype": code, "shape": list(shape), "data_offsets": offsets}
                data += rng.bytes(size)
                if i == 2 * len(shapes):
                    break
            files.append((header, data))
    return files


# Changes of bytes.


def flip(rng, content):
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def replace(rng, content):
    at, count = rng.randrange(len(content)), rng.randrange(3)
    new = rng.choice([rng.randbytes(rng.randrange(4)), rng.choice([*b'[]{},:"\\ 019-'])])
    return content[:at] + (new if isinstance(new, bytes) else bytes([new])) + content[at + count :]


def truncate(rng, content):
    return content[: rng.randrange(len(content))]


def repeat(rng, content):
    start, end = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:end] + content[start:end] + content[end:]


def change_number(rng, content):
    found = list(re.finditer(rb"\d{1,30}", content[8:]))
    if not found:
        return content
    one, other = rng.choice(found), rng.choice(found)
    new = rng.choice([other.group(), b"%d" % (int(one.group()) + rng.choice([-1, 1, 4, 8]))])
    new = rng.choice([new, rng.choice(NUMBERS)])
    return content[: 8 + one.start()] + new + content[8 + one.end() :]


def change_length(rng, content):
    length = int.from_bytes(content[:8], "little")
    new = rng.choice([length + rng.randrange(-9, 10), rng.getrandbits(64), 0, 10**8, 2**64 - 1])
    return (new % 2**64).to_bytes(8, "little") + content[8:]


def lengthen(rng, content):
    return content + rng.randbytes(rng.randrange(1, 20))


def fitted(rng, content):
    """Bytes of the header changed, with a length that is right again."""
    length = int.from_bytes(content[:8], "little")
    change = rng.choice([flip, replace, repeat, change_number])
    header = change(rng, content[: 8 + length])[8:] if length else b"{}"
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


# Changes of the header's meaning; they get a list of [name, entry] and change it.


def change_field(rng, pairs):
    entry = rng.choice(pairs)[1]
    key = rng.choice(["dtype", "shape", "data_offsets", "more"])
    entry[key] = rng.choice([*VALUES, *DTYPES])
    if rng.random() < 0.2:
        del entry[key]


def change_item(rng, pairs):
    values = rng.choice(pairs)[1].get(rng.choice(["shape", "data_offsets"]))
    if isinstance(values, list):
        change = rng.choice(["set", "insert", "remove", "reverse"])
        at = rng.randrange(len(values) + 1)
        values[at : at + (change in ("set", "remove"))] = (
            values[at - 1 :: -1] if change == "reverse" else [rng.choice(VALUES)]
        )


def rename(rng, pairs):
    rng.choice(pairs)[0] = rng.choice([*NAMES, rng.choice(pairs)[0]])


def exchange(rng, pairs):
    one, other = rng.choice(pairs), rng.choice(pairs)
    key = rng.choice(["dtype", "shape", "data_offsets"])
    if key in one[1] and key in other[1]:
        one[1][key], other[1][key] = other[1][key], one[1][key]


def drop_or_double(rng, pairs):
    pair = rng.choice(pairs)
    pairs.append([pair[0], dict(pair[1])]) if rng.random() < 0.5 else pairs.remove(pair)


def change_metadata(rng, pairs):
    value = rng.choice([rng.choice(VALUES), {rng.choice(NAMES): rng.choice([*VALUES, *NAMES])}])
    key = rng.choice(["format", "crc32"])
    pairs.append(["__metadata__", rng.choice([value, {key: rng.choice([value, str(value)])}])])


def reorder(rng, pairs):
    rng.shuffle(pairs)


BYTES = [flip, replace, truncate, repeat, change_number, change_length, lengthen, fitted, fitted]
MEANING = [change_field, change_item, rename, exchange, drop_or_double, change_metadata, reorder]


def mutated(rng, header, data):
    if rng.random() < 0.5:
        pairs = [[name, entry] for name, entry in json.loads(json.dumps(header)).items()]
        for _ in range(rng.choice([1, 1, 2])):
            if pairs and all(isinstance(entry, dict) for _, entry in pairs):
                rng.choice(MEANING)(rng, pairs)
        ascii_only = rng.random() < 0.5 or "\\ud800" in json.dumps(pairs)
        items = [[json.dumps(part, ensure_ascii=ascii_only) for part in pair] for pair in pairs]
        text = "{" + rng.choice([",", ", \n"]).join(":".join(item) for item in items) + "}"
        raw = text.encode() + b" " * rng.randrange(8)
        return len(raw).to_bytes(8, "little") + raw + data
    raw = json.dumps(header).encode()
    content = len(raw).to_bytes(8, "little") + raw + data
    for _ in range(rng.choice([1, 1, 2, 3])):
        content = rng.choice(BYTES)(rng, content) if len(content) > 8 else content
    return content


def overwrite(path, content):
    """In place: emptying a file and filling it again makes some file systems wait for the disk."""
    with open(path, "r+b" if path.exists() else "xb") as file:
        file.write(content)
        file.truncate()


def original(content):
    """What the original library makes of the file, or None."""
    try:
        return dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        return None


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    rng, bases, path, opened = random.Random(seed), base_files(), tmp_path / "x.safetensors", 0
    for case in range(5000):
        content = mutated(rng, *rng.choice(bases))
        overwrite(path, content)
        try:
            files = TensorFiles.open(path)
            arrays = {name: files.read(name, checksum=True) for name in files}
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error), case
            assert len(str(error)) < 2000
            continue
        opened += 1
        reference = original(content)
        assert reference is not None and set(reference) == set(arrays), (case, content)
        for name, array in arrays.items():
            info = files[name]
            assert (array.dtype, array.shape, array.nbytes) == (info.dtype, info.shape, info.size)
            assert array.tobytes() == content[info.offset : info.offset + info.size]
            assert array.tobytes() == bytes(reference[name]["data"])
            assert reference[name]["dtype"] == next(k for k, d in DTYPES.items() if d == info.dtype)
            assert tuple(reference[name]["shape"]) == info.shape
    assert 500 < opened < 4500  # else the changes are too mild or too wild to test anything
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_indexes(tmp_path):
    rng, index = random.Random(0), tmp_path / "model.safetensors.index.json"
    names = {"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"}
    for shard in ("x", "y"):
        held = {n: np.ones(2) for n, file in names.items() if file.startswith(shard)}
        safetensors.numpy.save_file(held, tmp_path / f"{shard}.safetensors")
    text = json.dumps({"metadata": {"total_size": 48}, "weight_map": names}).encode()
    opened = 0
    for case in range(1500):
        content = bytes(8) + text
        for _ in range(rng.choice([1, 1, 2])):
            change = rng.choice([flip, replace, truncate, repeat, change_number])
            content = change(rng, content) if len(content) > 8 else content
        overwrite(index, content[8:])
        try:
            files = TensorFiles.open(index)
        except InputError as error:
            assert str(error).startswith(f"{tmp_path}/") and "\n" not in str(error), case
            continue
        opened += 1
        assert set(files) == set(names) and files.nbytes == 48
    assert opened > 50
