"""InstructPix2Pix, the CLIP-filtered pairs in Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rb_jax.data.formats.records import EditRecord
from rb_jax.data.formats.untrusted import Files, checked_caption, checked_instruction
from rb_jax.data.importers import tables
from rb_jax.data.importers.layout import Layout, relative

COLUMNS = {
    "source_caption": ("original_prompt",),
    "source": ("original_image", "input_image"),
    "instruction": ("edit_prompt",),
    "target_caption": ("edited_prompt",),
    "target": ("edited_image",),
}


def open_layout(root: Path, split: str, rows: int) -> Layout:
    """InputError if the split's Parquet files are not there."""
    paths, notes = tables.find_tables(root, split)
    files = Files(root)

    def make(row: dict[str, Any]) -> EditRecord:
        return EditRecord(
            id=row["key"],
            dataset="instructpix2pix",
            instruction=checked_instruction(row["instruction"], "edit_prompt"),
            source=tables.needed_picture(row, "source", files),
            target=tables.needed_picture(row, "target", files),
            source_caption=checked_caption(row["source_caption"], "original_prompt"),
            target_caption=checked_caption(row["target_caption"], "edited_prompt"),
        )

    return Layout(
        tables.table_pieces(root, paths, COLUMNS, ("source", "instruction", "target")),
        lambda piece: tables.table_rows(root, piece, COLUMNS),
        make,
        [relative(path, root) for path in paths],
        notes,
    )
