"""Editing and scoring a split of ReasonWorld: ``scores.json`` and a picture grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from rb_jax.data.inputs.images import open_image, save_image
from rb_jax.data.pipeline.loader import from_world
from rb_jax.data.reasonworld import CATEGORIES, Example, ReasonWorld
from rb_jax.editor import Editor, check_sampling
from rb_jax.errors import InputError
from rb_jax.eval.reasonworld import EditScore, score_edit, summarize
from rb_jax.files import to_json, write_text
from rb_jax.report.grids import GridRow, edit_grid
from rb_jax.runtime.progress import progress_bar

BATCH = 16

Edit = Callable[[Sequence[Example], int], UInt8[np.ndarray, "B S S 3"]]


@dataclasses.dataclass(frozen=True)
class Scored:
    """One edited example of ReasonWorld."""

    example: Example
    edited: UInt8[np.ndarray, "S S 3"]
    score: EditScore


def check_choice(split: str, count: int, size: int = 64) -> ReasonWorld:
    """The world of a split; InputError for an unknown split or a bad count."""
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    try:
        return ReasonWorld(split, 0, size)
    except ValueError as error:
        raise InputError(str(error)) from None


def open_world(split: str, count: int, size: int) -> list[Example]:
    """The first ``count`` examples of a split; InputError as ``check_choice``."""
    world = check_choice(split, count, size)
    return [world[i] for i in range(count)]


def edit_all(examples: Sequence[Example], edit: Edit, label: str) -> list[Scored]:
    """Edits and scores every example, in batches of one size, with a progress bar."""
    scored = []
    with progress_bar(len(examples), label, "edit") as bar:
        for start in range(0, len(examples), BATCH):
            chunk = list(examples[start : start + BATCH])
            # The last batch is filled up, so that it does not compile a second program.
            filled = chunk + chunk[:1] * (BATCH - len(chunk))
            for example, edited in zip(chunk, edit(filled, start), strict=False):
                scored.append(Scored(example, edited, score_edit(example, edited)))
            bar.update(len(chunk))
    return scored


def with_editor(editor: Editor, seed: int = 0, find_objects: bool = False, **settings: Any) -> Edit:
    """The model as an ``Edit``; each batch draws noise of its own from ``seed``.

    With ``find_objects`` the world does not say what the instruction names, as no user does.
    """
    check_sampling(seed)

    def edit(examples: Sequence[Example], start: int) -> UInt8[np.ndarray, "B S S 3"]:
        batch_seed = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
        given = [from_world(e) for e in examples]
        if find_objects:
            given = [dataclasses.replace(e, objects=()) for e in given]
        return editor.edit_batch(given, seed=batch_seed, **settings)

    return edit


def copy_source(examples: Sequence[Example], start: int) -> UInt8[np.ndarray, "B S S 3"]:
    """The baseline that changes nothing."""
    return np.stack([e.source for e in examples])


def through_codec(editor: Editor) -> Edit:
    """The oracle: the right outcome, through the autoencoder."""
    return lambda examples, start: editor.reconstruct(np.stack([e.target for e in examples]))


def summary(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Overall and per category; see ``rb_jax.eval.reasonworld.summarize``."""
    return summarize((s.example.category, s.score) for s in scored)


def by_family(scored: Sequence[Scored]) -> dict[str, float]:
    """Ins-Align of each scenario family."""
    families: dict[str, list[bool]] = {}
    for s in scored:
        families.setdefault(s.example.family, []).append(s.score.aligned)
    return {name: float(np.mean(hits)) for name, hits in sorted(families.items())}


def choose(scored: Sequence[Scored], per_category: int) -> list[Scored]:
    """The first few of each category, of different families, category by category."""
    chosen: dict[str, list[Scored]] = {c: [] for c in CATEGORIES}
    for s in scored:
        group = chosen[s.example.category]
        if len(group) < per_category and s.example.family not in {g.example.family for g in group}:
            group.append(s)
    return [s for group in chosen.values() for s in group]


def grid_rows(scored: Sequence[Scored]) -> list[GridRow]:
    """Rows for a picture grid."""
    return [
        GridRow(
            instruction=s.example.instruction,
            pictures={"source": s.example.source, "edit": s.edited, "truth": s.example.target},
            category=s.example.category,
            aligned=s.score.aligned,
            psnr=s.score.edited_psnr,
        )
        for s in scored
    ]


def evaluate(editor: Editor, split: str, count: int, seed: int = 0, **settings: Any):
    """Scores of the model and its two baselines on a split, and the model's edits."""
    examples = open_world(split, count, editor.config.data.image_size)
    edits = edit_all(examples, with_editor(editor, seed, **settings), f"{split}: edit")
    copies = edit_all(examples, copy_source, f"{split}: copy")
    oracle = edit_all(examples, through_codec(editor), f"{split}: codec")
    scores = {"model": summary(edits), "copy": summary(copies), "codec": summary(oracle)}
    return {
        "split": split,
        "count": count,
        "seed": seed,
        "scores": scores,
        "families": by_family(edits),
    }, edits


def write_evaluation(out: str | Path, report: dict[str, Any], edits: Sequence[Scored]) -> None:
    """Every edit as ``edits/NNNNNN.png``, ``grid.png``, and last ``scores.json``."""
    out = Path(out)
    try:
        (out / "edits").mkdir(parents=True, exist_ok=True)
        for i, scored in enumerate(edits):
            save_image(_edit_path(out, i), scored.edited)
        save_image(out / "grid.png", np.asarray(edit_grid(grid_rows(choose(edits, 4)))))
        write_text(out / "scores.json", to_json(report))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error


def read_edits(out: str | Path, count: int) -> list[UInt8[np.ndarray, "S S 3"]]:
    """The first ``count`` edits that ``write_evaluation`` wrote."""
    return [open_image(_edit_path(Path(out), i)) for i in range(count)]


def _edit_path(out: Path, index: int) -> Path:
    return out / "edits" / f"{index:06d}.png"


def score_table(report: dict[str, Any]) -> str:
    """The overall scores as text."""
    lines = [f"{'':8}{'Ins-Align':>24}{'edited PSNR':>14}{'preserved PSNR':>17}{'count':>8}"]
    for name, groups in report["scores"].items():
        s = groups["overall"]
        low, high = s["ins_align_ci"]
        align = f"{s['ins_align']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(
            f"{name:8}{align:>24}{s['edited_psnr']:>11.2f} dB{s['preservation_psnr']:>14.2f} dB"
            f"{s['count']:>8}"
        )
    return "\n".join(lines)
