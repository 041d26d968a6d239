"""Pieces of a report's HTML, and its style sheet: light or dark as the reader's system is."""

from __future__ import annotations

import base64
import html
from typing import Any

from rb_jax.report.grids import Picture, category_color, png_bytes, upscale

DASH = "\N{EN DASH}"
PICTURE_SIZE = 192  # pixels; smaller pictures are enlarged to it, so that no browser blurs them


def text(value: Any) -> str:
    """The value as text that HTML shows as it is."""
    return html.escape(str(value), quote=True)


def decimal(value: float | None, digits: int) -> str:
    """A number with so many decimals, a dash if there is none."""
    return DASH if value is None else f"{value:.{digits}f}"


def count(value: int) -> str:
    """1234567 -> 1.23 M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return str(value)


def duration(seconds: float | int) -> str:
    """Seconds as s, min and s, or h and min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def page(title: str, body: str) -> str:
    """A whole HTML page that needs nothing else: no script, no link, no server."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def section(title: str, how_to_read: str, content: str) -> str:
    """A titled section that begins with how to read it."""
    return f"<section><h2>{title}</h2><p class=how>{how_to_read}</p>{content}</section>"


def chip(category: str) -> str:
    """A category's name on its colour."""
    name = category or "edits"
    return f'<span class=chip style="--accent:{category_color(category)}">{text(name)}</span>'


def data_uri(picture: Picture) -> str:
    """The picture as the address of an inline PNG."""
    image = upscale(picture, PICTURE_SIZE)
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def whisker(middle: float | None, low: float | None, high: float | None) -> str:
    """A value in [0, 1] and its interval on a scale from 0 to 1."""
    if middle is None:
        return ""
    low, high = (middle if end is None else end for end in (low, high))
    return (
        '<svg class=whisker viewBox="-4 0 128 12" aria-hidden="true"><path d="M0 6H120"/>'
        f'<path class=band d="M{120 * low:.1f} 6H{120 * high:.1f}"/>'
        f'<circle cx="{120 * middle:.1f}" cy="6" r="4"/></svg>'
    )


STYLE = """
:root{color-scheme:light dark;--page:#f6f5f1;--card:#fff;--line:#e4e1d8;--ink:#20242c;
--soft:#6b717c;--blue:#2f6fde;--orange:#d9822b;--good:#1f8a5b;--bad:#c8452f;--code:#efede6}
@media(prefers-color-scheme:dark){:root{--page:#14161a;--card:#1d2026;--line:#30343c;--ink:#e6e4de;
--soft:#9aa0ab;--blue:#74a4ff;--orange:#f0a457;--good:#4cc38a;--bad:#f07a63;--code:#272b32}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:2rem;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:1.35rem;margin:0 0 4px}
h3{font-size:1.05rem;margin:24px 0 10px}
small,.soft{color:var(--soft);font-weight:400}
section{margin-top:52px}
.lede{font-size:1.08rem;color:var(--soft);max-width:46em;margin:0}
.how{color:var(--soft);max-width:52em;margin:0 0 16px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;
margin:24px 0 12px}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.facts b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
.facts span{color:var(--soft);font-size:.88rem}
pre{background:var(--code);border-radius:10px;margin:0;padding:12px 16px;overflow-x:auto}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.88em}
td code{background:var(--code);border-radius:4px;padding:1px 5px;white-space:nowrap}
.chip{background:var(--accent);color:#fff;border-radius:99px;padding:2px 11px;font-size:.82rem;
font-weight:600;white-space:nowrap}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px;
border-top:3px solid var(--accent);display:flex;flex-direction:column;gap:10px}
.card p{margin:0;flex:1}
.strip{display:flex;gap:10px}
.strip figure{margin:0;flex:1;min-width:0}
.strip img{display:block;width:100%;border-radius:7px}
.strip figcaption{color:var(--soft);font-size:.82rem;text-align:center;margin-top:3px}
.card footer{display:flex;justify-content:space-between;font-size:.9rem;
font-variant-numeric:tabular-nums}
.verdict{font-weight:600}.good{color:var(--good)}.bad{color:var(--bad)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px}
.chart{background:var(--card);border:1px solid var(--line);border-radius:12px;margin:0;
padding:14px 16px 8px}
.chart figcaption{font-weight:600;display:flex;flex-wrap:wrap;gap:2px 8px;margin-bottom:6px}
.legend{width:100%;display:flex;gap:14px;font-weight:400;font-size:.85rem;color:var(--soft)}
.legend i{display:inline-block;width:12px;height:3px;border-radius:2px;margin-right:5px;
vertical-align:middle}
.legend b{color:var(--ink);font-variant-numeric:tabular-nums}
.chart svg{display:block;width:100%}
.chart text{fill:var(--soft);font-size:12.5px;font-variant-numeric:tabular-nums}
.rule{stroke:var(--line);stroke-width:1}
.line,.raw{fill:none;stroke-linejoin:round;stroke-linecap:round}
.line{stroke-width:2.2}.raw{stroke-width:1;opacity:.3}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px}
table{border-collapse:collapse;width:100%;margin:0;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;white-space:nowrap}
th{padding-left:16px}td:last-child,th:last-child{padding-right:16px}
th{font-weight:400;text-align:left}
thead th{color:var(--soft);text-align:right;font-size:.85rem;padding-top:10px}
thead th:first-child,thead th.left,td.left,td.bar{text-align:left}
td.left{white-space:normal}
tbody,tfoot{border-top:1px solid var(--line)}
.group{vertical-align:top;width:1%}
.first>:not(.group){font-weight:600}
.whisker{display:block;width:112px;height:10.5px}
.whisker path{fill:none;stroke-width:2;stroke:var(--line)}
.whisker .band{stroke:var(--blue);stroke-width:5;opacity:.4;stroke-linecap:round}
.whisker circle{fill:var(--blue)}
tr:not(.first)>td b{font-weight:400}
tfoot{font-weight:600}tfoot th{font-weight:600}
.memory td{white-space:nowrap}.memory .left{white-space:normal;color:var(--soft);padding-top:0}
.memory .room{position:relative;width:70%;min-width:180px;padding:6px 0;text-align:left;font-size:0}
.memory i{display:inline-block;height:14px;background:var(--good)}
.memory i.bad{background:var(--bad)}
.memory i.state{opacity:.45}
.memory b{position:absolute;top:2px;bottom:2px;border-left:2px solid var(--ink)}
.bar{width:34%;min-width:140px}
.bar i{display:inline-block;height:10px;background:var(--blue);vertical-align:middle;min-width:1px}
.bar .pale{opacity:.35}
@media(max-width:560px){main{padding-top:24px}h1{font-size:1.6rem}.strip{gap:6px}}
"""
