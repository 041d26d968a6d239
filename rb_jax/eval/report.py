"""The report of a run as one HTML file that needs nothing else: no script, no link, no server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb_jax.files import write_text
from rb_jax.report.curves import Curve, line_chart
from rb_jax.report.grids import CATEGORY_COLORS, GridRow, category_color
from rb_jax.report.html import (
    DASH,
    chip,
    count,
    data_uri,
    decimal,
    duration,
    page,
    section,
    text,
    whisker,
)

# (key of metrics.jsonl, title) of each chart; validation values are drawn over the training ones.
CHARTS = (
    ("loss_flow", "Flow matching loss, L_DM"),
    ("loss_mllm", "Image token loss, L_MLLM"),
    ("loss", "Total loss"),
    ("steps_per_second", "Steps per second"),
)


@dataclass(frozen=True)
class StageParameters:
    """Parameter counts of one stage of the model."""

    stage: str
    trainable: int
    frozen: int


@dataclass(frozen=True)
class ReportData:
    """What the report shows; everything after ``seconds`` may be left out.

    Attributes:
      command: what was typed, shown as it is.
      steps, seconds: length of the training run.
      parameters, cores: of the model and of the machine.
      examples: edits, shown by category in the order given; ``columns`` names their pictures.
      metrics: rows of metrics.jsonl: ``step``, ``kind`` ("train" when missing) and values.
      scores: split -> name of the row -> what ``rb_jax.eval.reasonworld.summarize`` returns. The
        first row of a split is the one that stands out.
      ablation: {"name", "switches", "steps", "scores"} a variant of the shipped model.
      stages: parameter counts in the order of the data path.
    """

    command: str
    steps: int
    seconds: float | int
    parameters: int = 0
    cores: int = 0
    title: str = "ReasonBrain on ReasonWorld"
    examples: Sequence[GridRow] = ()
    columns: Sequence[str] = ("source", "edit", "truth")
    metrics: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    ablation: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[StageParameters] = ()


def write_report(path: str | Path, data: ReportData) -> Path:
    """Writes the report to ``path``, making its folder, and returns the path.

    Sections without data are left out. ValueError for a picture that is not uint8 [S, S, 3].
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_report(data))
    return path


def render_report(data: ReportData) -> str:
    """The report as the text of an HTML page."""
    body = "".join(
        [
            _header(data),
            _pictures(data),
            _score_tables(data),
            _curves(data),
            _ablation(data),
            _parameters(data),
        ]
    )
    return page(data.title, body)


# ---- sections ----------------------------------------------------------------------------------


def _header(data: ReportData) -> str:
    facts = [("training steps", f"{data.steps:,}"), ("of training", duration(data.seconds))]
    if data.parameters:
        facts.append(("parameters", count(data.parameters)))
    if data.cores:
        facts.append(("CPU core" if data.cores == 1 else "CPU cores", str(data.cores)))
    split, row = _first_summary(data)
    aligned = _number(row, "ins_align")
    if aligned is not None:
        facts.append((f"Ins-Align on {split}", f"{aligned:.3f}"))
    tiles = "".join(f"<div><b>{text(v)}</b><span>{text(k)}</span></div>" for k, v in facts)
    return (
        f"<header><h1>{text(data.title)}</h1>"
        "<p class=lede>A model was trained to edit pictures by working out what a hypothetical "
        "instruction implies. The instruction never says what to draw.</p>"
        f"<div class=facts>{tiles}</div><pre><code>{text(data.command)}</code></pre></header>"
    )


def _pictures(data: ReportData) -> str:
    if not data.examples:
        return ""
    blocks = []
    for category in _categories(example.category for example in data.examples):
        chosen = [example for example in data.examples if example.category == category]
        cards = "".join(_card(example, data.columns) for example in chosen)
        blocks.append(f"<h3>{chip(category)}</h3><div class=cards>{cards}</div>")
    return section(
        "Pictures",
        "The model sees the source picture and the sentence. The truth is only for comparison. "
        "An edit gets a tick if it is nearer to the truth than to the unchanged source and to "
        "every wrong outcome, compared where these differ; dB is the PSNR of the region that "
        "should have changed.",
        "".join(blocks),
    )


def _card(example: GridRow, columns: Sequence[str]) -> str:
    verdict = ""
    if example.aligned is not None:
        kind, mark = ("good", "&#10003;") if example.aligned else ("bad", "&#10007;")
        words = "right outcome" if example.aligned else "not the right outcome"
        verdict = f'<span class="verdict {kind}">{mark} {words}</span>'
    if example.psnr is not None:
        verdict += f"<span class=soft>{decimal(example.psnr, 1)} dB</span>"
    figures = "".join(
        f'<figure><img alt="{text(column)}" src="{data_uri(example.pictures[column])}">'
        f"<figcaption>{text(column)}</figcaption></figure>"
        for column in columns
        if column in example.pictures
    )
    return (
        f'<article class=card style="--accent:{category_color(example.category)}">'
        f"<p>{text(example.instruction)}</p><div class=strip>{figures}</div>"
        f"<footer>{verdict}</footer></article>"
    )


def _curves(data: ReportData) -> str:
    charts = []
    for key, title in CHARTS:
        curves = [
            Curve("training", "var(--blue)", _series(data.metrics, "train", key)),
            Curve("validation", "var(--orange)", _series(data.metrics, "val", key), dots=True),
        ]
        charts.append(line_chart(title, curves, from_zero=key == "steps_per_second"))
    if not any(charts):
        return ""
    return section(
        "Training",
        "Lower is better for losses. The pale line is what was logged, the firm line its running "
        "mean; the number beside a name is the last value logged. Validation uses pictures that "
        "training never saw.",
        f"<div class=charts>{''.join(charts)}</div>",
    )


def _score_tables(data: ReportData) -> str:
    blocks = []
    for split, rows in (data.scores or {}).items():
        if rows:
            blocks.append(f"<h3>{text(split)}</h3>{_score_table(rows)}")
    if not blocks:
        return ""
    return section(
        "Scores",
        "Ins-Align is the share of edits that show the right outcome, with its 95% confidence "
        "interval. Edited PSNR compares the region that should change with the truth, preserved "
        "PSNR the rest with the source (60 dB: not a pixel differs); higher is better. Copying the "
        "source marks the floor, the truth passed through the codec the ceiling. test_unseen holds "
        "compositions and wordings that training left out.",
        "".join(blocks),
    )


def _score_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One body per category ("overall" first), with one line per row of the comparison."""
    found = {name for summary in rows.values() for name in _groups(summary)}
    groups = ["overall"] * ("overall" in found) + _categories(found - {"overall"})
    bodies = []
    for group in groups:
        lines = []
        for index, (name, summary) in enumerate(rows.items()):
            head = chip(group) if group != "overall" else "<b>overall</b>"
            first = f'<th rowspan="{len(rows)}" class=group>{head}</th>' if index == 0 else ""
            cells = _score_cells(_groups(summary).get(group, {}))
            mark = " class=first" if index == 0 else ""
            lines.append(f"<tr{mark}>{first}<th>{text(name)}</th>{cells}</tr>")
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    head = "".join(f"<th>{label}</th>" for label in ("", "", *SCORE_HEADS))
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead>{''.join(bodies)}</table></div>"


SCORE_HEADS = ("Ins-Align", "95% interval", "", "edited PSNR", "preserved PSNR", "edits")


def _score_cells(scores: Mapping[str, Any]) -> str:
    aligned = _number(scores, "ins_align")
    low, high = _interval(scores)
    interval = f"{low:.3f} to {high:.3f}" if low is not None and high is not None else DASH
    edits = _number(scores, "count")
    cells = [
        f"<b>{decimal(aligned, 3)}</b>",
        interval,
        whisker(aligned, low, high),
        _with_margin(scores, "edited_psnr"),
        _with_margin(scores, "preservation_psnr"),
        DASH if edits is None else f"{edits:,.0f}",
    ]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _ablation(data: ReportData) -> str:
    if not data.ablation:
        return ""
    lines = []
    for row in data.ablation:
        scores = row.get("scores") or {}
        steps = _number(row, "steps")
        lines.append(
            f"<tr><th>{text(row.get('name', ''))}</th><td class=left>{_switches(row)}</td>"
            f"<td>{DASH if steps is None else f'{steps:,.0f}'}</td>"
            f"{_score_cells(_groups(scores).get('overall', scores))}</tr>"
        )
    heads = "".join(f"<th>{label}</th>" for label in ("steps", *SCORE_HEADS))
    head = f"<th>variant</th><th class=left>switches</th>{heads}"
    return section(
        "Ablation of the shipped model",
        "Each variant was trained alike with parts of the model switched off; what a part is worth "
        "is the difference between two lines.",
        f"<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>",
    )


def _parameters(data: ReportData) -> str:
    if not data.stages:
        return ""
    total = StageParameters(
        "all", sum(s.trainable for s in data.stages), sum(s.frozen for s in data.stages)
    )
    widest = max(s.trainable + s.frozen for s in data.stages) or 1
    lines = [_stage_row(stage, widest) for stage in data.stages]
    head = "".join(f"<th>{t}</th>" for t in ("stage", "trainable", "frozen", "together", ""))
    return section(
        "Parameters",
        "The stages in the order in which data passes through them. Trainable ones were updated "
        "by this run (solid bar), frozen ones were not (pale bar).",
        f"<div class=scroll><table class=parameters><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody><tfoot>{_stage_row(total, 0)}</tfoot></table></div>",
    )


def _stage_row(stage: StageParameters, widest: int) -> str:
    bar = "".join(
        f'<i class={kind} style="width:{100 * size / widest:.2f}%"></i>'
        for kind, size in (("solid", stage.trainable), ("pale", stage.frozen))
        if size and widest
    )
    counts = (stage.trainable, stage.frozen, stage.trainable + stage.frozen)
    cells = "".join(f"<td>{size:,}</td>" for size in counts)
    return f"<tr><th>{text(stage.stage)}</th>{cells}<td class=bar>{bar}</td></tr>"


# ---- reading what is shown -----------------------------------------------------------------------


def _series(rows: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows of a kind; a flat ``val_<key>`` counts as validation too."""
    points = []
    for row in rows:
        name = key if row.get("kind", "train") == kind else f"{kind}_{key}"
        step, value = _number(row, "step"), _number(row, name)
        if step is not None and value is not None:
            points.append((step, value))
    return sorted(points)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or None if it is missing or anything else."""
    try:
        value = float(row[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The scores of "overall" and of each category in a summary."""
    return {name: value for name, value in summary.items() if isinstance(value, Mapping)}


def _interval(scores: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Ends of the confidence interval of Ins-Align."""
    ends = scores.get("ins_align_ci") or (None, None)
    low, high = (_number({"end": end}, "end") for end in ends)
    return low, high


def _first_summary(data: ReportData) -> tuple[str, Mapping[str, Any]]:
    for split, rows in (data.scores or {}).items():
        for summary in rows.values():
            return split, _groups(summary).get("overall", {})
    return "", {}


def _categories(names: Iterable[str]) -> list[str]:
    """Distinct names: the four categories in the paper's order, then any other as it came."""
    distinct = list(dict.fromkeys(names))
    return sorted(
        distinct, key=lambda n: list(CATEGORY_COLORS).index(n) if n in CATEGORY_COLORS else 99
    )


# ---- writing it --------------------------------------------------------------------------------


def _switches(row: Mapping[str, Any]) -> str:
    """Switches of a variant: a list of names, or a mapping of name -> value."""
    switches = row.get("switches") or ()
    if isinstance(switches, Mapping):
        switches = [f"{name}={value}" for name, value in switches.items()]
    elif isinstance(switches, str):
        switches = [switches]
    return " ".join(f"<code>{text(name)}</code>" for name in switches) or DASH


def _with_margin(scores: Mapping[str, Any], key: str) -> str:
    """Mean in dB and the half width of its confidence interval."""
    margin = _number(scores, f"{key}_ci")
    shown = decimal(_number(scores, key), 2)
    return shown if margin is None else f"{shown} <small>&plusmn;{margin:.2f}</small>"
