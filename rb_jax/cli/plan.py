"""Compiles the training step, or the sampler, for hardware that is not here.

Prints what fits in memory, what travels between chips and how long a step should take, in a row
per topology; ends with 1 when something that was asked for does not fit. Needs the extra [plan]
(TPUs) or [plan-gpu]. A compile takes one to several minutes.

  rb-jax plan --config=flux:small --topology=v5p:2x2x1,h200:8 --report=plan.html
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from rb_jax.cli.flags import Flags
from rb_jax.errors import InputError
from rb_jax.files import check_writable, write_text
from rb_jax.runtime.logging import LOG


def define(flags: Flags) -> None:
    flags.config()
    flags.words(
        "topology",
        "Hardware, comma-separated: v5p:2x2x1, v5e:16x16, v6e:8x8, h200:8, ...",
        required=True,
    )
    flags.integer("slices", "Slices of each TPU topology.", 1)
    flags.choice("program", ["train", "sample"], "The training step, or the sampler.", "train")
    flags.integer(
        "batch_per_chip",
        "Examples per chip, for every topology; 0 keeps the configuration's batch.",
        0,
    )
    flags.boolean("search", "Try meshes, batches and remat.")
    flags.integer("compiles", "Candidates that --search compiles.", 3)
    flags.string("json", "File for the rows; written anew as each is done.")
    flags.string("report", "File for an HTML page with charts.")
    flags.string("save", "Folder for the optimized programs.")


def run(flags: Flags) -> int:
    # Only shapes are needed here; the compilers run in processes of their own.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rb_jax.plan import page, planner, search
    from rb_jax.plan.planner import Row

    for name in ("json", "report"):
        if path := getattr(flags, name):
            if Path(path).is_dir():
                raise InputError(f"--{name}={path}: is a folder; give the path of a file")
            if not Path(path).resolve().parent.is_dir():
                raise InputError(f"--{name}={path}: no such folder")
            check_writable(Path(path).resolve().parent)
    if flags.save:
        check_writable(Path(flags.save).resolve())
    for name, least in (("compiles", 1), ("batch_per_chip", 0), ("slices", 1)):
        if getattr(flags, name) < least:
            raise InputError(f"--{name} must be at least {least}")
    config, rows = flags.checked_config(), []

    def take(row: Row) -> None:
        rows.append(row)
        if flags.json:
            write_text(Path(flags.json), planner.to_json(rows))

    try:
        if flags.search:
            for name in flags.topology:
                for row in search.search(config, name, flags.slices, flags.compiles, LOG.info):
                    take(row)
        else:
            planner.plan(
                config,
                flags.topology,
                flags.slices,
                flags.program,
                flags.batch_per_chip,
                flags.save,
                take,
            )
    finally:  # what is done is worth minutes of compiling, whatever came after it
        if rows:
            print(planner.table(rows))
    if flags.report:
        command = "rb-jax " + shlex.join(["plan", *flags.argv])
        write_text(Path(flags.report), page.render(rows, "Plan of a training step", command))
    for path in (flags.json, flags.report):
        if path:
            print(path)
    wrong = [row for row in rows if not row.fits]
    for row in [] if flags.search else wrong:
        print(f"rb-jax: {row.topology} does not fit: {row.note}", file=sys.stderr)
    return int(bool(wrong) and not (flags.search and rows[0].fits))
