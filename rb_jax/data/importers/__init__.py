"""The layouts that ``rb-jax data import`` reads, one module each.

A layout is opened by ``open_layout(root, split, rows)``, which finds what is there, names what is
not, and divides it into pieces of about ``rows`` rows (rb_jax.data.importers.layout).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rb_jax.data.importers import (
    editworld,
    emu_edit,
    folder,
    instructpix2pix,
    magicbrush,
    reason50k,
    reasonedit,
    ultraedit,
)
from rb_jax.data.importers.layout import Layout


class Importer(NamedTuple):
    open_layout: Callable[[Path, str, int], Layout]
    split: str  # when none is asked for


IMPORTERS = {
    "reason50k": Importer(reason50k.open_layout, "train"),
    "magicbrush": Importer(magicbrush.open_layout, "train"),
    "emu_edit": Importer(emu_edit.open_layout, "validation"),
    "reasonedit": Importer(reasonedit.open_layout, reasonedit.SPLIT),
    "editworld": Importer(editworld.open_layout, editworld.SPLIT),
    "ultraedit": Importer(ultraedit.open_layout, "FreeForm"),
    "instructpix2pix": Importer(instructpix2pix.open_layout, "train"),
    "folder": Importer(folder.open_layout, "train"),
}
