"""``make demo``: the main job once, live, in a few minutes on a laptop.

Trains configs/reasonworld.py from scratch for a short while, restores the checkpoint in a new
process, edits and scores held-out scenes with it and with the shipped model, and writes one
self-contained report. What an earlier run finished is reused.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rb_jax.config import Config
from rb_jax.eval.evaluate import Scored, grid_rows, open_world, read_edits, write_json
from rb_jax.eval.grids import GridRow
from rb_jax.eval.reasonworld import score_edit
from rb_jax.eval.report import ReportData, StageParameters, write_report
from rb_jax.train.metrics import read_lines
from rb_jax.train.weights import SHIPPED, load_weights, resolve

CONFIG = Path(__file__).parents[1] / "configs" / "reasonworld.py"
SPLITS = ("test", "test_unseen")
PICTURES_A_CATEGORY = 4
# A short run: fewer scenes and steps than the shipped model's, everything else the same.
OVERRIDES = (
    "--config.data.count=6144",
    "--config.train.steps=450",
    "--config.train.eval_every=225",
    "--config.train.checkpoint_every=225",
    "--config.train.ema_decay=0.99",
    "--config.optimizer.warmup_steps=50",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to fill")
    parser.add_argument("--count", type=int, default=64, help="scenes to score in each split")
    parser.add_argument("overrides", nargs="*", help="further --config.a.b=value settings")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    run = out / "run"
    command = ["train", f"--config={CONFIG}", f"--workdir={run}", *OVERRIDES]
    seconds = _step("1/4  Train from scratch", [*command, *arguments.overrides], out / "train.json")
    scores: dict[str, Any] = {}
    for title, name, checkpoint in [
        ("2/4  Edit and score held-out scenes with this run", "this run", run),
        ("3/4  Edit and score the same scenes with the shipped model", "shipped", None),
    ]:
        for split in SPLITS:
            folder = out / name.replace(" ", "_") / split
            _evaluate(f"{title}: {split}", folder, checkpoint, split, arguments.count)
            scores[f"{name}/{split}"] = json.loads((folder / "scores.json").read_text())
    print("== 4/4  Write the report", flush=True)
    shown = f"rb-jax train --config=configs/reasonworld.py --workdir={run} {' '.join(OVERRIDES)}"
    report = write_report(out / "report.html", _report(out, shown, seconds, scores))
    print(f"{report} (open it in a browser; {time.perf_counter() - begin:.0f} s in all)")
    return 0


def _step(title: str, arguments: Sequence[str], stamp: Path) -> float:
    """Runs rb-jax in a process of its own; the seconds of the run that did the work."""
    print(f"== {title}\n   rb-jax {' '.join(arguments)}", flush=True)
    before = time.perf_counter()
    subprocess.run([sys.executable, "-m", "rb_jax.cli", *arguments], check=True)
    seconds = time.perf_counter() - before
    if stamp.exists():
        # A finished run only says so; what counts is how long it took when it ran.
        seconds = max(seconds, json.loads(stamp.read_text())["seconds"])
    write_json(stamp, {"seconds": seconds})
    return seconds


def _evaluate(title: str, folder: Path, checkpoint: Path | None, split: str, count: int) -> None:
    source = [] if checkpoint is None else [f"--checkpoint={checkpoint}"]
    weights = (
        resolve("shipped", SHIPPED["init_from"]) if checkpoint is None else checkpoint / "weights"
    )
    done = folder / "scores.json"
    newest = max(path.stat().st_mtime for path in weights.iterdir())
    fresh = done.exists() and done.stat().st_mtime > newest
    if fresh and json.loads(done.read_text())["count"] == count:
        print(f"== {title}: done already", flush=True)
        return
    _step(title, ["evaluate", *source, f"--split={split}", f"--count={count}", f"--out={folder}"],
          folder.with_suffix(".json"))  # fmt: skip


def _report(out: Path, command: str, seconds: float, scores: Mapping[str, Any]) -> ReportData:
    config, params = load_weights(out / "run" / "weights")
    shipped = resolve("shipped", SHIPPED["init_from"])
    tables = {}
    for split in SPLITS:
        mine = scores[f"this run/{split}"]["scores"]
        tables[split] = {
            "this run": mine["model"],
            "shipped checkpoint": scores[f"shipped/{split}"]["scores"]["model"],
            "copy the source": mine["copy"],
            "codec oracle": mine["codec"],
        }
    ablation = shipped / "ablation.json"
    return ReportData(
        command=command,
        steps=config.train.steps,
        seconds=seconds,
        parameters=sum(int(np.prod(p.shape)) for p in params.values()),
        cores=os.cpu_count() or 1,
        examples=_pictures(out, config, scores["this run/test"]["count"]),
        columns=("source", "this run", "shipped", "truth"),
        metrics=read_lines(out / "run"),
        scores=tables,
        ablation=json.loads(ablation.read_text()) if ablation.exists() else (),
        stages=_stages(config, params),
    )


def _pictures(out: Path, config: Config, count: int) -> list[GridRow]:
    """Rows of source, this run's edit, the shipped model's edit and the truth."""
    examples = open_world("test", count, config.data.image_size)
    mine = read_edits(out / "this_run" / "test", count)
    shipped = read_edits(out / "shipped" / "test", count)
    rows = []
    scored = [Scored(e, m, score_edit(e, m)) for e, m in zip(examples, mine, strict=True)]
    theirs = {id(s.example): edit for s, edit in zip(scored, shipped, strict=True)}
    for s in scored:
        pictures = {"source": s.example.source, "this run": s.edited,
                    "shipped": theirs[id(s.example)], "truth": s.example.target}  # fmt: skip
        rows.append((s, pictures))
    chosen = {(r.instruction, r.category) for r in grid_rows(scored, PICTURES_A_CATEGORY)}
    return [
        GridRow(s.example.instruction, pictures, s.example.category, s.score.aligned,
                s.score.edited_psnr)
        for s, pictures in rows
        if (s.example.instruction, s.example.category) in chosen
    ]  # fmt: skip


def _stages(config: Config, params: Mapping[str, Any]) -> list[StageParameters]:
    from rb_jax.train.state import trainable_paths

    trainable = trainable_paths(config, params)
    counts: dict[str, list[int]] = {}
    for path, value in params.items():
        pair = counts.setdefault(path.split("/")[0], [0, 0])
        pair[path not in trainable] += int(np.prod(value.shape))
    return [StageParameters(stage, *pair) for stage, pair in counts.items()]


if __name__ == "__main__":
    sys.exit(main())
