"""Data sets on disk, in the layout of the paper's authors.

``{train,val,test}.jsonl`` has one object a line: id, category, src_image, tgt_image, instruction,
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
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from rb_jax.data.images import open_image, save_image, to_square
from rb_jax.data.objects import extract_objects
from rb_jax.data.schema import CATEGORIES, EditExample
from rb_jax.errors import InputError
from rb_jax.progress import progress_bar

MAX_LINE_BYTES = 2**20
MAX_INSTRUCTION = 2000  # characters
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


class Reason50K:
    """Map-style data set over a folder; pictures are read when asked for."""

    def __init__(self, root: str | os.PathLike[str], split: str, size: int):
        """Reads and checks the whole manifest; InputError as in ``read_manifest``."""
        self.records = read_manifest(root, split)
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
            source=to_square(open_image(record.source), self._size),
            target=to_square(open_image(record.target), self._size),
            target_caption=record.target_caption,
        )


def read_manifest(root: str | os.PathLike[str], split: str) -> list[Record]:
    """The records of ``root/split.jsonl``, read line by line and checked.

    Raises InputError for a missing folder or manifest, and with ``path:LINE: why`` for the first
    line that is not as it should be. Blank lines are skipped.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of a data set")
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        splits = ", ".join(sorted(p.stem for p in folder.glob("*.jsonl"))) or "none"
        raise InputError(f"{path}: no such manifest; splits in this folder: {splits}")
    files = _Files(folder)
    records = []
    try:
        for number, line in _lines(path):
            try:
                records.append(_record(line, files))
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
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
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return manifest


def _write_examples(world: Any, count: int, folder: Path, split: str, progress: bool) -> None:
    for side in ("src", "tgt"):
        (folder / side).mkdir()
    bar = progress_bar(count, f"writing {split}", "example", enabled=progress)
    with bar, open(folder / "manifest", "w", encoding="utf-8", newline="\n") as manifest:
        for index in range(count):
            example = world[index]
            name = f"{index:06d}.png"
            save_image(folder / "src" / name, example.source)
            save_image(folder / "tgt" / name, example.target)
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


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank; an endless line is cut, never read whole."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{path}:{number}: longer than {MAX_LINE_BYTES} bytes")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def _record(line: bytes, files: _Files) -> Record:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text") from None
    except RecursionError:
        raise InputError("not JSON (nested too deeply)") from None
    except ValueError as error:
        raise InputError(f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"expected a JSON object, got {type(fields).__name__}")
    category = _text(fields, "category")
    if category not in CATEGORIES:
        raise InputError(f"category {category[:40]!r} is not one of {', '.join(CATEGORIES)}")
    instruction = _text(fields, "instruction")
    if not instruction.strip():
        raise InputError("instruction is empty")
    if len(instruction) > MAX_INSTRUCTION:
        raise InputError(
            f"instruction has {len(instruction)} characters; the limit is {MAX_INSTRUCTION}"
        )
    caption = None if fields.get("target_caption") is None else _text(fields, "target_caption")
    return Record(
        id=_text(fields, "id"),
        category=category,
        instruction=instruction,
        objects=_objects(fields, instruction),
        source=files.find(_text(fields, "src_image"), "src_image"),
        target=files.find(_text(fields, "tgt_image"), "tgt_image"),
        target_caption=caption,
    )


def _text(fields: dict[str, Any], key: str) -> str:
    if key not in fields:
        raise InputError(f"{key} is missing")
    return _checked_text(fields[key], key)


def _checked_text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{key} must be a string, got {type(value).__name__}")
    try:
        value.encode("utf-8")  # JSON can spell half a surrogate pair, which no file or model takes
    except UnicodeEncodeError:
        raise InputError(f"{key} holds characters that are not valid Unicode") from None
    return value


def _objects(fields: dict[str, Any], instruction: str) -> tuple[str, ...]:
    values = fields.get("objects")
    if values is None:
        return extract_objects(instruction, MAX_OBJECTS)
    if not isinstance(values, list):
        raise InputError(f"objects must be a list of strings, got {type(values).__name__}")
    names = (_checked_text(value, f"objects[{i}]").strip() for i, value in enumerate(values))
    return tuple(name for name in names if name)


class _Files:
    """Finds picture files under a folder and nowhere else."""

    def __init__(self, root: Path):
        self._root = os.path.realpath(root)
        self._inside: set[str] = set()  # real folders known to lie under the root
        self._real: dict[str, str] = {}

    def find(self, relative: str, key: str) -> Path:
        """The file's path; InputError if it is missing or lies outside, also through a link."""
        pure = PurePosixPath(relative)
        if not relative or "\0" in relative:
            raise InputError(f"{key} is not a path: {relative[:80]!r}")
        if pure.is_absolute() or PureWindowsPath(relative).drive or relative.startswith("\\"):
            raise InputError(f"{key} must be relative to the data set's folder: {relative[:200]!r}")
        if ".." in pure.parts or ".." in PureWindowsPath(relative).parts:
            raise InputError(f"{key} leaves the data set's folder: {relative[:200]!r}")
        try:
            path = self._resolve(pure)
            if not os.path.isfile(path):
                raise InputError(f"{key}: no such file: {relative[:200]!r}")
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{key}: cannot be read: {relative[:200]!r}") from None
        if os.path.commonpath([self._root, path]) != self._root:
            raise InputError(f"{key} leaves the data set's folder: {relative[:200]!r}")
        return Path(path)

    def _resolve(self, pure: PurePosixPath) -> str:
        """The real path; folders are resolved once, since a manifest names few of them."""
        parent = str(pure.parent)
        if parent not in self._real:
            self._real[parent] = os.path.realpath(os.path.join(self._root, parent))
        path = os.path.join(self._real[parent], pure.name)
        return os.path.realpath(path) if os.path.islink(path) else path
