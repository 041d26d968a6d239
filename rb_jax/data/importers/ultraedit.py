"""UltraEdit: Parquet files of the splits FreeForm_0, FreeForm_1, ...; some numbers are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rb_jax.data.formats.records import EditRecord
from rb_jax.data.formats.untrusted import Files, checked_caption, checked_instruction, checked_text
from rb_jax.data.importers import tables
from rb_jax.data.importers.layout import Layout, relative

COLUMNS = {
    "source_caption": ("source_caption",),
    "target_caption": ("target_caption",),
    "instruction": ("edit_prompt", "instruction"),
    "idx": ("idx",),
    "source": ("source_image",),
    "target": ("edited_image",),
    "object": ("edit_object",),
    "mask": ("mask_image",),
}
NO_OBJECT = ("", "none", "null", "nan")


def open_layout(root: Path, split: str, rows: int) -> Layout:
    """``split`` FreeForm is all of FreeForm_<n>; InputError if none is there."""
    paths, notes = tables.find_tables(root, split)
    files = Files(root)

    def make(row: dict[str, Any]) -> EditRecord:
        named = checked_text(row["object"] or "", "edit_object").strip()
        return EditRecord(
            id=row["key"] if row["idx"] is None else f"{row['key']}-{row['idx']}",
            dataset="ultraedit",
            instruction=checked_instruction(row["instruction"], "edit_prompt"),
            objects=() if named.lower() in NO_OBJECT else (named,),
            source=tables.needed_picture(row, "source", files),
            target=tables.needed_picture(row, "target", files),
            mask=tables.picture_cell(row, "mask", files),
            source_caption=checked_caption(row["source_caption"], "source_caption"),
            target_caption=checked_caption(row["target_caption"], "target_caption"),
        )

    return Layout(
        tables.table_pieces(root, paths, COLUMNS, ("instruction", "source", "target")),
        lambda piece: tables.table_rows(root, piece, COLUMNS),
        make,
        [relative(path, root) for path in paths],
        notes,
    )
