"""The ablation table: every variant of ``reasonworld``, trained equally short and scored.

    python -m rb_jax.eval.ablation --out=DIR

Writes DIR/ablation.json, which the report shows. A variant that is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rb_jax.config import files
from rb_jax.files import to_json, write_text

# Shorter than the shipped model's run, the same for every variant; later flags win.
SHORT = (
    "--config.data.count=8192",
    "--config.train.steps=800",
    "--config.train.ema_decay=0.995",
    "--config.train.eval_every=800",
    "--config.train.checkpoint_every=800",
    "--config.optimizer.warmup_steps=100",
)
TITLES = {
    "baseline": "baseline: MLLM + QFormer + flow model",
    "frce": "+ FRCE",
    "id_controller": "+ FRCE + ID Controller",
    "cme": "+ FRCE + CME, no ID Controller",
    "full": "full: + FRCE + ID Controller + CME",
}


def variants() -> dict[str, dict[str, Any]]:
    """The switches of each variant, from the configuration file."""
    return files.load_module("reasonworld").VARIANTS


def run(name: str, out: Path, count: int, overrides: list[str]) -> dict[str, Any]:
    """Trains and scores one variant; its row of the table."""
    workdir = out / name
    train = [
        "train",
        f"--config=reasonworld:{name}",
        f"--workdir={workdir}",
        f"--config.data.prepared_dir={out / 'prepared'}",
        *SHORT,
        *overrides,
    ]
    evaluate = [
        "evaluate",
        f"--checkpoint={workdir}",
        "--split=test",
        f"--count={count}",
        f"--out={workdir / 'test'}",
    ]
    for arguments in (train, evaluate):
        subprocess.run([sys.executable, "-m", "rb_jax", *arguments], check=True)
    scores = json.loads((workdir / "test" / "scores.json").read_text())["scores"]["model"]
    steps = json.loads((workdir / "weights" / "config.json").read_text())["train"]["steps"]
    switches = variants()[name]
    return {"name": TITLES[name], "switches": switches, "steps": steps, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256, help="scenes to score")
    arguments, overrides = parser.parse_known_args()
    rows = [run(name, arguments.out, arguments.count, overrides) for name in variants()]
    write_text(arguments.out / "ablation.json", to_json(rows))
    print(f"{arguments.out / 'ablation.json'}: {len(rows)} variants")


if __name__ == "__main__":
    main()
