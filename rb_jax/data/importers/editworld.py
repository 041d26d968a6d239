"""EditWorld: groups of pictures with an img_txt.json each, or one flat list, train.json.

Its paths are relative to wherever its authors worked: the longest ending of a path that exists in
the folder is taken, else the picture of that name in the group's own folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
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
from rb_jax.data.importers.layout import Layout, Piece, natural, picture_file, relative
from rb_jax.errors import InputError

KINDS = ("generated_img", "video_img", "human_select_img")
LIST = "train.json"
TEXT = "img_txt.json"
SPLIT = "train"


def open_layout(root: Path, split: str, rows: int) -> Layout:
    """InputError if the folder has neither groups nor the list."""
    if split != SPLIT:
        raise InputError(f"editworld has one split, {SPLIT!r}, not {split!r}")
    texts, notes = _texts(root)
    pieces = []
    for text in texts:
        count = sum(1 for _ in json_items(text))
        name = relative(text, root)
        pieces += [Piece(name, s, min(rows, count - s)) for s in range(0, count, rows)]
    files = Files(root)

    def read(piece: Piece) -> Iterator[tuple[str, Any]]:
        items = json_items(root / piece.file)
        for key, entry in islice(items, piece.start, piece.start + piece.count):
            yield key, (PurePosixPath(piece.file).parent, key, entry)

    return Layout(
        pieces, read, lambda row: _record(files, *row), [relative(t, root) for t in texts], notes
    )


def _texts(root: Path) -> tuple[list[Path], list[str]]:
    if (root / LIST).is_file():
        return [root / LIST], []
    kinds = [kind for kind in KINDS if (root / kind).is_dir()]
    if not kinds:
        raise InputError(f"{root}: neither {LIST} nor one of the folders {', '.join(KINDS)}")
    notes = [f"folder not found: {kind}" for kind in KINDS if kind not in kinds]
    texts = []
    for kind in kinds:
        folders = sorted((p for p in (root / kind).iterdir() if p.is_dir()), key=_by_name)
        for folder in folders:
            if (folder / TEXT).is_file():
                texts.append(folder / TEXT)
            else:
                notes.append(f"{relative(folder, root)} has no {TEXT}")
    if not texts:
        raise InputError(f"{root}: no group has an {TEXT}")
    return texts, notes


def _by_name(path: Path) -> list[Any]:
    return natural(path.name)


def _record(files: Files, folder: PurePosixPath, key: str, entry: Any) -> EditRecord:
    entry = as_object(entry)
    instruction = entry["instuction"] if "instuction" in entry else entry.get("instruction")
    source = _find(files, folder, entry, "original_img_path")
    target = _find(files, folder, entry, "target_img_path")
    group = str(folder)
    return EditRecord(
        id=key if group == "." else f"{group}/{key}",
        dataset="editworld",
        category=next((kind for kind in KINDS if kind in PurePosixPath(source).parts), ""),
        instruction=checked_instruction(instruction),
        source=picture_file(files, source, "original_img_path"),
        target=picture_file(files, target, "target_img_path"),
        source_caption=checked_caption(entry.get("original_caption"), "original_caption"),
        target_caption=checked_caption(entry.get("target_caption"), "target_caption"),
    )


def _find(files: Files, folder: PurePosixPath, entry: dict[str, Any], key: str) -> str:
    """The path inside the source's folder of the picture that an entry names."""
    if key not in entry:
        raise InputError(f"{key} is missing")
    path = checked_text(entry[key], key)
    parts = PurePosixPath(path).parts
    endings = [str(PurePosixPath(*parts[start:])) for start in range(len(parts))][:32]
    first: InputError | None = None
    for ending in [path, *endings[1:], *([str(folder / parts[-1])] if parts else [])]:
        try:
            files.find(ending, key)
            return ending
        except InputError as error:
            if "no such file" not in str(error):
                raise  # a path that leaves the folder is not looked for elsewhere
            first = first or error
    raise first or InputError(f"{key} is missing")
