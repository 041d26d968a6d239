"""Reason50K's own layout: SPLIT.jsonl and the pictures it names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rb_jax.data.formats.reason50k import parse_record
from rb_jax.data.formats.records import EditRecord
from rb_jax.data.formats.untrusted import Files, lines
from rb_jax.data.importers.layout import Layout, Piece, read_picture
from rb_jax.errors import InputError


def open_layout(root: Path, split: str, rows: int) -> Layout:
    """InputError if there is no manifest of the split."""
    path = root / f"{split}.jsonl"
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in root.glob("*.jsonl"))) or "none"
        raise InputError(f"{path}: no such manifest; splits in this folder: {splits}")
    files = Files(root)

    def make(line: bytes | None) -> EditRecord:
        record = parse_record(line, files)
        return EditRecord(
            id=record.id,
            dataset="reason50k",
            category=record.category,
            instruction=record.instruction,
            objects=record.objects,
            source=read_picture(record.source, "src_image"),
            target=read_picture(record.target, "tgt_image"),
            target_caption=record.target_caption,
        )

    def read(piece: Piece) -> Iterator[tuple[int, bytes | None]]:
        return line_rows(path, piece)

    return Layout(line_pieces(path, path.name, rows), read, make, [path.name])


def line_pieces(path: Path, name: str, rows: int) -> list[Piece]:
    """Pieces of ``rows`` lines that are not blank."""
    pieces, start, mark, count, end, number = [], 0, 0, 0, 0, 0
    for number, _, end in lines(path):
        count += 1
        if count == rows:
            pieces.append(Piece(name, start, count, mark))
            start, mark, count = number, end, 0
    return [*pieces, Piece(name, start, count, mark)] if count else pieces


def line_rows(path: Path, piece: Piece) -> Iterator[tuple[int, bytes | None]]:
    for number, text, _ in islice(lines(path, piece.start, piece.mark), piece.count):
        yield number, text
