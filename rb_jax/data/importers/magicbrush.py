"""MagicBrush: Parquet for train and dev, or pictures with edit_sessions.json (test, also dev)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rb_jax.data.formats.records import EditRecord
from rb_jax.data.formats.untrusted import (
    Files,
    as_object,
    checked_caption,
    checked_instruction,
    checked_text,
    json_items,
)
from rb_jax.data.importers import tables
from rb_jax.data.importers.layout import Layout, Piece, picture_file, relative
from rb_jax.errors import InputError

COLUMNS = {
    "id": ("img_id",),
    "turn": ("turn_index",),
    "source": ("source_img", "source_image"),
    "mask": ("mask_img", "mask_image"),
    "instruction": ("instruction", "instuction"),
    "target": ("target_img", "target_image"),
}
CAPTIONS = ("local_captions.json", "global_descriptions.json", "global_description.json")
SESSIONS = ("edit_sessions.json", "edit_turns.json")
MAX_CAPTION_FILE = 2**28


def open_layout(root: Path, split: str, rows: int) -> Layout:
    """InputError if there is neither of the two layouts for the split."""
    for folder in (root / split, root):
        for name in SESSIONS:
            # At the top level the file does not say its split; Parquet files would.
            if (folder / name).is_file() and not (folder == root and _has_tables(root, split)):
                return _sessions(root, folder, folder / name, rows)
    try:
        return _tables(root, split)
    except InputError as error:
        raise InputError(f"{error}; nor is there an {SESSIONS[0]}") from None


def _has_tables(root: Path, split: str) -> bool:
    try:
        return bool(tables.find_tables(root, split)[0])
    except InputError:
        return False


def _tables(root: Path, split: str) -> Layout:
    paths, notes = tables.find_tables(root, split)
    files = Files(root)

    def make(row: dict[str, Any]) -> EditRecord:
        turn, identity = row["turn"], row["id"]
        if not isinstance(turn, int):
            raise InputError(f"turn_index must be a whole number, got {type(turn).__name__}")
        return EditRecord(
            id=f"{checked_text(str(identity), 'img_id')}-{turn}",
            dataset="magicbrush",
            instruction=checked_instruction(row["instruction"]),
            source=tables.needed_picture(row, "source", files),
            target=tables.needed_picture(row, "target", files),
            mask=tables.picture_cell(row, "mask", files),
            turn=turn,
        )

    required = ("id", "turn", "source", "instruction", "target")
    return Layout(
        tables.table_pieces(root, paths, COLUMNS, required),
        lambda piece: tables.table_rows(root, piece, COLUMNS),
        make,
        [relative(path, root) for path in paths],
        notes,
    )


def _sessions(root: Path, folder: Path, path: Path, rows: int) -> Layout:
    found = next((folder / name for name in CAPTIONS if (folder / name).is_file()), None)
    captions = {} if found is None else _captions(found)
    notes = [] if found else [f"no captions: none of {', '.join(CAPTIONS)} in {folder}"]
    files, name = Files(folder), relative(path, root)
    make = _Turns(folder, files, captions)
    total = sum(1 for _ in _turns(path))
    pieces = [Piece(name, start, min(rows, total - start)) for start in range(0, total, rows)]
    used = [name] if found is None else [name, relative(found, root)]

    def read(piece: Piece) -> Iterator[tuple[str, Any]]:
        for turn in islice(_turns(path), piece.start, piece.start + piece.count):
            yield f"{turn[0]}[{turn[1]}]", turn

    return Layout(pieces, read, make, used, notes)


def _turns(path: Path) -> Iterator[tuple[str, int, Any]]:
    """(session, turn from 1, entry); a list of single turns has no sessions."""
    for session, entries in json_items(path):
        if isinstance(entries, list):
            yield from ((session, turn, entry) for turn, entry in enumerate(entries, 1))
        else:
            yield session, 1, entries


class _Turns:
    """Makes the records of sessions."""

    def __init__(self, folder: Path, files: Files, captions: dict[str, Any]):
        self._folder, self._files, self._captions = folder, files, captions

    def __call__(self, row: tuple[str, int, Any]) -> EditRecord:
        session, turn, entry = row
        entry = as_object(entry)
        first = checked_text(entry.get("input"), "input")
        image = session
        if not os.path.isdir(self._folder / "images" / session):
            image = first.partition("-")[0]  # edit_turns.json: the file's name begins with it
        target = self._name(entry, "output", image, turn)
        if target is None:
            raise InputError(f"output: no such file: '{image}-output{turn}.png'")
        mask = self._name(entry, "mask", image, turn)
        known = self._captions.get(image)
        known = known if isinstance(known, dict) else {}
        return EditRecord(
            id=f"{image}-{turn}" if image == session else target.rpartition(".")[0],
            dataset="magicbrush",
            instruction=checked_instruction(
                entry["instruction"] if "instruction" in entry else entry.get("instuction")
            ),
            source=self._picture(image, first, "input"),
            target=self._picture(image, target, "output"),
            mask=None if mask is None else self._picture(image, mask, "mask"),
            turn=turn,
            source_caption=checked_caption(known.get(first), "caption"),
            target_caption=checked_caption(known.get(target), "caption"),
        )

    def _name(self, entry: dict[str, Any], key: str, image: str, turn: int) -> str | None:
        """The file that the entry names, else the one that is named after the turn."""
        if entry.get(key) is not None:
            return checked_text(entry[key], key)
        name = f"{image}-{key}{turn}.png"
        try:
            self._files.find(f"images/{image}/{name}", key)
        except InputError:
            return None
        return name

    def _picture(self, image: str, name: str, key: str) -> bytes:
        return picture_file(self._files, f"images/{image}/{name}", key)


def _captions(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_CAPTION_FILE:
        raise InputError(f"{path}: larger than {MAX_CAPTION_FILE >> 20} MiB")
    return dict(json_items(path))
