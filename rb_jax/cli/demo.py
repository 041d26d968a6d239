"""The main job once, in a few minutes on a laptop: train a small ReasonBrain from scratch, edit and
score held-out scenes with it and with the shipped model, and write one self-contained report.

What an earlier run finished is reused.

  rb-jax demo --out=out/demo
"""

from __future__ import annotations

from pathlib import Path

from rb_jax.cli.flags import Flags


def define(flags: Flags) -> None:
    flags.string("out", "Folder to fill.", "out/demo")
    flags.integer("count", "Scenes to score in each split.", 64)
    flags.repeated("set", "KEY=VALUE: a further value of the configuration, e.g. train.steps=20.")


def run(flags: Flags) -> int:
    from rb_jax.eval.demo import demo
    from rb_jax.files import check_writable

    check_writable(Path(flags.out))
    demo(Path(flags.out), flags.count, [f"--config.{each}" for each in flags.set])
    return 0
