"""``rb-jax plan``: the planner on the command line."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rb_jax.config import from_config_dict
from rb_jax.errors import InputError


def run(values: Any, argv: Sequence[str]) -> int:
    """Prints the table and writes the files; 1 when something that was asked for does not fit."""
    # Only shapes are needed here; the compilers run in processes of their own.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rb_jax.plan import page, planner, search

    for name in ("json", "report"):
        path = values[name].value
        if path and not Path(path).resolve().parent.is_dir():
            raise InputError(f"--{name}={path}: no such folder")
    config, names = from_config_dict(values.config), values.topology
    if values.search:
        rows = [
            row
            for name in names
            for row in search.search(config, name, values.slices, values.compiles, _say)
        ]
    else:
        rows = planner.plan(
            config, names, values.slices, values.program, values.batch_per_chip, values.save, _say
        )
    print(planner.table(rows))
    command = "rb-jax " + shlex.join(argv)
    if values.json:
        _write(values.json, planner.to_json(rows))
    if values.report:
        _write(values.report, page.render(rows, "Plan of a training step", command))
    wrong = [row for row in rows if not row.fits]
    for row in [] if values.search else wrong:
        print(f"rb-jax: {row.topology} does not fit: {row.note}", file=sys.stderr)
    return int(bool(wrong) and not (values.search and rows[0].fits))


def _write(path: str, text: str) -> None:
    """The whole file or nothing."""
    folder = Path(path).resolve().parent
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.replace(file.name, path)
    print(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
