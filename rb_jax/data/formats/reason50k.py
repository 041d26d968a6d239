"""Data sets on disk, in the layout of the paper's authors.

``{train,val,test}.jsonl`` has one object per line: id, category, src_image, tgt_image, instruction,
and optionally objects and target_caption. Image paths are relative to the folder. The authors
number the files of ``images/{src,tgt}`` directly; what is written here goes to a folder for each
split, ``images/src/train/000000.png``, so that several splits can share one data set.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from rb_jax.data.formats.schema import CATEGORIES, EditExample
from rb_jax.data.formats.untrusted import (
    Files,
    Offenders,
    checked_instruction,
    checked_objects,
    json_object,
    lines,
    text,
)
from rb_jax.data.inputs.images import decode_resized, read_picture, save_image
from rb_jax.data.inputs.objects import extract_objects
from rb_jax.errors import InputError, reason
from rb_jax.runtime.progress import progress_bar

MAX_OBJECTS = 16  # as the authors


@dataclasses.dataclass(frozen=True)
class Record:
    """A checked line of a manifest; the picture files exist inside the data set's folder."""

    id: str
    category: str
    instruction: str
    objects: tuple[str, ...]
    source: Path
    target: Path
    target_caption: str | None = None
    place: str = ""  # of its line, "set/train.jsonl:12"


class Reason50K:
    """Map-style data set over a folder; pictures are read when asked for."""

    def __init__(
        self, root: str | os.PathLike[str], split: str, size: int, pictures_only: bool = False
    ):
        """Reads and checks the whole manifest; InputError as in ``read_manifest``."""
        self.records = read_manifest(root, split, pictures_only)
        self._size = size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> EditExample:
        """Example ``index`` with pictures stretched to the size; InputError names a broken file."""
        record = self.records[index]
        return EditExample(
            id=record.id,
            category=record.category,
            instruction=record.instruction,
            objects=record.objects,
            source=self._square(record.source),
            target=self._square(record.target),
            target_caption=record.target_caption,
            place=record.place,
        )

    def _square(self, path: Path) -> UInt8[np.ndarray, "S S 3"]:
        return decode_resized(read_picture(path), str(path), self._size, self._size)


def read_manifest(
    root: str | os.PathLike[str], split: str, pictures_only: bool = False
) -> list[Record]:
    """The records of ``root/split.jsonl``, read line by line and checked.

    Raises InputError for a missing folder or manifest, and with ``path:LINE: why`` for every line
    that is not as it should be. Blank lines are skipped. With ``pictures_only`` nothing but the
    paths of the pictures is looked at.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of a data set")
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in folder.glob("*.jsonl"))) or "none"
        raise InputError(f"{path}: no such manifest; splits in this folder: {splits}")
    files = Files(folder)
    files.find(path.name, "the manifest")
    records, wrong = [], Offenders()
    parse = parse_pictures if pictures_only else parse_record
    try:
        for number, line, _ in lines(path):
            place = f"{path}:{number}"
            try:
                records.append(dataclasses.replace(parse(line, files), place=place))
            except InputError as error:
                wrong.add(f"{place}: {error}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    wrong.check()
    if not records:
        raise InputError(f"{path}: the manifest has no lines; at least one example is needed")
    return records


def write_dataset(
    world: Any,
    count: int,
    out: str | os.PathLike[str],
    split: str,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes ``world[0] .. world[count - 1]`` as one split; returns the manifest's path.

    Everything is written aside and renamed at the end, the manifest last: a failure leaves no
    trace. The same examples give the same bytes. InputError if the split exists, unless
    ``overwrite``; other splits in the folder stay as they are.
    """
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    if not split.replace("_", "").replace("-", "").isalnum():
        raise InputError(f"{split!r} is not a name for a split; use letters, digits, - and _")
    out = Path(out)
    manifest = out / f"{split}.jsonl"
    if manifest.exists() and not overwrite:
        raise InputError(f"{manifest}: exists already; choose another folder or overwrite it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{split}.", dir=out) as partial:
            _write_examples(world, count, Path(partial), split, progress)
            _publish(Path(partial), out, split)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({reason(error)})") from error
    return manifest


def _write_examples(world: Any, count: int, folder: Path, split: str, progress: bool) -> None:
    for side in ("src", "tgt"):
        (folder / side).mkdir()
    bar = progress_bar(count, f"writing {split}", "example", enabled=progress)
    with bar, open(folder / "manifest", "w", encoding="utf-8", newline="\n") as manifest:
        for index in range(count):
            example = world[index]
            name = f"{index:06d}.png"
            save_image(folder / "src" / name, example.source, sync=False)
            save_image(folder / "tgt" / name, example.target, sync=False)
            line = {
                "id": example.id,
                "category": example.category,
                "src_image": f"images/src/{split}/{name}",
                "tgt_image": f"images/tgt/{split}/{name}",
                "instruction": example.instruction,
                "objects": list(example.objects),
                "target_caption": example.target_caption,
            }
            manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
            bar.update(1)


def _publish(partial: Path, out: Path, split: str) -> None:
    """Moves a finished split into place. Without its manifest a split does not exist."""
    manifest = out / f"{split}.jsonl"
    manifest.unlink(missing_ok=True)
    for side in ("src", "tgt"):
        place = out / "images" / side / split
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(partial / side, place)
    os.rename(partial / "manifest", manifest)


def parse_pictures(line: bytes | None, files: Files) -> Record:
    """As ``parse_record``, of the two pictures alone: what else a line says may be anything."""
    fields = json_object(line)
    source, target = (files.find(text(fields, k), k) for k in ("src_image", "tgt_image"))
    return Record("", "", "", (), source, target)


def parse_record(line: bytes | None, files: Files) -> Record:
    """A line of a manifest, None standing for one that is too long; InputError says why not."""
    fields = json_object(line)
    category = text(fields, "category")
    if category not in CATEGORIES:
        raise InputError(f"category {category[:40]!r} is not one of {', '.join(CATEGORIES)}")
    if "instruction" not in fields:
        raise InputError("instruction is missing")
    instruction = checked_instruction(fields["instruction"])
    caption = None if fields.get("target_caption") is None else text(fields, "target_caption")
    names = fields.get("objects")
    named = extract_objects(instruction, MAX_OBJECTS) if names is None else checked_objects(names)
    return Record(
        id=text(fields, "id"),
        category=category,
        instruction=instruction,
        objects=named,
        source=files.find(text(fields, "src_image"), "src_image"),
        target=files.find(text(fields, "tgt_image"), "tgt_image"),
        target_caption=caption,
    )
