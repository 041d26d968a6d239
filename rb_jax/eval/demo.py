"""``rb-jax demo``: the main job once, live, in a few minutes on a laptop.

Trains the configuration ``reasonworld`` for a short while, restores the checkpoint in a new
process, edits and scores held-out scenes with it and with the shipped model, and writes one
self-contained report. What an earlier run finished is reused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rb_jax.checkpoint.stored import load_weights
from rb_jax.config import Config
from rb_jax.editor import Editor
from rb_jax.eval.evaluate import (
    Scored,
    choose,
    edit_all,
    grid_rows,
    open_world,
    read_edits,
    with_editor,
)
from rb_jax.eval.reasonworld import score_edit
from rb_jax.eval.report import ReportData, StageParameters, write_report
from rb_jax.files import to_json, write_text
from rb_jax.models.types import STAGES
from rb_jax.report.grids import GridRow
from rb_jax.runtime.exits import RunError, Terminated
from rb_jax.train.metrics import read_lines
from rb_jax.weights.folder import resolve

SPLITS = ("test", "test_unseen")
PICTURES_A_CATEGORY = 4
GRACE = 5.0  # seconds in which a process that was interrupted ends by itself
# A short run: fewer scenes and steps than the shipped model's, everything else the same.
OVERRIDES = (
    "--config.data.count=3072",
    "--config.train.steps=320",
    "--config.train.eval_every=160",
    "--config.train.checkpoint_every=160",
    "--config.train.ema_decay=0.98",
    "--config.optimizer.warmup_steps=40",
)


def demo(
    out: Path, count: int, overrides: Sequence[str] = (), everywhere: Sequence[str] = ()
) -> Path:
    """Fills the folder ``out``; the report's path.

    ``overrides`` are flags of ``rb-jax train``, ``everywhere`` of all its commands.
    """
    out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    run, command = out / "run", training_command(out, [*overrides, *everywhere])
    seconds = _step("1/4  Train from scratch", command, out / "train.json")
    scores = {}
    for split in SPLITS:
        title = f"2/4  Restore the checkpoint, edit and score held-out scenes: {split}"
        _evaluate(title, out / split, run, split, count, everywhere)
        scores[split] = json.loads((out / split / "scores.json").read_text())
    print("== 3/4  Edit some of these scenes with the shipped model", flush=True)
    pictures = _pictures(out, scores["test"]["count"])
    print("== 4/4  Write the report", flush=True)
    shown = f"rb-jax {shlex.join(command)}"
    report = write_report(out / "report.html", _report(out, shown, seconds, scores, pictures))
    print(f"{report} (open it in a browser; {time.perf_counter() - begin:.0f} s in all)")
    return report


def training_command(out: Path, overrides: Sequence[str]) -> list[str]:
    """The words after ``rb-jax`` that train the demo's model."""
    return ["train", "--config=reasonworld", f"--workdir={out / 'run'}", *OVERRIDES, *overrides]


def _step(title: str, arguments: Sequence[str], stamp: Path) -> float:
    """Runs rb-jax in a process of its own; the seconds of the run that did the work."""
    print(f"== {title}\n   rb-jax {' '.join(arguments)}", flush=True)
    before = time.perf_counter()
    _run([sys.executable, "-m", "rb_jax", *arguments])
    seconds = time.perf_counter() - before
    if stamp.exists():
        # A finished run only says so; what counts is how long it took when it ran.
        seconds = max(seconds, json.loads(stamp.read_text())["seconds"])
    write_text(stamp, to_json({"seconds": seconds}))
    return seconds


def _run(command: Sequence[str]) -> None:
    """Waits for a process, and takes it along when this one is stopped.

    Raises RunError, with its status, when it fails: it has said why.
    """
    with subprocess.Popen(command) as child:
        try:
            status = child.wait()
        except BaseException as error:
            # Ctrl-C in a terminal goes to both; anything else to this process alone.
            if not isinstance(error, KeyboardInterrupt) or isinstance(error, Terminated):
                child.terminate()
            try:
                child.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                child.terminate()
            raise
    if status:
        raise RunError(status if status > 0 else 128 - status, "the demo ends with that")


def _evaluate(
    title: str, folder: Path, run: Path, split: str, count: int, flags: Sequence[str]
) -> None:
    """Scores a split, unless that was done since the weights were made."""
    done, newest = folder / "scores.json", (run / "weights" / "config.json").stat().st_mtime
    fresh = done.exists() and done.stat().st_mtime > newest
    if fresh and json.loads(done.read_text())["count"] == count:
        print(f"== {title}: done already", flush=True)
        return
    _step(
        title,
        [
            "evaluate",
            f"--checkpoint={run}",
            f"--split={split}",
            f"--count={count}",
            f"--out={folder}",
            *flags,
        ],
        folder.with_suffix(".json"),
    )


def _report(
    out: Path,
    command: str,
    seconds: float,
    scores: Mapping[str, Any],
    pictures: Sequence[GridRow],
) -> ReportData:
    config, params = load_weights(out / "run" / "weights")
    shipped = resolve("shipped")
    card = json.loads((shipped / "card.json").read_text())
    tables = {
        split: {
            "this run": scores[split]["scores"]["model"],
            "shipped checkpoint": card[split]["scores"]["model"],
            "copy the source": scores[split]["scores"]["copy"],
            "codec oracle": scores[split]["scores"]["codec"],
        }
        for split in SPLITS
    }
    ablation = shipped / "ablation.json"
    return ReportData(
        command=command,
        steps=config.train.steps,
        seconds=seconds,
        parameters=sum(int(np.prod(p.shape)) for p in params.values()),
        cores=os.cpu_count() or 1,
        examples=pictures,
        columns=("source", "this run", "shipped", "truth"),
        metrics=read_lines(out / "run"),
        scores=tables,
        ablation=json.loads(ablation.read_text()) if ablation.exists() else (),
        stages=_stages(config, params),
    )


def _pictures(out: Path, count: int) -> list[GridRow]:
    """A few scenes of each category: source, this run's edit, the shipped model's, the truth."""
    editor = Editor.from_pretrained()
    examples = open_world("test", count, editor.config.data.image_size)
    mine = [
        Scored(e, edited, score_edit(e, edited))
        for e, edited in zip(examples, read_edits(out / "test", count), strict=True)
    ]
    chosen = choose(mine, PICTURES_A_CATEGORY)
    edit = with_editor(editor)
    shipped = edit_all([s.example for s in chosen], edit, "shipped model")
    return [
        dataclasses.replace(
            row,
            pictures={
                "source": row.pictures["source"],
                "this run": row.pictures["edit"],
                "shipped": theirs.edited,
                "truth": row.pictures["truth"],
            },
        )
        for row, theirs in zip(grid_rows(chosen), shipped, strict=True)
    ]


def _stages(config: Config, params: Mapping[str, Any]) -> list[StageParameters]:
    from rb_jax.train.state import trainable_paths

    trainable = trainable_paths(config, params)
    counts: dict[str, list[int]] = {}
    for path, value in params.items():
        pair = counts.setdefault(path.split("/")[0], [0, 0])
        pair[path not in trainable] += int(np.prod(value.shape))
    return [StageParameters(stage, *counts[stage]) for stage in sorted(counts, key=STAGES.index)]
