"""Line charts as inline SVG, coloured by the page's CSS variables."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

Number = float | int
Point = tuple[Number, Number]

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40
# A steep fall hides what follows it: beyond this ratio the axis is logarithmic.
LOG_RATIO = 12.0
# Curves with more points than this are smoothed, the points stay visible behind them.
SMOOTH_ABOVE = 24


@dataclass(frozen=True)
class Curve:
    """Named points (x, y), finite and ascending in x; ``color`` is any CSS colour."""

    label: str
    color: str
    points: Sequence[Point]
    dots: bool = False


def line_chart(
    title: str,
    curves: Sequence[Curve],
    x_label: str = "step",
    from_zero: bool = False,
    x_log: bool = False,
) -> str:
    """One chart of the curves that have points; an empty string if none has any.

    The vertical axis spans the values, or begins at zero if ``from_zero``; the horizontal one
    begins at zero, or spans the values in powers if ``x_log``.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    every = [point for curve in curves for point in curve.points]
    across = [x for x, _ in every] + [0.0] * (not x_log)
    x_axis = _Axis(across, LEFT, WIDTH - RIGHT, may_be_log=x_log)
    heights = [y for _, y in every] + [0.0] * from_zero
    y_axis = _Axis(heights, HEIGHT - BOTTOM, TOP, may_be_log=True)
    parts = [_grid(x_axis, y_axis), *(_curve(curve, x_axis, y_axis) for curve in curves)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    scale = " (log scale)" if y_axis.log else ""
    parts.append(
        f'<text x="{middle:g}" y="{HEIGHT - 4}" text-anchor="middle">{_text(x_label)}</text>'
    )
    legend = "".join(
        f'<span><i style="background:{_text(curve.color)}"></i>{_text(curve.label)}'
        f" <b>{curve.points[-1][1]:.3g}</b></span>"
        for curve in curves
    )
    return (
        f'<figure class="chart"><figcaption>{_text(title)}<small>{scale}</small>'
        f'<span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def smooth(points: Sequence[Point], share: float = 0.06) -> list[Point]:
    """Mean over a centred window of ``share`` of the points; the window shrinks at the ends."""
    half = max(1, round(len(points) * share / 2))
    result = []
    for index, (x, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        window = points[index - reach : index + reach + 1]
        result.append((x, sum(y for _, y in window) / len(window)))
    return result


def ticks(low: Number, high: Number, about: int = 6) -> list[Number]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) from low to high, both included."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


class _Axis:
    """Maps the range of the values onto pixels from ``start`` to ``end``."""

    def __init__(
        self, values: Sequence[Number], start: Number, end: Number, may_be_log: bool = False
    ):
        low, high = min(values), max(values)
        self.log = may_be_log and low > 0 and high / low >= LOG_RATIO
        if self.log:
            low, high = math.log10(low), math.log10(high)
        if may_be_log:
            margin = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
            low, high = low - margin * (low != 0 or self.log), high + margin
        self.low, self.high, self.start, self.end = low, high if high > low else low + 1, start, end

    def at(self, value: Number) -> float:
        """The pixel of a value."""
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[Number]:
        """Values to label."""
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low < 3.2 else (1,)
        values = [m * 10.0**p for p in powers for m in steps]
        return [v for v in values if self.low <= math.log10(v) <= self.high]


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    right, foot = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in y_axis.ticks():
        y = y_axis.at(value)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_axis.ticks():
        x = x_axis.at(value)
        parts.append(f'<text x="{x:.1f}" y="{foot + 17}" text-anchor="middle">{value:g}</text>')
    return "".join(parts)


def _curve(curve: Curve, x_axis: _Axis, y_axis: _Axis) -> str:
    noisy = len(curve.points) > SMOOTH_ABOVE
    style = f'style="stroke:{_text(curve.color)}"'
    parts = [f'<path class="raw" {style} d="{_path(curve.points, x_axis, y_axis)}"/>'] * noisy
    line = smooth(curve.points) if noisy else curve.points
    parts.append(f'<path class="line" {style} d="{_path(line, x_axis, y_axis)}"/>')
    if curve.dots or len(curve.points) == 1:
        for x, y in curve.points:
            parts.append(
                f'<circle cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="3.5" '
                f'style="fill:{_text(curve.color)}"><title>{x:g}: {y:.4g}</title></circle>'
            )
    return "".join(parts)


def _path(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> str:
    return "M" + "L".join(f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in points)


def _text(value: str) -> str:
    return html.escape(value, quote=True)
