"""Folders of records: read back, and never wrong when damaged."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from rb_jax.data.formats.shards import Records, RecordSource
from rb_jax.data.importers.importing import import_dataset
from rb_jax.data.inputs.images import decode_image, to_square
from rb_jax.data.pipeline import loader
from rb_jax.errors import InputError
from tests.data import edits
from tests.data.formats.test_records import mutated


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    edits.folder(root / "in", 11)
    import_dataset("folder", root / "in", root / "out", shard_examples=4, progress=False)
    return root / "out"


@pytest.fixture
def copy(out, tmp_path):
    for path in out.iterdir():
        edits.put(tmp_path / path.name, path.read_bytes())
    return tmp_path


def test_random_access_and_batches(out):
    records = Records(out, "train", verify=True)
    assert len(records) == 11
    one = [records[n] for n in range(11)]
    assert [r.instruction for r in one] == [f"fell {n}?" for n in range(11)]
    order = [10, 0, 4, 3, 4]
    assert records.__getitems__(order) == [one[n] for n in order]
    for index in (-1, 11):
        with pytest.raises(IndexError):
            records[index]


def test_source_gives_squares(out):
    source = RecordSource(out, "train", 9)
    example = source[3]
    assert isinstance(source, loader.Source) and len(source) == 11
    expected = to_square(decode_image(edits.picture(6), ""), 9)
    assert np.array_equal(example.source, expected)
    assert example.target is not None and example.target.shape == (9, 9, 3)
    assert [source[n].category for n in (3, 4)] == ["", "physical"]


def test_categories_of_other_data_sets_are_none(tmp_path):
    edits.folder(tmp_path / "in", 2, category="Left-Right")
    import_dataset("folder", tmp_path / "in", tmp_path / "out", progress=False)
    assert RecordSource(tmp_path / "out", "train", 8)[1].category == ""


def test_missing_things_are_named(copy):
    with pytest.raises(InputError, match=r"val\.manifest\.json: no such .* folder: train"):
        Records(copy, "val")
    (copy / "train-00001-of-00003.array_record").unlink()
    with pytest.raises(InputError, match="00001-of-00003.array_record: no such shard"):
        Records(copy, "train")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("schema", 9, "schema 9"),
        ("examples", 12, "do not add up"),
        ("split", "val", "name of the split"),
        ("shards", 3, "damaged manifest"),
        ("shards", [{}], "damaged manifest"),
        ("shards", None, "damaged manifest"),
    ],
)
def test_damaged_manifests(copy, key, value, why):
    path = copy / "train.manifest.json"
    edits.put(path, json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=why):
        Records(copy, "train")


def test_a_manifest_does_not_name_files_elsewhere(copy):
    path = copy / "train.manifest.json"
    edits.put(path, path.read_text().replace("train-00001-of", "../train-00001-of"))
    with pytest.raises(InputError, match="outside the folder"):
        Records(copy, "train")


def test_shards_that_changed_places(copy):
    """Same size, both whole: only the records' places tell."""
    a, b = (copy / f"train-0000{n}-of-00003.array_record" for n in (0, 1))
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    assert len(a_bytes) == len(b_bytes)
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)
    with pytest.raises(InputError, match=r"00000-of-00003\.array_record: record 1: .*written to"):
        Records(copy, "train")[1]
    with pytest.raises(InputError, match="SHA-256"):
        Records(copy, "train", verify=True)


CHILD = """
import faulthandler, sys
from rb_jax.data.formats.shards import Records
from rb_jax.errors import InputError
folder, names = sys.argv[1], sys.argv[2:]
for name in names:
    faulthandler.dump_traceback_later(10, exit=True)  # a hang
    for index in range(11):
        try:
            records = Records(f"{folder}/{name}", "train")
            print(name, index, records[index].instruction, flush=True)
        except InputError as error:
            print(name, index, "InputError", error, flush=True)
        try:
            records = Records(f"{folder}/{name}", "train")
            print(name, "all", [r.id for r in records.__getitems__(range(11))], flush=True)
        except InputError as error:
            print(name, "all", "InputError", error, flush=True)
"""


def damage(whole: bytes, rng: random.Random) -> bytes:
    """A change of a shard, of its used bytes as often as of its padding and its end."""
    used = [n for n, byte in enumerate(whole) if byte]
    kind, changed = rng.randrange(6), bytearray(whole)
    place = rng.choice(used)
    match kind:
        case 0:
            changed[place] ^= 1 << rng.randrange(8)
        case 1:
            tail = rng.choice([n for n in used if n >= 65536])
            changed[tail : tail + 8] = rng.randbytes(8)
        case 2:
            other = rng.choice(used)
            part = slice(place, place + 300), slice(other, other + 300)
            changed[part[0]], changed[part[1]] = changed[part[1]], changed[part[0]]
        case 3:
            changed[rng.randrange(64)] ^= rng.randrange(1, 256)
        case 4:
            changed[place : place + 2000] = bytes(len(changed[place : place + 2000]))
        case 5:
            return mutated(whole, rng)
    if rng.random() < 0.9:  # past the check of the size
        del changed[len(whole) :]
        changed += bytes(len(whole) - len(changed))
    return bytes(changed)


def check_damaged_shards(out, folder, count, seed, each=25):
    """In processes of their own: a library in C++ may end one, or never return."""
    rng, names = random.Random(seed), []
    good = {p.name: p.read_bytes() for p in out.iterdir()}
    for number in range(count):
        name = f"train-0000{rng.randrange(3)}-of-00003.array_record"
        for path, content in good.items():
            edits.put(folder / str(number) / path, content)
        edits.put(folder / str(number) / name, damage(good[name], rng))
        names.append(str(number))
    right = refused = 0
    for start in range(0, count, each):
        some = names[start : start + each]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder), *some],
            capture_output=True,
            text=True,
            timeout=10 + each * 2,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        shown = done.stdout.splitlines()
        assert len(shown) == 22 * len(some)
        for line in shown:
            _, index, said = line.split(" ", 2)
            if said.startswith("InputError"):
                assert ".array_record" in said
                refused += 1
            elif index == "all":
                assert said == str([str(n + 1) for n in range(11)])
            else:
                assert said == f"fell {index}?"
                right += 1
    return right, refused


def test_damaged_shards_give_the_right_record_or_none(out, tmp_path):
    right, refused = check_damaged_shards(out, tmp_path, 50, seed=0)
    assert right > 100 and refused > 100


@pytest.mark.exhaustive
def test_a_thousand_damaged_shards(out, tmp_path):
    right, refused = check_damaged_shards(out, tmp_path, 1000, seed=1)
    assert right > 1000 and refused > 1000
