"""Edits one picture; without --checkpoint by the small model that comes with the package.

rb-jax edit --image=scene.png --instruction="What if the rope were cut?" --out=edited.png
rb-jax edit --image=scene.png --instruction="What if it fell?" --objects=duck --out=edited.png
"""

from __future__ import annotations

from pathlib import Path

from rb_jax.cli.flags import Flags
from rb_jax.errors import InputError


def define(flags: Flags) -> None:
    flags.string("image", "Picture to edit: PNG, JPEG, WebP, BMP, TIFF or GIF.", required=True)
    flags.string("instruction", "The hypothesis, e.g. 'What if it rained?'", required=True)
    flags.string(
        "out", "Where the edited picture goes; the suffix decides the format.", required=True
    )
    flags.words(
        "objects",
        "What the instruction names, comma-separated (default: found in it by rules).",
    )
    flags.trained()
    flags.sampling()
    flags.compiling()


def run(flags: Flags) -> int:
    import numpy as np

    from rb_jax.data.inputs.images import check_writable, open_image, save_image
    from rb_jax.data.inputs.text import EMPTY_INSTRUCTION
    from rb_jax.editor import Editor, check_sampling

    check_writable(flags.out)
    if not flags.instruction.strip():
        raise InputError(EMPTY_INSTRUCTION)
    check_sampling(**flags.sampled())
    pixels = open_image(Path(flags.image))
    editor = Editor.from_pretrained(flags.checkpoint)
    edited = editor.edit(pixels, flags.instruction, objects=flags.objects or (), **flags.sampled())
    save_image(Path(flags.out), np.asarray(edited))
    print(f"{flags.out}: {edited.width} x {edited.height} pixels")
    return 0
