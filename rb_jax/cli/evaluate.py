"""Edits and scores held-out ReasonWorld scenes; writes scores.json, grid.png and every edit.

rb-jax evaluate --checkpoint=runs/mine --split=test --count=256 --out=runs/mine/test
"""

from __future__ import annotations

from pathlib import Path

from rb_jax.cli.flags import Flags


def define(flags: Flags) -> None:
    flags.trained()
    flags.string("split", "train, val, test or test_unseen.", "test")
    flags.integer("count", "Pictures to edit.", 256)
    flags.string("out", "Folder for scores.json, grid.png and the edits.", required=True)
    flags.boolean("find_objects", "Find objects in the sentence, not where the world has them.")
    flags.sampling()
    flags.compiling()


def run(flags: Flags) -> int:
    from rb_jax.editor import Editor, check_sampling
    from rb_jax.eval.evaluate import check_choice, evaluate, score_table, write_evaluation
    from rb_jax.files import check_writable

    check_writable(Path(flags.out))
    check_choice(flags.split, flags.count)
    check_sampling(**flags.sampled())
    editor = Editor.from_pretrained(flags.checkpoint)
    report, edits = evaluate(
        editor, flags.split, flags.count, find_objects=flags.find_objects, **flags.sampled()
    )
    write_evaluation(flags.out, report, edits)
    print(score_table(report))
    print(f"{flags.out}/scores.json, {flags.out}/grid.png")
    return 0
