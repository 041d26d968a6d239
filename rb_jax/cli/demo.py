"""The main job once, in a few minutes on a laptop: train a small ReasonBrain from scratch, edit and
score held-out scenes with it and with the shipped model, and write one self-contained report.

What an earlier run finished is reused.

  rb-jax demo --out=out/demo
"""

from __future__ import annotations

from pathlib import Path

from rb_jax.cli.flags import Flags
from rb_jax.errors import InputError


def define(flags: Flags) -> None:
    flags.string("out", "Folder to fill.", "out/demo")
    flags.integer("count", "Scenes to score in each split.", 64)
    flags.repeated(
        "set", "KEY=VALUE: a further value of the configuration, such as train.steps=100"
    )
    flags.compiling()


def run(flags: Flags) -> int:
    from rb_jax.cli import train
    from rb_jax.eval.demo import demo, training_command
    from rb_jax.files import check_writable

    check_writable(Path(flags.out))
    if flags.count < 1:
        raise InputError("--count must be at least 1")
    overrides = [f"--config.{each}" for each in flags.set]
    command = training_command(Path(flags.out), overrides)
    training = Flags("train", command[1:])
    train.define(training)
    training.parse()
    training.checked_config()
    cache = flags.compilation_cache
    demo(Path(flags.out), flags.count, overrides, [f"--compilation_cache={cache}"] * bool(cache))
    return 0
