"""Parquet tables: found by split, read a few rows at a time whatever the row groups' size."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rb_jax.data.formats.untrusted import Files, checked_text
from rb_jax.data.importers.layout import Piece, natural, picture_file, relative
from rb_jax.data.inputs.images import MAX_FILE_BYTES
from rb_jax.errors import InputError, listed, reason

# Rows decoded at a time, and the bytes of a file read at a time for each column.
BATCH_ROWS = 4
BUFFER_BYTES = 2**20
SPOOL_BYTES = 2**25
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-zA-Z]+)?")

Columns = Mapping[str, Sequence[str]]  # our name -> the names that data sets give it


def find_tables(root: Path, split: str) -> tuple[list[Path], list[str]]:
    """The Parquet files of a split under a folder, and notes on those that are not there.

    A file's split is the beginning of ``SPLIT-00000-of-00031-HASH.parquet``, else its folder's
    name, else its own. ``FreeForm`` names all of ``FreeForm_0``, ``FreeForm_1``, ...
    """
    paths = all_tables(root)
    files = [p for p in paths if in_split(p, root, split)]
    if not files:
        known = sorted({split_of(p, root) for p in paths}, key=natural)
        raise InputError(
            f"{root}: no Parquet file of split {split!r}; splits here: {listed(known, limit=12)}"
        )
    return files, gaps(files, root)


def all_tables(root: Path) -> list[Path]:
    """Every Parquet file under a folder, numbers in order; InputError if there is none."""
    paths = [
        Path(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith(".parquet") and not name.startswith(".")
    ]
    if not paths:
        raise InputError(f"{root}: no Parquet files (*.parquet) in this folder or below it")
    return sorted(paths, key=lambda path: natural(relative(path, root)))


def split_of(path: Path, root: Path) -> str:
    if match := _SHARD.fullmatch(path.stem):
        return match["split"]
    if path.parent != root and path.parent.name != "data":
        return path.parent.name
    return path.stem


def in_split(path: Path, root: Path, split: str) -> bool:
    return re.fullmatch(rf"{re.escape(split)}(_\d+)?", split_of(path, root)) is not None


def gaps(paths: Sequence[Path], root: Path) -> list[str]:
    """A line for every run of numbers that has holes."""
    runs: dict[tuple[str, int], set[int]] = {}
    series: dict[str, set[int]] = {}
    for path in paths:
        split = split_of(path, root)
        if match := _SHARD.fullmatch(path.stem):
            runs.setdefault((split, int(match["count"])), set()).add(int(match["number"]))
        if numbered := re.fullmatch(r"(.+)_(\d+)", split):
            series.setdefault(numbered[1], set()).add(int(numbered[2]))
    notes = []
    for (split, count), numbers in runs.items():
        if missing := sorted(set(range(count)) - numbers):
            some = listed([f"{n:05d}" for n in missing])
            notes.append(f"{split}: {len(missing)} of {count} Parquet files not found: {some}")
    for name, numbers in series.items():
        if missing := sorted(set(range(max(numbers) + 1)) - numbers):
            notes.append(f"{name}: no files numbered {listed(missing)}")
    return notes


def open_table(path: Path) -> Any:
    """A Parquet file, read through a small buffer; InputError if it is none."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            "reading Parquet files needs pyarrow, of the extra [data]: pip install pyarrow"
        ) from None
    try:
        return parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except Exception as error:  # pyarrow's exceptions derive from many of Python's
        raise _broken(path, error) from None


def table_pieces(root: Path, paths: Sequence[Path], names: Columns, required: Sequence[str]):
    """A piece for each row group; InputError for a table without one of the required columns."""
    pieces = []
    for path in paths:
        table = open_table(path)
        columns = table.schema_arrow.names
        for field in required:
            if not any(name in columns for name in names[field]):
                raise InputError(
                    f"{path}: no column {' or '.join(names[field])}; "
                    f"its columns: {listed(columns, limit=20)}"
                )
        start = 0
        for group in range(table.metadata.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if count:
                pieces.append(Piece(relative(path, root), start, count, group))
            start += count
        table.close()
    return pieces


def table_rows(root: Path, piece: Piece, names: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, {our name: value or None}) of a row group; ``key`` is FILE-ROW.

    BATCH_ROWS rows and a page of each column are in memory. Many writers make one page of a whole
    row group, so large columns of pictures go through a temporary file, one after the other.
    """
    path = root / piece.file
    table = open_table(path)
    columns = table.schema_arrow.names
    chosen = {f: next((n for n in known if n in columns), None) for f, known in names.items()}
    with contextlib.closing(table), contextlib.ExitStack() as stack:
        spools = {
            name: stack.enter_context(_Spool(table, piece.mark, name, path))
            for name in chosen.values()
            if name is not None and _is_large(table, piece.mark, name)
        }
        wanted = [name for name in chosen.values() if name is not None and name not in spools]
        for index, row in enumerate(_read(table, piece.mark, wanted, path)):
            row |= {name: spool[index] for name, spool in spools.items()}
            values = {field: None if name is None else row[name] for field, name in chosen.items()}
            number = piece.start + index
            yield number, values | {"key": f"{path.stem}-{number}"}


def _is_large(table: Any, group: int, name: str) -> bool:
    """Whether a column holds pictures, and many of them."""
    import pyarrow as pa

    kind = table.schema_arrow.field(name).type
    if not (pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return False
    metadata = table.metadata.row_group(group)
    parts = (metadata.column(number) for number in range(metadata.num_columns))
    mine = (part for part in parts if part.path_in_schema.partition(".")[0] == name)
    return sum(part.total_uncompressed_size for part in mine) > SPOOL_BYTES


def _read(table: Any, group: int, columns: list[str], path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a row group, these columns; InputError where it is damaged."""
    count = table.metadata.row_group(group).num_rows
    number = 0
    try:
        batches = table.iter_batches(
            batch_size=BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
        )
        for batch in batches:
            for row in batch.to_pylist():
                yield row
                number += 1
    except Exception as error:
        raise _broken(path, error, f"row group {group}, after {number} of {count} rows: ") from None
    if number != count:
        raise InputError(f"{path}: row group {group} has {number} rows instead of {count}")


class _Spool:
    """A column in a temporary file, read back a cell at a time."""

    def __init__(self, table: Any, group: int, name: str, path: Path):
        self._file = tempfile.TemporaryFile(prefix="rb_jax-")  # noqa: SIM115
        self._cells: list[tuple[int, int, Any]] = []  # offset, length, the cell without its bytes
        try:
            for row in _read(table, group, [name], path):
                cell = row[name]
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                rest = cell | {"bytes": None} if isinstance(cell, dict) else None
                self._cells.append((self._file.tell(), -1 if data is None else len(data), rest))
                self._file.write(data or b"")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getitem__(self, index: int) -> Any:
        offset, length, rest = self._cells[index]
        self._file.seek(offset)
        data = None if length < 0 else self._file.read(length)
        return data if rest is None else rest | {"bytes": data}


def picture_cell(row: Mapping[str, Any], key: str, files: Files) -> bytes | None:
    """A cell that is {bytes, path}, or bytes; None if it is empty."""
    value = row[key]
    if isinstance(value, dict):
        inner, path = value.get("bytes"), value.get("path")
        if not inner and path:
            return picture_file(files, checked_text(path, key), key)
        value = inner
    if not value:
        return None
    if not isinstance(value, bytes):
        raise InputError(f"{key} must be a picture, got {type(value).__name__}")
    if len(value) > MAX_FILE_BYTES:
        raise InputError(f"{key} is larger than {MAX_FILE_BYTES >> 20} MiB")
    return value


def needed_picture(row: Mapping[str, Any], key: str, files: Files) -> bytes:
    value = picture_cell(row, key, files)
    if value is None:
        raise InputError(f"{key} is missing")
    return value


def _broken(path: Path, error: Exception, where: str = "") -> InputError:
    return InputError(f"{path}: {where}not a whole Parquet file ({reason(error)}); fetch it again")
