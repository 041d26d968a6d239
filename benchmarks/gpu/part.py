"""One part of the run in a process of its own: the card's memory is free when it ends."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

from benchmarks.gpu import rows
from rb_jax.errors import InputError

CARD = "h200:1"  # what the planner compiles for


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "theirs", "planner"))
    parser.add_argument("part")
    parser.add_argument("--size", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="to append to")
    given = parser.parse_args()
    write = functools.partial(rows.append, given.rows)
    if given.side == "planner":
        plan(given.size, rows.read(given.rows), write)
        return 0
    if given.side == "ours":
        import jax

        from benchmarks.gpu import ours as side

        if given.size == "full" and jax.default_backend() != "gpu":
            sys.exit(f"JAX sees no GPU here, but {jax.devices()[0].device_kind}")
    else:
        from benchmarks.gpu import theirs as side
    getattr(side, given.part)(given.size, given.repeats, write)
    return 0


def plan(size: str, done: list[rows.Row], write) -> None:
    """The planner's time for each of our measured programs; one refusal is the same for all."""
    from rb_jax.plan.compiling import analyse

    for row in (row for row in done if row.plan):
        kwargs = {"size": size, **(row.plan or {})}
        build = f"benchmarks.gpu.programs:{kwargs.pop('build')}"
        found = rows.Row(row.what, "planner")
        try:
            found.planned = analyse(build, CARD, kwargs=kwargs).predicted_step_s
        except InputError as error:
            write(dataclasses.replace(found, planner_note=f"planner: {error}"))
            return
        write(found)


if __name__ == "__main__":
    sys.exit(main())
