"""ReasonEdit, SmartEdit's benchmark: folders of pictures with a text file each; no targets.

Line i of the text goes with the i-th PNG in the order of names.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rb_jax.data.formats.records import EditRecord
from rb_jax.data.formats.untrusted import Files, checked_caption, checked_instruction, lines
from rb_jax.data.importers.layout import Layout, Piece, natural, picture_file, relative
from rb_jax.errors import InputError, listed

TEXTS = {
    "1-Left-Right": "Left_Right_text.txt",
    "2-Relative-Size": "Size_text.txt",
    "3-Mirror": "Mirror_text.txt",
    "4-Color": "Color_text.txt",
    "5-Multiple-Objects": "MultipleObjects_text.txt",
    "6-Reasoning": "Reason_test.txt",
}
SPLIT = "test"
_CAPTION = " CLIP:"


def open_layout(root: Path, split: str, rows: int) -> Layout:
    """InputError if no folder is there, or a text has more or fewer lines than pictures."""
    if split != SPLIT:
        raise InputError(f"reasonedit is a benchmark: its only split is {SPLIT!r}, not {split!r}")
    folders = [folder for folder in TEXTS if (root / folder).is_dir()]
    if not folders:
        raise InputError(f"{root}: none of the folders {', '.join(TEXTS)}")
    notes = []
    if missing := [folder for folder in TEXTS if folder not in folders]:
        notes.append(f"folders not found: {', '.join(missing)}")
    files, pictures, pieces, used = Files(root), {}, [], []
    for folder in folders:
        text, names = _text(root / folder), _pictures(root / folder)
        count = sum(1 for _ in _sentences(text))
        if count != len(names):
            raise InputError(
                f"{text}: {count} lines and {len(names)} PNG files; they go together one by one, "
                "so none may be missing"
            )
        if names != sorted(names, key=natural):
            notes.append(f"{folder}: pictures are taken in the order of their names, 10 before 2")
        name = relative(text, root)
        pictures[name] = names
        used.append(name)
        pieces += [Piece(name, s, min(rows, count - s)) for s in range(0, count, rows)]

    def read(piece: Piece) -> Iterator[tuple[int, Any]]:
        sentences = islice(_sentences(root / piece.file), piece.start, piece.start + piece.count)
        for index, sentence in enumerate(sentences, piece.start):
            yield index + 1, (Path(piece.file).parent.name, pictures[piece.file][index], sentence)

    return Layout(pieces, read, lambda row: _record(files, *row), used, notes)


def _text(folder: Path) -> Path:
    known = folder / TEXTS[folder.name]
    if known.is_file():
        return known
    texts = sorted(folder.glob("*.txt"))
    if len(texts) != 1:
        raise InputError(f"{known}: no such file; text files there: {listed(texts) or 'none'}")
    return texts[0]


def _pictures(folder: Path) -> list[str]:
    """The sources; masks may be PNG too."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() == ".png")
    return [name for name in names if not Path(name).stem.endswith("_mask")]


def _sentences(path: Path) -> Iterator[bytes | None]:
    """Every line up to the last that is not blank: a blank one between them keeps its number."""
    expected = 1
    for number, line, _ in lines(path):
        yield from (b"" for _ in range(expected, number))
        yield line
        expected = number + 1


def _record(files: Files, folder: str, picture: str, line: bytes | None) -> EditRecord:
    if line is None:
        raise InputError("the line is too long")
    try:
        instruction, mark, caption = line.decode("utf-8").strip().rpartition(_CAPTION)
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text") from None
    if not mark:
        instruction, caption = caption, ""
    stem = picture.rpartition(".")[0]
    return EditRecord(
        id=f"{folder}/{stem}",
        dataset="reasonedit",
        category=folder.partition("-")[2],
        instruction=checked_instruction(instruction.strip()),
        source=picture_file(files, f"{folder}/{picture}", "source"),
        mask=_mask(files, folder, stem),
        target_caption=checked_caption(caption.strip(), "the text after CLIP:"),
    )


def _mask(files: Files, folder: str, stem: str) -> bytes | None:
    for suffix in (".jpg", ".png", ".jpeg"):
        try:
            files.find(f"{folder}/{stem}_mask{suffix}", "mask")
        except InputError:
            continue
        return picture_file(files, f"{folder}/{stem}_mask{suffix}", "mask")
    return None
