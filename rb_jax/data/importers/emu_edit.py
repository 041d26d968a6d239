"""Emu Edit's benchmark in Parquet: without targets, or joined with the edits of its authors.

The set of edits (``_generations``) names its splits the other way round. Which split an edit
belongs to is therefore looked up in the benchmark itself, by hash or idx.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rb_jax.data.formats.records import EditRecord
from rb_jax.data.formats.untrusted import Files, checked_caption, checked_instruction, checked_text
from rb_jax.data.importers import tables
from rb_jax.data.importers.layout import Layout, relative
from rb_jax.errors import InputError

COLUMNS = {
    "instruction": ("instruction", "instuction"),
    "source": ("image",),
    "target": ("edited_image",),
    "task": ("task",),
    "idx": ("idx",),
    "hash": ("hash",),
    "model": ("model",),
    "source_caption": ("input_caption",),
    "target_caption": ("output_caption",),
}
_JOIN = {name: COLUMNS[name] for name in ("instruction", "idx", "hash")}


def open_layout(root: Path, split: str, rows: int) -> Layout:
    """InputError if no Parquet file under the folder has the split."""
    edits, plain = [], []
    for path in tables.all_tables(root):
        table = tables.open_table(path)
        (edits if "edited_image" in table.schema_arrow.names else plain).append(path)
        table.close()
    wanted: dict[str, str] | None = None
    if plain and edits:
        base = [path for path in plain if tables.in_split(path, root, split)]
        if not base:
            raise InputError(f"{root}: the benchmark has no Parquet file of split {split!r}")
        wanted, chosen, notes = _keys(root, base), edits, tables.gaps([*base, *edits], root)
        missing = len(wanted.keys() - _keys(root, edits).keys())
        if missing:
            notes.append(f"{split}: {missing} of {len(wanted)} instructions have no edited image")
        used = [*base, *edits]
    else:
        chosen, notes = tables.find_tables(root, split)
        used = chosen
        if edits:
            notes.append(
                "only edited images were found; this set swaps the names validation and test: put "
                "the benchmark itself beside it to have them put right"
            )
        else:
            notes.append("no edited images were found: the records have no target")
    required = ("instruction", "source", "idx" if wanted is None else "hash")
    return Layout(
        tables.table_pieces(root, chosen, COLUMNS, required),
        lambda piece: tables.table_rows(root, piece, COLUMNS),
        _Make(Files(root), wanted),
        [relative(path, root) for path in used],
        notes,
    )


def _keys(root: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Key -> instruction of every row."""
    edited = {}
    for piece in tables.table_pieces(root, paths, _JOIN, ("instruction", "hash")):
        for _, row in tables.table_rows(root, piece, _JOIN):
            edited[_key(row)] = row["instruction"]
    return edited


def _key(row: dict[str, Any]) -> str:
    """An instruction's hash; where it has none, its idx."""
    if isinstance(row["hash"], str) and row["hash"]:
        return row["hash"]
    if isinstance(row["hash"], int):
        return str(row["hash"])
    if row["idx"] is None:
        raise InputError("neither hash nor idx")
    return f"idx-{row['idx']}"


class _Make:
    def __init__(self, files: Files, wanted: dict[str, str] | None):
        self._files, self._wanted = files, wanted

    def __call__(self, row: dict[str, Any]) -> EditRecord | None:
        key = _key(row)
        if self._wanted is not None:
            if key not in self._wanted:
                return None
            if self._wanted[key] != row["instruction"]:
                raise InputError(f"its instruction is not that of {key!r} in the benchmark")
        model = row["model"]
        return EditRecord(
            id=key if model is None else f"{key}-{checked_text(model, 'model')}",
            dataset="emu_edit",
            category=checked_text(row["task"] or "", "task"),
            instruction=checked_instruction(row["instruction"]),
            source=tables.needed_picture(row, "source", self._files),
            target=tables.picture_cell(row, "target", self._files),
            source_caption=checked_caption(row["source_caption"], "input_caption"),
            target_caption=checked_caption(row["target_caption"], "output_caption"),
        )
