"""Runs ours and PyTorch's side on the same inputs and compares them stage by stage.

Ends with 1 when they differ by more than rounding. Needs the extra [torch].

  rb-jax parity --checkpoint=runs/mine --reference=exported
"""

from __future__ import annotations

from rb_jax.cli.flags import Flags


def define(flags: Flags) -> None:
    flags.string(
        "checkpoint",
        "Weights folder, training workdir, imported part, or 'shipped'.",
        required=True,
    )
    flags.string(
        "reference", "The PyTorch side: a stock folder, or --format=torch's.", required=True
    )
    flags.integer("seed", "Seed of the inputs.", 0)
    flags.compiling()


def run(flags: Flags) -> int:
    from rb_jax.port.parity import compare

    report = compare(flags.checkpoint, flags.reference, flags.seed)
    print(report.text())
    return 0 if report.passed else 1
