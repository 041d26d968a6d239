"""Thousands of broken lines, paths and pictures: each is named, none ends the import or gets in."""

import json
import random

import pytest

from rb_jax.data.importers.importing import import_dataset
from rb_jax.data.inputs.images import decode_image
from rb_jax.errors import InputError
from tests.data import edits
from tests.data.edits import FORMATS, every, picture, put
from tests.data.formats.test_records import mutated

SMALL, FULL = 1, 10
SIZES = [SMALL, pytest.param(FULL, marks=pytest.mark.exhaustive)]
JUNK = [
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b"{}" * 9,
    b"[" * 5000,
    b'{"instruction": 1e999}',
    b'{"instruction": "x", "source": {"a": []}}',
    b"\0",
    b"NaN",
    b"{'a': 1}",
    b"-",
    b'{"instruction": "\\ud800", "source": "a/0.png"}',
    b'{"instruction": "x", "source": "a/0.png", "objects": "x"}',
]


def lines_of(root):
    return (root / "in/train.jsonl").read_bytes().splitlines()


def run(root, kind="folder", **options):
    made = import_dataset(kind, root / "in", root / "out", progress=False, **options)
    assert made is not None
    rejects = (root / f"out/{made.split}.rejects.jsonl").read_text().splitlines()
    return made, [json.loads(line) for line in rejects]


@pytest.mark.parametrize("scale", SIZES)
def test_mutated_lines(tmp_path, scale):
    rng, count = random.Random(scale), 2000 * scale
    edits.folder(tmp_path / "in", 5)
    good = lines_of(tmp_path)
    lines = []
    for _ in range(count):
        line = rng.choice(JUNK) if rng.random() < 0.1 else mutated(rng.choice(good), rng)
        lines.append(line.replace(b"\n", b" ").replace(b"\r", b" ") or b"-")
    filled = [n for n, line in enumerate(lines, 1) if line.strip()]
    put(tmp_path / "in/train.jsonl", b"\n".join(lines) + b"\n")
    made, rejects = run(tmp_path, max_rejects=count)
    assert made.examples + made.rejects == len(filled)
    assert len(rejects) == made.rejects > count // 3
    rows = [reject["row"] for reject in rejects]
    assert rows == sorted(set(rows)) and set(rows) <= set(filled)
    assert all(r["reason"] and "\n" not in r["reason"] for r in rejects)
    sources = {path.read_bytes() for side in "ab" for path in (tmp_path / "in" / side).iterdir()}
    assert all(r.source in sources for r in every(tmp_path / "out"))


def traversals(rng, count):
    """Paths out of the folder, in the ways that have worked somewhere."""
    ups = ["..", "../..", "a/../..", "./../.", "a/./../../b", "a//..//..", "..\\..", "a\\..\\..\\x"]
    tops = [
        "/",
        "//",
        "///",
        "C:\\",
        "c:/",
        "\\\\host\\share\\",
        "\\",
        "/proc/self/",
        "link/",
        "a/link/",
    ]
    for _ in range(count):
        up, tail = rng.choice(ups), rng.choice(["secret.png", "etc/passwd", "x/secret.png"])
        top = rng.choice(tops)
        yield rng.choice([f"{up}/{tail}", f"{top}{tail}", f"{top}{up}/{tail}", f"{up}/\0{tail}"])


def test_paths_out_of_the_folder(tmp_path):
    edits.folder(tmp_path / "in", 2)
    put(tmp_path / "secret.png", picture(99))
    put(tmp_path / "x/secret.png", picture(99))
    (tmp_path / "in/link").symlink_to(tmp_path)
    (tmp_path / "in/a/link").symlink_to(tmp_path)
    paths = list(traversals(random.Random(0), 200))
    rows = [json.dumps({"instruction": "do", "source": path}) for path in paths]
    rows += [json.dumps({"instruction": "do", "source": "a/0.png", "target": p}) for p in paths]
    put(tmp_path / "in/train.jsonl", "\n".join([*rows, lines_of(tmp_path)[0].decode()]))
    made, rejects = run(tmp_path, max_rejects=400)
    assert made.examples == 1 and [r["row"] for r in rejects] == list(range(1, 401))


def test_paths_out_of_editworld(tmp_path):
    """Only its importer looks for a path's ending: a path that leaves the folder has none."""
    for name in ("secret.png", "etc/passwd", "x/secret.png", "a/0.png"):
        put(tmp_path / name, picture(99))
        put(tmp_path / "in" / name, picture(1))
    (tmp_path / "in/link").symlink_to(tmp_path)
    (tmp_path / "in/a/link").symlink_to(tmp_path)
    paths = [*traversals(random.Random(1), 200), "anywhere/a/0.png"]
    row = {"instuction": "do", "target_img_path": "a/0.png"}
    put(tmp_path / "in/train.json", json.dumps([row | {"original_img_path": p} for p in paths]))
    made, rejects = run(tmp_path, "editworld", max_rejects=200)
    assert made.examples == 1 and [r["row"] for r in rejects] == [str(n) for n in range(200)]


@pytest.mark.parametrize("scale", SIZES)
def test_mutated_pictures(tmp_path, scale):
    """What is taken can be decoded; what cannot is named."""
    rng, each = random.Random(scale), 84 * scale
    rows, broken = [], []
    for number in range(each * len(FORMATS)):
        kind = FORMATS[number % len(FORMATS)]
        data = mutated(picture(number, kind, 23, 17), rng) or b"x"
        put(tmp_path / f"in/{number}", data)
        rows.append(json.dumps({"instruction": "do", "source": f"{number}"}))
        try:
            decode_image(data, "x")
        except InputError:
            broken.append(number + 1)
    put(tmp_path / "in/train.jsonl", "\n".join(rows))
    made, rejects = run(tmp_path, max_rejects=len(rows))
    assert [r["row"] for r in rejects] == broken and len(broken) > each
    assert made.examples == len(rows) - len(broken) > each


def test_rubbish_beyond_the_budget_stops_the_import(tmp_path):
    edits.folder(tmp_path / "in", 3)
    put(tmp_path / "in/train.jsonl", b"\n".join([*lines_of(tmp_path), *[b"{"] * 500]))
    with pytest.raises(InputError, match=r"--max_rejects=10 of 503 .*train\.jsonl:14: not JSON"):
        run(tmp_path)
    assert not list(tmp_path.glob("out/*.array_record"))
