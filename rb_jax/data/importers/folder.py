"""Any folder with a manifest of pictures: SPLIT.jsonl or SPLIT.csv, one edit a line.

Only an instruction and a source are needed. ``metadata.jsonl`` and ``metadata.csv`` stand for the
split ``train``. Names that other tools give to the same things are taken too (KEYS).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rb_jax.data.formats.records import EditRecord
from rb_jax.data.formats.untrusted import (
    Files,
    checked_caption,
    checked_instruction,
    checked_objects,
    checked_text,
    json_object,
    lines,
)
from rb_jax.data.importers.layout import Layout, Piece, pick, picture_file
from rb_jax.data.importers.reason50k import line_pieces, line_rows
from rb_jax.errors import InputError

KEYS = {
    "instruction": ("instruction", "instuction", "edit_prompt", "edit", "prompt"),
    "source": (
        "src_image",
        "source",
        "source_image",
        "source_img",
        "input",
        "input_image",
        "original_image",
        "image",
        "file_name",
    ),
    "target": (
        "tgt_image",
        "target",
        "target_image",
        "target_img",
        "output",
        "output_image",
        "edited_image",
    ),
    "mask": ("mask", "mask_image", "mask_img"),
    "source_caption": ("source_caption", "input_caption", "original_prompt"),
    "target_caption": ("target_caption", "output_caption", "edited_prompt"),
}


def open_layout(root: Path, split: str, rows: int) -> Layout:
    """InputError if the folder has no manifest for the split."""
    path = _manifest(root, split)
    files = Files(root)

    def make(row: tuple[int, Any]) -> EditRecord:
        number, fields = row
        if isinstance(fields, InputError):
            raise fields
        return _record(json_object(fields) if _is_json(path) else fields, number, files)

    def read(piece: Piece) -> Iterator[tuple[int, Any]]:
        rows = line_rows(path, piece) if _is_json(path) else _csv_rows(path, piece)
        return ((number, (number, fields)) for number, fields in rows)

    split_up = line_pieces if _is_json(path) else _csv_pieces
    return Layout(split_up(path, path.name, rows), read, make, [path.name])


def _manifest(root: Path, split: str) -> Path:
    stems = [split, "metadata"] if split == "train" else [split]
    names = [f"{stem}{suffix}" for stem in stems for suffix in (".jsonl", ".csv")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise InputError(f"{root}: no manifest for split {split!r}; expected one of {', '.join(names)}")


def _is_json(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _record(fields: dict[str, Any], number: int, files: Files) -> EditRecord:
    instruction = pick(fields, KEYS["instruction"])
    if instruction is None:
        raise InputError("instruction is missing")
    pictures: dict[str, bytes | None] = {}
    for key in ("source", "target", "mask"):
        name = pick(fields, KEYS[key]) or None
        pictures[key] = None if name is None else picture_file(files, checked_text(name, key), key)
    source = pictures["source"]
    if source is None:
        raise InputError("source is missing")
    turn = fields.get("turn")
    if turn is not None and (not isinstance(turn, int) or isinstance(turn, bool)):
        raise InputError(f"turn must be a whole number, got {type(turn).__name__}")
    identity = pick(fields, ("id",))
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    return EditRecord(
        id=checked_text(identity, "id") if identity else str(number),
        dataset="folder",
        category=checked_text(pick(fields, ("category",)) or "", "category"),
        instruction=checked_instruction(instruction),
        objects=checked_objects(pick(fields, ("objects",)) or []),
        source=source,
        target=pictures["target"],
        mask=pictures["mask"],
        turn=1 if turn is None else turn,
        source_caption=checked_caption(pick(fields, KEYS["source_caption"]), "source_caption"),
        target_caption=checked_caption(pick(fields, KEYS["target_caption"]), "target_caption"),
    )


class _Csv:
    """Rows of a CSV file from a place in it, and where the next row begins."""

    def __init__(self, path: Path, number: int, offset: int):
        self.number, self.end = number, offset
        self._lines = lines(path, number, offset)
        self._reader = csv.reader(self._text())

    def _text(self) -> Iterator[str]:
        for number, line, end in self._lines:
            self.number, self.end = number, end
            if line is None:
                raise InputError("a line that is too long")
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                raise InputError("not UTF-8 text") from None

    def next(self) -> list[str] | InputError | None:
        """The next row, what is wrong with it, or None at the end."""
        try:
            return next(self._reader, None)
        except csv.Error as error:
            return InputError(f"not CSV ({error})")
        except InputError as error:
            self._reader = csv.reader(self._text())  # the generator ended with its error
            return error


def _header(path: Path) -> tuple[list[str], _Csv]:
    rows = _Csv(path, 0, 0)
    names = rows.next()
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}:1: the first line must name the columns")
    return [name.strip() for name in names], rows


def _csv_pieces(path: Path, name: str, limit: int) -> list[Piece]:
    _, rows = _header(path)
    pieces, count, start, mark = [], 0, rows.number, rows.end
    while rows.next() is not None:
        count += 1
        if count == limit:
            pieces.append(Piece(name, start, count, mark))
            count, start, mark = 0, rows.number, rows.end
    return [*pieces, Piece(name, start, count, mark)] if count else pieces


def _csv_rows(path: Path, piece: Piece) -> Iterator[tuple[int, Any]]:
    names, _ = _header(path)
    rows = _Csv(path, piece.start, piece.mark)
    for row in islice(iter(rows.next, None), piece.count):
        yield rows.number, _fields(names, row)


def _fields(names: list[str], row: list[str] | InputError) -> dict[str, Any] | InputError:
    if isinstance(row, InputError):
        return row
    if len(row) != len(names):
        return InputError(f"{len(row)} columns, and the first line names {len(names)}")
    fields: dict[str, Any] = {name: value for name, value in zip(names, row, strict=True) if value}
    if "objects" in fields:
        fields["objects"] = fields["objects"].split(";")
    if "turn" in fields:
        turn = fields["turn"]
        if not (turn.isascii() and turn.isdigit() and len(turn) < 10):
            return InputError(f"turn must be a whole number, got {turn[:20]!r}")
        fields["turn"] = int(turn)
    return fields
