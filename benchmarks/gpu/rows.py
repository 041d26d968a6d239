"""What a measurement says, and the table of all of them. Imports neither JAX nor PyTorch."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Row:
    """One program of one side; ``what`` is the same on both sides and in the planner's rows."""

    what: str
    by: str
    seconds: float | None = None  # the median
    low: float | None = None
    high: float | None = None
    repeats: int = 0
    tflop: float = 0.0  # model FLOPs of a call
    peak: float | None = None  # the card's, FLOP/s
    note: str = ""
    ratio: float | None = None  # theirs over ours
    planned: float | None = None  # seconds, by the planner
    planner_note: str = ""
    plan: dict[str, Any] | None = None  # {"build": name in programs, **its keyword arguments}

    @property
    def rate(self) -> float | None:
        """TFLOP/s."""
        return self.tflop / self.seconds if self.seconds and self.tflop else None

    @property
    def mfu(self) -> float | None:
        return self.rate * 1e12 / self.peak if self.rate and self.peak else None


OURS = "rb_jax"


def measured(what: str, by: str, times: Sequence[float], tflop: float, **more: Any) -> Row:
    low, high = min(times), max(times)
    return Row(what, by, statistics.median(times), low, high, len(times), tflop, **more)


def compare(rows: Sequence[Row]) -> None:
    """Fills each of our rows' ratio: the fastest of theirs over ours."""
    for row in rows:
        others = [r.seconds for r in rows if r.what == row.what and r.by != OURS and r.seconds]
        if row.by == OURS and row.seconds and others:
            row.ratio = min(others) / row.seconds


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = (
        "what",
        "by",
        "median s",
        "min to max",
        "TFLOP",
        "TFLOP/s",
        "MFU",
        "theirs / ours",
        "planner s",
        "remarks",
    )
    lines = [head, ("---",) * len(head)]
    for row in rows:
        spread = f"{row.low:.4g} to {row.high:.4g}" if row.seconds else ""
        remarks = "; ".join(text for text in (row.note, row.planner_note) if text)
        lines.append(
            (
                row.what,
                row.by,
                _number(row.seconds, ".5f"),
                spread,
                _number(row.tflop or None, ".4g"),
                _number(row.rate, ".4g"),
                _number(row.mfu, ".1%"),
                _number(row.ratio, ".2f"),
                _number(row.planned, ".5f"),
                remarks.replace("|", "/"),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    widths[-1] = 0  # the remarks may be long
    shown = (
        "| " + " | ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
    return "\n".join(shown)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def append(path: Path, row: Row) -> None:
    """Rows are written one by one, so that a part that dies leaves those it has measured."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def to_json(rows: Sequence[Row]) -> str:
    values = [dataclasses.asdict(row) | {"tflops": row.rate, "mfu": row.mfu} for row in rows]
    return json.dumps(values, indent=1) + "\n"
