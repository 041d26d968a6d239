"""Writes ReasonWorld scenes with their right outcomes, in the Reason50K layout.

rb-jax data reasonworld --out=scenes --split=test --count=20
"""

from __future__ import annotations

from pathlib import Path

from rb_jax.cli.flags import Flags
from rb_jax.errors import InputError
from rb_jax.files import check_writable


def define(flags: Flags) -> None:
    flags.string("out", "Folder to write; other splits in it stay.", required=True)
    flags.string("split", "train, val, test or test_unseen.", "train")
    flags.integer("count", "Examples.", 1000)
    flags.integer("seed", "Seed of the world.", 0)
    flags.integer("size", "Side of the pictures in pixels.", 64)
    flags.boolean("overwrite", "Replace a split that is there.")


def run(flags: Flags) -> int:
    check_writable(Path(flags.out))
    from rb_jax.data.formats.reason50k import write_dataset
    from rb_jax.data.reasonworld import ReasonWorld

    if flags.count < 1:
        raise InputError(f"--count must be at least 1, got {flags.count}")
    try:
        world = ReasonWorld(flags.split, flags.seed, flags.size)
    except ValueError as error:
        raise InputError(str(error)) from None
    write_dataset(world, flags.count, flags.out, flags.split, overwrite=flags.overwrite)
    print(f"{flags.out}: {flags.count} examples of {flags.split}")
    return 0
