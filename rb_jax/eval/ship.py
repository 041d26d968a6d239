"""Turns a finished run into the weights that come with the package, and says how good they are.

    python -m rb_jax.eval.ship --workdir=RUN --out=rb_jax/assets/NAME --command="rb-jax train ..."

Writes ``model.safetensors`` (float16), ``config.json`` and ``card.json``: the command, steps, the
seconds of training and, for an editing model, the scores of these very weights on both test splits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rb_jax.checkpoint.stored import load_weights
from rb_jax.editor import Editor
from rb_jax.eval.evaluate import evaluate, open_world, score_table, write_evaluation
from rb_jax.files import to_json, write_text
from rb_jax.models.pixels import psnr, to_float
from rb_jax.train.metrics import read_lines
from rb_jax.weights.folder import save_weights

SPLITS = ("test", "test_unseen")


def training_record(workdir: Path) -> dict[str, Any]:
    """Steps and seconds of a run, from its metrics."""
    rows = [r for r in read_lines(workdir) if r.get("kind") == "train"]
    seconds, previous = 0.0, 0
    for row in rows:
        seconds += (row["step"] - previous) / row["steps_per_second"]
        previous = row["step"]
    return {"steps": previous, "training_seconds": round(seconds)}


def codec_psnr(folder: Path, count: int) -> dict[str, float]:
    """Mean PSNR of test pictures through the autoencoder, dB."""
    from rb_jax.weights.params import definition, merge

    config, params = load_weights(folder)
    values = {path: np.asarray(v, np.float32) for path, v in params.items()}
    autoencoder = merge(definition(config)[0], values).autoencoder
    scores = []
    for example in open_world("test", count, config.data.image_size):
        picture = to_float(jnp.asarray(example.source[None]))
        error = np.asarray(autoencoder.decode(autoencoder.encode(picture))) - picture
        scores.append(psnr(float(np.mean(error**2)), 2.0))
    return {"count": count, "psnr": float(np.mean(scores)), "psnr_lowest": float(np.min(scores))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", required=True, help="how the run was made")
    parser.add_argument("--count", type=int, default=512, help="scenes to score in each split")
    arguments = parser.parse_args()
    config, params = load_weights(arguments.workdir)
    save_weights(arguments.out, config, params, "float16")
    card = {"command": arguments.command, **training_record(arguments.workdir)}
    card["parameters"] = int(sum(np.prod(p.shape) for p in params.values()))
    if config.train.task == "autoencoder":
        card["test"] = codec_psnr(arguments.out, arguments.count)
        print(card["test"])
    else:
        editor = Editor.from_pretrained(arguments.out)
        for split in SPLITS:
            report, edits = evaluate(editor, split, arguments.count)
            card[split] = report
            write_evaluation(arguments.workdir / split, report, edits)
            print(f"{split}\n{score_table(report)}", flush=True)
    write_text(arguments.out / "card.json", to_json(card))


if __name__ == "__main__":
    main()
