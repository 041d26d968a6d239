"""What an importer is: a list of pieces of the source, the rows of a piece, a record of a row."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rb_jax.data.formats.records import EditRecord, check
from rb_jax.data.formats.untrusted import Files
from rb_jax.data.inputs.images import MAX_FILE_BYTES, decode_image
from rb_jax.errors import InputError, reason

Row = Any  # whatever an importer reads: a line, a dict of columns, ...


class Piece(NamedTuple):
    """Consecutive rows of one file, read together or not at all."""

    file: str  # relative to the source's folder
    start: int  # number of the first row
    count: int
    mark: int = 0  # where reading begins: a byte offset, a row group


Unit = tuple[Piece, ...]  # of one shard


class Reject(NamedTuple):
    """A row that is no record, and why."""

    file: str
    row: int | str  # line or row number, from 1 in text files and from 0 in tables; a key
    reason: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """An opened source.

    ``rows(piece)`` yields (row number or key, row); what it raises ends the import. ``make`` turns
    a row into a record, or None for one that belongs to another split; its InputError rejects the
    row. ``notes`` say what was not found.
    """

    pieces: Sequence[Piece]
    rows: Callable[[Piece], Iterator[tuple[int | str, Row]]]
    make: Callable[[Row], EditRecord | None]
    files: Sequence[str]  # all that the records depend on, relative; for the fingerprint
    notes: Sequence[str] = ()


def read_piece(layout: Layout, piece: Piece) -> Iterator[EditRecord | Reject]:
    """The records of a piece, checked down to their pixels, and the rows that are none."""
    for number, row in _rows(layout, piece):
        try:
            record = layout.make(row)
            if record is None:
                continue
            check(record)
            for name in ("source", "target", "mask"):
                picture = getattr(record, name)
                if picture is not None:
                    decode_image(picture, name)
        except InputError as error:
            yield Reject(piece.file, number, str(error))
        else:
            yield record


def _rows(layout: Layout, piece: Piece) -> Iterator[tuple[int | str, Row]]:
    try:
        yield from layout.rows(piece)
    except OSError as error:
        raise InputError(f"{piece.file}: cannot be read ({reason(error)})") from error


def pack(pieces: Iterable[Piece], rows: int) -> list[Unit]:
    """Consecutive pieces put together to at most ``rows`` rows, or to a single larger piece."""
    units: list[Unit] = []
    held: list[Piece] = []
    for piece in pieces:
        if held and sum(p.count for p in held) + piece.count > rows:
            units.append(tuple(held))
            held = []
        held.append(piece)
    return [*units, tuple(held)] if held else units


def picture_file(files: Files, path: str, key: str) -> bytes:
    """The bytes of a picture of the source; InputError if it may not or cannot be read."""
    return read_picture(files.find(path, key), key)


def read_picture(path: Path, key: str) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{key}: {path.name} is larger than {MAX_FILE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{key}: {path.name} cannot be read ({error.strerror})") from None


def pick(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these keys that has a value; None if none does."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def natural(name: str) -> list[Any]:
    """A sort key by which group_2 comes before group_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
