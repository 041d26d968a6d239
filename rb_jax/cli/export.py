"""Writes a model, or an imported part, for PyTorch.

rb-jax export --checkpoint=runs/mine --format=torch --out=exported
"""

from __future__ import annotations

from rb_jax.cli.flags import Flags

FORMATS = ["diffusers", "bfl", "hf", "peft", "official", "torch"]


def define(flags: Flags) -> None:
    flags.string(
        "checkpoint",
        "Weights folder, training workdir, imported part, or 'shipped'.",
        required=True,
    )
    flags.choice("format", FORMATS, "The layout to write.", required=True)
    flags.string("out", "Folder to write; it must not exist, or be empty.", required=True)


def run(flags: Flags) -> int:
    from rb_jax.port.exporting import export_checkpoint

    for path in export_checkpoint(flags.checkpoint, flags.format, flags.out, progress=True):
        print(path)
    return 0
