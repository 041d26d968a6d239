"""Lines and JSON from outside, in bounded memory."""

import json
import tracemalloc

import pytest

from rb_jax.data.formats.untrusted import MAX_LINE_BYTES, json_items, lines
from rb_jax.errors import InputError

VALUES = [
    {},
    [],
    {"a": 1},
    [1, "x", None, True, -2.5e3],
    {"k": {"deep": ["ü", "\\u00e9"]}, "l": ""},
    [12345678901234567890],
    [[[]], {}],
    {"a b": [1]},
    list(range(40_000)),
    ["y" * 300_000, "z"],
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("indent", [None, 2])
def test_items_of_any_file(tmp_path, value, indent):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value, indent=indent), "utf-8")
    expected = value.items() if isinstance(value, dict) else enumerate(value)
    assert list(json_items(path)) == [(str(key), v) for key, v in expected]


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("", None),
        ("3", None),
        ('"a"', None),
        ("[1, 2", 2),
        ("[1 2]", 1),
        ('{"a" 1}', 1),
        ("{1: 2}", 1),
        ("[1,]", 2),
        ("[nope]", 1),
        ("[" * 100_000, 1),
        ('{"a": [1, {]}', 1),
        ('["' + "x" * (2 * MAX_LINE_BYTES) + '"]', 1),
    ],
)
def test_broken_json_names_file_and_item(tmp_path, text, item):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json: " + (f"item {item}: " if item else "exp")):
        list(json_items(path))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b'["\xff"]')
    with pytest.raises(InputError, match="not UTF-8"):
        list(json_items(tmp_path / "x.json"))


def test_huge_files_stay_on_the_disk(tmp_path):
    """40 MB of JSON, a line or a list, in a few MB of memory."""
    path = tmp_path / "x.json"
    with open(path, "w") as file:
        file.write("[")
        file.writelines(json.dumps({"text": "x" * 5000}) + "," for _ in range(8000))
        file.write("1]")
    tracemalloc.start()
    assert sum(1 for _ in json_items(path)) == 8001
    found = [(line.number, line.text) for line in lines(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, None)] and peak < 12e6


def test_lines_from_a_place_in_the_file(tmp_path):
    path = tmp_path / "x.txt"
    long = b"l" * (MAX_LINE_BYTES + 5)
    path.write_bytes(b"\xef\xbb\xbfa\n\n  \nb\r\n" + long + b"\n" + long + b"\nc")
    whole = list(lines(path))
    assert [(n, t and t.strip()) for n, t, _ in whole] == [
        (1, b"a"),
        (4, b"b"),
        (5, None),
        (6, None),
        (7, b"c"),
    ]
    for place, line in enumerate(whole):
        assert list(lines(path, line.number, line.end)) == whole[place + 1 :]
