"""Seesaws, ramps, hanging weights, water tanks, ice."""

from rb_jax.data.reasonworld.canvas import (
    INK,
    STEEL,
    STONE,
    WATER,
    WHITE,
    WOOD,
    Canvas,
    clear,
    dark,
    light,
)
from rb_jax.data.reasonworld.scene import Thing
from rb_jax.data.reasonworld.sprites.common import hue, puddle, slab


def fulcrum(c: Canvas, t: Thing) -> None:
    tone = hue(t, STEEL)
    c.shadow(t.x, t.y, t.w * 0.55)
    c.poly([(t.x, t.y - t.h), (t.x + t.w / 2, t.y), (t.x - t.w / 2, t.y)], dark(tone))
    c.poly([(t.x, t.y - t.h), (t.x + t.w * 0.26, t.y), (t.x - t.w / 2, t.y)], tone)


def plank(c: Canvas, t: Thing) -> None:
    """A board about (x, y), `level` degrees down to the right."""
    c.haze(t.x, 0.82, t.w * 0.5, 0.03, (44, 34, 70, 60))
    slab(c, t.x, t.y, t.w, t.h, t.level, hue(t))


def post(c: Canvas, t: Thing) -> None:
    tone = hue(t, light(WOOD, 0.2))
    c.shadow(t.x, t.y, t.w * 0.8)
    c.box(t.x, t.y, t.w, t.h, dark(tone), r=0.006)
    c.box(t.x - t.w * 0.14, t.y, t.w * 0.62, t.h, tone, r=0.006)


def rope(c: Canvas, t: Thing) -> None:
    """Hangs from the top edge of the picture down to (x, y)."""
    c.box(t.x, t.y, 0.034, t.y + 0.02, dark((214, 180, 128), 0.2))
    c.box(t.x - 0.006, t.y, 0.02, t.y + 0.02, (222, 192, 142))


def weight(c: Canvas, t: Thing) -> None:
    """A kettle weight standing on (x, y)."""
    tone = hue(t, STEEL)
    if t.state == "resting":
        c.shadow(t.x, t.y, t.w * 0.5)
    c.oval(t.x, t.y - t.h * 0.86, t.w * 0.2, t.h * 0.2, dark(tone, 0.4))
    c.oval(t.x, t.y - t.h * 0.86, t.w * 0.1, t.h * 0.1, WHITE)
    body = [(-0.36, 0.78), (0.36, 0.78), (0.5, 0.0), (-0.5, 0.0)]
    c.poly([(t.x + x * t.w, t.y - y * t.h) for x, y in body], dark(tone))
    lit = [(-0.36, 0.78), (0.2, 0.78), (0.28, 0.0), (-0.5, 0.0)]
    c.poly([(t.x + x * t.w, t.y - y * t.h) for x, y in lit], tone)
    c.box(t.x - t.w * 0.08, t.y - t.h * 0.24, t.w * 0.4, t.h * 0.2, light(tone, 0.45), r=0.01)


def cushion(c: Canvas, t: Thing) -> None:
    """`state`: whole, pressed or broken (torn in two)."""
    tone = hue(t)
    c.shadow(t.x, t.y, t.w * 0.5)
    if t.state == "broken":
        _halves(c, t)
        return
    h = t.h * (0.6 if t.state == "pressed" else 1.0)
    w = t.w * (1.14 if t.state == "pressed" else 1.0)
    c.box(t.x, t.y, w, h, dark(tone), r=h * 0.45)
    c.box(t.x, t.y - h * 0.16, w * 0.97, h * 0.84, tone, r=h * 0.4)
    c.box(t.x - w * 0.1, t.y - h * 0.66, w * 0.6, h * 0.18, light(tone, 0.35), r=h * 0.09)


def vase(c: Canvas, t: Thing) -> None:
    """`state`: whole, pressed (unharmed) or broken."""
    tone = hue(t)
    c.shadow(t.x, t.y, t.w * 0.4)
    if t.state == "broken":
        _halves(c, t)
        return
    c.box(t.x, t.y - t.h * 0.5, t.w * 0.44, t.h * 0.5, dark(tone))
    c.oval(t.x, t.y - t.h * 0.36, t.w * 0.5, t.h * 0.36, dark(tone))
    c.oval(t.x - t.w * 0.05, t.y - t.h * 0.38, t.w * 0.42, t.h * 0.33, tone)
    c.box(t.x, t.y - t.h * 0.88, t.w * 0.66, t.h * 0.13, light(tone, 0.25), r=0.01)
    c.box(t.x, t.y - t.h * 0.3, t.w * 0.84, t.h * 0.12, light(tone, 0.55))


def tub(c: Canvas, t: Thing) -> None:
    """A glass tub, `level` full; `state`: whole, pressed (closed, unharmed) or broken."""
    c.shadow(t.x, t.y, t.w * 0.5)
    if t.state == "broken":
        puddle(c, Thing("puddle", t.x, t.y + 0.01, t.w * 1.5, 0.09))
        _halves(c, t)
        return
    c.box(t.x, t.y, t.w, t.h, clear(WHITE, 110), r=0.02)
    depth = t.h * t.level
    c.box(t.x, t.y - 0.02, t.w - 0.04, depth - 0.02, clear(WATER, 120), r=0.015)
    c.box(t.x, t.y - depth + 0.016, t.w - 0.04, 0.022, clear(light(WATER, 0.6), 230))
    c.box(t.x, t.y, t.w, 0.03, hue(t), r=0.012)
    for side in (-1, 1):
        c.box(t.x + side * (t.w / 2 - 0.012), t.y, 0.026, t.h, hue(t), r=0.012)


def _halves(c: Canvas, t: Thing) -> None:
    """What is left of something smashed: pieces of its colour left and right."""
    tone, h = hue(t), t.h * 0.5
    for side, fill in ((-1, tone), (1, dark(tone, 0.14))):
        x = t.x + side * (t.w * 0.5 + 0.03)
        c.poly(
            [
                (x - side * 0.06, t.y),
                (x - side * 0.02, t.y - h),
                (x + side * 0.04, t.y - h * 0.6),
                (x + side * 0.1, t.y),
            ],
            fill,
        )
        c.poly(
            [(x + side * 0.08, t.y), (x + side * 0.12, t.y - h * 0.5), (x + side * 0.16, t.y)],
            light(fill, 0.25),
        )


def tank(c: Canvas, t: Thing) -> None:
    """A wide aquarium, `level` full."""
    c.shadow(t.x, t.y, t.w * 0.5)
    c.box(t.x, t.y, t.w, t.h, clear(WHITE, 110), r=0.02)
    depth = t.h * t.level
    c.box(t.x, t.y, t.w, depth, clear(WATER, 190), r=0.02)
    c.box(t.x, t.y, t.w, depth * 0.4, clear(dark(WATER, 0.2), 90), r=0.02)
    c.box(t.x, t.y - depth + 0.022, t.w, 0.022, clear(light(WATER, 0.6), 220))
    c.box(t.x, t.y + 0.012, t.w + 0.03, 0.045, hue(t), r=0.014)
    for side in (-1, 1):
        c.box(t.x + side * t.w / 2, t.y, 0.028, t.h + 0.01, light(hue(t), 0.25), r=0.012)


def water_veil(c: Canvas, t: Thing) -> None:
    """The water in front of what is in a tank of the same place and level."""
    c.box(t.x, t.y - 0.03, t.w - 0.03, t.h * t.level - 0.03, clear(WATER, 90))


def hook(c: Canvas, t: Thing) -> None:
    """A steel claw on a rod from the top edge, holding what hangs below (x, y); `w` wide."""
    c.box(t.x, t.y, 0.03, t.y + 0.02, STEEL)
    c.box(t.x, t.y + 0.02, t.w, 0.045, dark(STEEL, 0.15), r=0.016)
    if t.state != "open":
        for side in (-1, 1):
            c.box(t.x + side * (t.w / 2 - 0.012), t.y + 0.06, 0.026, 0.07, STEEL, r=0.01)


def cargo(c: Canvas, t: Thing) -> None:
    """Something to drop into water; `state` is what it is made of."""
    x, y, w = t.x, t.y, t.w
    if t.state == "log":
        c.box(x, y, w, w * 0.62, dark(WOOD), r=w * 0.12)
        c.box(x, y - w * 0.12, w, w * 0.5, WOOD, r=w * 0.1)
        for dy in (0.24, 0.42):
            c.box(x - w * 0.05, y - w * dy, w * 0.7, w * 0.07, dark(WOOD, 0.2))
        c.oval(x + w * 0.4, y - w * 0.31, w * 0.13, w * 0.3, light(WOOD, 0.4))
    elif t.state == "duck":
        gold = (250, 204, 72)
        c.oval(x - w * 0.04, y - w * 0.3, w * 0.48, w * 0.3, dark(gold, 0.14))
        c.oval(x - w * 0.06, y - w * 0.33, w * 0.44, w * 0.27, gold)
        c.oval(x + w * 0.2, y - w * 0.66, w * 0.24, w * 0.24, gold)
        c.poly(
            [
                (x + w * 0.4, y - w * 0.76),
                (x + w * 0.62, y - w * 0.62),
                (x + w * 0.4, y - w * 0.54),
            ],
            (236, 122, 54),
        )
        c.oval(x + w * 0.26, y - w * 0.72, w * 0.055, w * 0.055, INK)
        c.oval(x - w * 0.14, y - w * 0.36, w * 0.2, w * 0.12, light(gold, 0.4))
    elif t.state == "rock":
        pts = [(-0.5, 0.0), (-0.46, 0.36), (-0.18, 0.66), (0.2, 0.62), (0.5, 0.26), (0.46, 0.0)]
        c.poly([(x + a * w, y - b * w) for a, b in pts], dark(STONE, 0.25))
        pts = [(-0.5, 0.0), (-0.46, 0.36), (-0.18, 0.66), (0.06, 0.6), (0.12, 0.2), (0.0, 0.0)]
        c.poly([(x + a * w, y - b * w) for a, b in pts], STONE)
        pts = [(-0.46, 0.36), (-0.18, 0.66), (0.06, 0.6), (-0.1, 0.4)]
        c.poly([(x + a * w, y - b * w) for a, b in pts], light(STONE, 0.35))
    else:  # an iron weight
        weight(c, t.but(h=w * 0.86, color="", state=""))


def parasol(c: Canvas, t: Thing) -> None:
    """Stands on (x, y); its shade lies on the ground below."""
    tone, top = hue(t), t.y - t.h
    c.haze(t.x, t.y, t.w * 0.62, 0.07, (40, 36, 80, 150))
    c.box(t.x, t.y, 0.026, t.h * 0.9, light(WOOD, 0.3))
    c.pie(t.x, top + t.h * 0.36, t.w / 2, t.h * 0.36, (180, 360), dark(tone, 0.12))
    c.pie(t.x, top + t.h * 0.36, t.w * 0.3, t.h * 0.36, (180, 360), WHITE)
    c.pie(t.x, top + t.h * 0.36, t.w * 0.12, t.h * 0.36, (180, 360), tone)
    c.oval(t.x, top, 0.018, 0.018, dark(tone, 0.2))


def ice(c: Canvas, t: Thing) -> None:
    """A cube standing on (x, y); `state` whole or melted."""
    if t.state == "melted":
        puddle(c, Thing("puddle", t.x, t.y - 0.005, t.w * 1.5, t.h * 0.42))
        return
    base = (158, 212, 240)
    c.shadow(t.x, t.y, t.w * 0.5)
    c.box(t.x, t.y, t.w, t.h, dark(base, 0.16), r=t.w * 0.14)
    c.box(t.x - t.w * 0.06, t.y - t.h * 0.1, t.w * 0.88, t.h * 0.9, base, r=t.w * 0.12)
    c.box(t.x - t.w * 0.1, t.y - t.h * 0.3, t.w * 0.6, t.h * 0.56, light(base, 0.4), r=t.w * 0.08)
    c.line(
        [(t.x - t.w * 0.26, t.y - t.h * 0.62), (t.x - t.w * 0.1, t.y - t.h * 0.78)], 0.018, WHITE
    )


SPRITES = {
    "fulcrum": fulcrum,
    "plank": plank,
    "post": post,
    "rope": rope,
    "weight": weight,
    "cushion": cushion,
    "vase": vase,
    "tub": tub,
    "tank": tank,
    "veil": water_veil,
    "hook": hook,
    "cargo": cargo,
    "parasol": parasol,
    "ice": ice,
}
