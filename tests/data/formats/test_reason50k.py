"""The on-disk layout: writing it, reading it, and every way a manifest can be wrong."""

import dataclasses
import json
import os

import numpy as np
import pytest

from rb_jax.data.formats.reason50k import Reason50K, read_manifest, write_dataset
from rb_jax.data.formats.untrusted import MAX_LINE_BYTES
from rb_jax.errors import InputError
from tests.data.fakes import SIZE, FakeWorld

LINE = {
    "id": "a",
    "category": "causal",
    "src_image": "images/src/000000.png",
    "tgt_image": "images/tgt/000000.png",
    "instruction": "What if the glass fell from the table?",
    "objects": ["glass", "table"],
}


@pytest.fixture
def root(tmp_path):
    """A folder in the authors' own numbering, with one good line."""
    write_dataset(FakeWorld(), 1, tmp_path / "made", "x", progress=False)
    for side in ("src", "tgt"):
        (tmp_path / "set/images" / side).mkdir(parents=True)
        made = tmp_path / "made/images" / side / "x/000000.png"
        made.rename(tmp_path / "set/images" / side / "000000.png")
    put(tmp_path / "set", json.dumps(LINE))
    return tmp_path / "set"


def put(root, *lines, split="train"):
    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
    (root / f"{split}.jsonl").write_bytes(b"\n".join(encoded) + b"\n")


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_what_is_written_is_read_back(tmp_path):
    world = FakeWorld()
    path = write_dataset(world, 5, tmp_path, "train", progress=False)
    assert path == tmp_path / "train.jsonl"
    dataset = Reason50K(tmp_path, "train", SIZE)
    assert len(dataset) == 5
    for index in range(5):
        example, expected = dataset[index], world[index]
        assert example.place == f"{path}:{index + 1}"
        example = dataclasses.replace(example, place="")
        for field in dataclasses.fields(expected):
            a, b = getattr(example, field.name), getattr(expected, field.name)
            assert np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b, field.name


def test_pictures_are_stretched_to_the_size(root):
    example = Reason50K(root, "train", 20)[0]
    assert example.source.shape == (20, 20, 3)
    assert example.target is not None and example.target.shape == (20, 20, 3)


def test_optional_fields(root):
    line = {k: v for k, v in LINE.items() if k != "objects"}
    more = line | {"objects": None, "target_caption": None, "unknown": [1]}
    put(root, "", json.dumps(line), "  ", json.dumps(more))
    records = read_manifest(root, "train")
    assert [r.objects for r in records] == [("glass", "table")] * 2
    assert records[0].target_caption is None


def test_byte_order_mark_and_windows_line_ends(root):
    put(root, b"\xef\xbb\xbf" + json.dumps(LINE).encode() + b"\r")
    assert len(read_manifest(root, "train")) == 1


BAD = [
    ("{", "not JSON"),
    ("[1]", "expected a JSON object, got list"),
    ("null", "expected a JSON object"),
    (b'{"id": "\xff"}', "not UTF-8"),
    ("[" * 100_000, "not JSON"),
    ('{"id": ' + "1" * 5000 + "}", "not JSON"),
    ({"id": None}, "id must be a string, got NoneType"),
    ({"id": 3}, "id must be a string, got int"),
    ({"category": "magic"}, "category 'magic' is not one of physical, temporal"),
    ({"category": ["causal"]}, "category must be a string"),
    ({"instruction": ""}, "instruction is empty"),
    ({"instruction": " \n"}, "instruction is empty"),
    ({"instruction": "a" * 2001}, "2001 characters; the limit is 2000"),
    ({"instruction": "\ud800"}, "not valid Unicode"),
    ({"objects": "glass"}, "objects must be a list of strings"),
    ({"objects": ["glass", 1]}, r"objects\[1\] must be a string"),
    ({"target_caption": 1}, "target_caption must be a string"),
    ({"src_image": ""}, "src_image is not a path"),
    ({"src_image": "a\0b"}, "src_image is not a path"),
    ({"src_image": "none.png"}, "src_image: no such file"),
    ({"tgt_image": "images"}, "tgt_image: no such file"),
    ({"tgt_image": "x" * 5000}, "tgt_image: "),
    ({"src_image": "/etc/passwd"}, "must be relative"),
    ({"src_image": "C:\\a.png"}, "must be relative"),
    ({"src_image": "\\\\host\\a.png"}, "must be relative"),
    ({"src_image": "../made/x.jsonl"}, "leaves the data set's folder"),
    ({"src_image": "images/../../made/x.jsonl"}, "leaves the data set's folder"),
    ({"src_image": "..\\made\\x.jsonl"}, "leaves the data set's folder"),
]


@pytest.mark.parametrize(("change", "why"), BAD, ids=range(len(BAD)))
def test_malformed_lines_name_file_line_and_reason(root, change, why):
    good = json.dumps(LINE)
    bad = json.dumps(LINE | change) if isinstance(change, dict) else change
    put(root, good, "", good, bad, good)
    with pytest.raises(InputError, match=rf"train\.jsonl:4: [^\n]*{why}") as caught:
        read_manifest(root, "train")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("key", ["id", "category", "src_image", "tgt_image", "instruction"])
def test_missing_fields(root, key):
    put(root, json.dumps({k: v for k, v in LINE.items() if k != key}))
    with pytest.raises(InputError, match=rf"train\.jsonl:1: {key} is missing"):
        read_manifest(root, "train")


def test_endless_line(root):
    put(root, json.dumps(LINE), b"x" * (MAX_LINE_BYTES + 10))
    with pytest.raises(InputError, match=r"train\.jsonl:2: longer than"):
        read_manifest(root, "train")


def test_links_may_not_leave_the_folder(root, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes((root / LINE["src_image"]).read_bytes())
    (root / "link.png").symlink_to(secret)
    (root / "folder").symlink_to(tmp_path)
    (root / "inside.png").symlink_to(root / LINE["src_image"])
    put(root, json.dumps(LINE | {"src_image": "inside.png"}))
    assert len(read_manifest(root, "train")) == 1
    for path in ("link.png", "folder/secret.png"):
        put(root, json.dumps(LINE | {"src_image": path}))
        with pytest.raises(InputError, match=r"train\.jsonl:1: src_image leaves"):
            read_manifest(root, "train")


def test_the_folder_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    assert len(Reason50K(tmp_path / "alias", "train", 8)) == 1


def test_missing_folder_manifest_and_content(root):
    with pytest.raises(InputError, match="no such folder"):
        read_manifest(root / "none", "train")
    with pytest.raises(InputError, match="no such manifest; splits in this folder: train"):
        read_manifest(root, "val")
    put(root, "", " ")
    with pytest.raises(InputError, match="has no lines"):
        read_manifest(root, "train")


def test_a_broken_picture_is_named_when_it_is_read(root):
    path = root / LINE["tgt_image"]
    path.write_bytes(path.read_bytes()[:60])
    dataset = Reason50K(root, "train", 8)
    with pytest.raises(InputError, match=r"images/tgt/000000\.png: damaged"):
        dataset[0]


def test_writing_is_deterministic_and_splits_share_a_folder(tmp_path):
    for name in ("a", "b"):
        write_dataset(FakeWorld(), 3, tmp_path / name, "train", progress=False)
        write_dataset(FakeWorld(), 2, tmp_path / name, "val", progress=False)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) == 2 * 5 + 2
    assert len(Reason50K(tmp_path / "a", "train", 8)) == 3
    assert len(Reason50K(tmp_path / "a", "val", 8)) == 2


def test_an_existing_split_is_kept_unless_told_otherwise(tmp_path):
    write_dataset(FakeWorld(), 3, tmp_path, "train", progress=False)
    before = files(tmp_path)
    with pytest.raises(InputError, match="exists already"):
        write_dataset(FakeWorld(), 2, tmp_path, "train", progress=False)
    assert files(tmp_path) == before
    write_dataset(FakeWorld(), 2, tmp_path, "train", progress=False, overwrite=True)
    assert len(files(tmp_path)) == 2 * 2 + 1


class BrokenWorld(FakeWorld):
    def __getitem__(self, index):
        if index == 2:
            raise RuntimeError("out of paint")
        return super().__getitem__(index)


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_everything_as_it_was(tmp_path, existing):
    if existing:
        write_dataset(FakeWorld(), 1, tmp_path, "train", progress=False)
    before = files(tmp_path)
    with pytest.raises(RuntimeError, match="out of paint"):
        write_dataset(BrokenWorld(), 4, tmp_path, "train", progress=False, overwrite=True)
    assert files(tmp_path) == before and not [n for n in os.listdir(tmp_path) if n[0] == "."]


@pytest.mark.parametrize("split", ["", "../x", "a/b", ".", "a b"])
def test_names_of_splits(tmp_path, split):
    with pytest.raises(InputError, match="not a name for a split"):
        write_dataset(FakeWorld(), 1, tmp_path, split, progress=False)


def test_nothing_to_write_or_nowhere(tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        write_dataset(FakeWorld(), 0, tmp_path, "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_dataset(FakeWorld(), 1, tmp_path / "file", "train")


def test_every_bad_line_is_named(root):
    good, bad = json.dumps(LINE), json.dumps(LINE | {"category": "nose"})
    put(root, bad, good, "{", *[bad] * 20)
    with pytest.raises(InputError) as caught:
        read_manifest(root, "train")
    text = str(caught.value)
    assert all(f"train.jsonl:{n}: " in text for n in (1, 3, 4, 11))
    assert text.endswith("; and 12 more") and "train.jsonl:2:" not in text


def test_of_pictures_alone_the_texts_may_be_anything(root):
    put(root, json.dumps({"src_image": LINE["src_image"], "tgt_image": LINE["tgt_image"]}))
    (record,) = read_manifest(root, "train", pictures_only=True)
    assert record.instruction == "" and record.place.endswith("train.jsonl:1")
    put(root, json.dumps(LINE | {"src_image": "none.png", "instruction": 5}))
    with pytest.raises(InputError, match="train.jsonl:1: src_image: no such file"):
        read_manifest(root, "train", pictures_only=True)
