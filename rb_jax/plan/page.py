"""The planner's HTML page: memory, step time and efficiency over the number of chips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rb_jax.plan.planner import COLUMNS, Row, traffic
from rb_jax.report.curves import Curve, line_chart
from rb_jax.report.html import count, page, section, text

COLORS = ("var(--blue)", "var(--orange)", "var(--good)", "var(--bad)", "var(--soft)")


def render(rows: Sequence[Row], title: str, command: str) -> str:
    """The page's text."""
    compiled = [row for row in rows if row.predicted_step_s]
    body = [
        f"<header><h1>{text(title)}</h1><p class=lede>Compiled by the hardware's own compiler, "
        f"without the hardware.</p>{_facts(rows)}<pre><code>{text(command)}</code></pre></header>",
        section(
            "Memory of a chip",
            "GiB at the peak of the step, of what the chip has. Pale is the training state alone: "
            "weights, moments and averages.",
            _memory(rows),
        ),
        section(
            "Every topology",
            "GiB and TFLOP are of one chip and one step. Executed beyond model FLOPs are "
            "recomputation; exposed is the traffic that computation does not hide.",
            _table(rows),
        ),
    ]
    if charts := _charts(compiled):
        body.append(section("Over the number of chips", "Each line is a kind of chip.", charts))
    if compiled:
        body.append(
            section(
                "What travels",
                "GiB that a chip sends in a step, exposed in parentheses.",
                _list([f"{row.topology}: {traffic(row)}" for row in compiled]),
            )
        )
        body.append(section("What the times assume", "", _list(_assumptions(rows))))
    return page(title, "".join(body))


def efficiency(rows: Sequence[Row]) -> dict[tuple[str, int, int], float]:
    """(topology, slices, batch) -> examples per chip and second, relative to the smallest."""
    result: dict[tuple[str, int, int], float] = {}
    first: dict[str, float] = {}
    for row in sorted(rows, key=lambda row: row.chips):
        rate = row.examples_per_chip_second
        if rate:
            base = first.setdefault(row.topology.split(":")[0], rate)
            result[row.topology, row.slices, row.batch_size] = rate / base
    return result


def _facts(rows: Sequence[Row]) -> str:
    fit = sum(row.fits for row in rows)
    total, trained = (round(n * 1e9) for n in (rows[0].params_b, rows[0].trainable_b))
    facts = [
        (count(total), f"parameters, {count(trained)} of them train"),
        (f"{fit} of {len(rows)}", "topologies fit"),
    ]
    best = max((row.predicted_mfu or 0 for row in rows), default=0)
    if best:
        facts.append((f"{best:.0%}", "best predicted MFU"))
    tiles = "".join(f"<div><b>{a}</b><span>{b}</span></div>" for a, b in facts)
    return f"<div class=facts>{tiles}</div>"


def _memory(rows: Sequence[Row]) -> str:
    """A bar for each topology, on the scale of the largest number."""
    scale = max(max(row.hbm_limit_gib, row.hbm_peak_gib or row.state_gib) for row in rows)
    lines = []
    for row in rows:
        peak = row.hbm_peak_gib
        shown = "?" if peak is None else f"{peak:.1f}"
        verdict = "good" if row.fits else "bad"
        state = min(row.state_gib, peak) if peak else row.state_gib
        bars = [("state", state), ("step", (peak or state) - state)]
        drawn = "".join(
            f'<i class="{kind} {verdict}" style="width:{100 * size / scale:.2f}%"></i>'
            for kind, size in bars
        )
        limit = f'<b style="left:{100 * row.hbm_limit_gib / scale:.2f}%"></b>'
        lines.append(
            f"<tr><th>{text(row.label)}</th><td class=room>{drawn}{limit}</td>"
            f'<td class="verdict {verdict}">{shown} of {row.hbm_limit_gib:.0f} GiB</td></tr>'
        )
        if row.note:
            lines.append(f"<tr><th></th><td colspan=2 class=left>{text(row.note)}</td></tr>")
    return f"<div class=scroll><table class=memory><tbody>{''.join(lines)}</tbody></table></div>"


def _charts(rows: Sequence[Row]) -> str:
    """Nothing where no kind of chip comes in two numbers: a line needs two points."""
    kinds: dict[str, set[int]] = {}
    for row in rows:
        kinds.setdefault(row.topology.split(":")[0], set()).add(row.chips)
    if not any(len(chips) > 1 for chips in kinds.values()):
        return ""
    relative = efficiency(rows)
    charts: list[tuple[str, Callable[[Row], float | None]]] = [
        ("Peak memory, GiB per chip", lambda row: row.hbm_peak_gib),
        ("Predicted step, seconds", lambda row: row.predicted_step_s),
        (
            "Throughput a chip, relative to the fewest chips",
            lambda row: relative.get((row.topology, row.slices, row.batch_size)),
        ),
    ]
    drawn = "".join(
        line_chart(title, _curves(rows, value), "chips", from_zero=True, x_log=True)
        for title, value in charts
    )
    return f"<div class=charts>{drawn}</div>"


def _curves(rows: Sequence[Row], value: Callable[[Row], float | None]) -> list[Curve]:
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row.chips):
        y = value(row)
        if y is not None:
            kinds.setdefault(row.topology.split(":")[0], []).append((row.chips, y))
    return [
        Curve(kind, COLORS[i % len(COLORS)], points, dots=True)
        for i, (kind, points) in enumerate(kinds.items())
    ]


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{text(title)}</th>" for title, _ in COLUMNS)
    lines = []
    for row in rows:
        cells = [show(row) for _, show in COLUMNS]
        verdict = "good" if row.fits else "bad"
        shown = "".join(
            f'<td class="verdict {verdict}">{text(c)}</td>'
            if title == "fits"
            else f"<td>{text(c)}</td>"
            for (title, _), c in zip(COLUMNS[1:], cells[1:], strict=True)
        )
        lines.append(f"<tr><th>{text(cells[0])}</th>{shown}</tr>")
    return (
        f"<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _assumptions(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(line for row in rows for line in row.assumptions))


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"
