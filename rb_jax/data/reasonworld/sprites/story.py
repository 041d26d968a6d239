"""Fairy-tale villages: cottages, huts, trees, dragons, giants, kings."""

from rb_jax.data.reasonworld.canvas import (
    CHAR,
    GOLD,
    INK,
    LEAF,
    PINE,
    SNOW,
    STONE,
    WOOD,
    Canvas,
    Point,
    dark,
    light,
    mix,
)
from rb_jax.data.reasonworld.scene import Real, Thing
from rb_jax.data.reasonworld.sprites.common import hue

_CREAM = (248, 234, 208)


def cottage(c: Canvas, t: Thing) -> None:
    """A plastered house with a coloured roof; `state` whole or flat (trodden down)."""
    roof, x, y, w, h = hue(t), t.x, t.y, t.w, t.h
    if t.state == "flat":
        c.shadow(x, y, w * 0.7)
        c.box(x, y, w * 1.3, 0.05, dark(_CREAM, 0.18), r=0.012)
        c.poly(
            [
                (x - w * 0.75, y - 0.04),
                (x + w * 0.75, y - 0.04),
                (x + w * 0.4, y - 0.085),
                (x - w * 0.4, y - 0.085),
            ],
            dark(roof, 0.1),
        )
        return
    c.shadow(x, y, w * 0.5)
    c.box(x, y, w * 0.84, h * 0.6, dark(_CREAM, 0.14))
    c.box(x - w * 0.08, y, w * 0.68, h * 0.6, _CREAM)
    c.box(x - w * 0.16, y, w * 0.2, h * 0.36, dark(WOOD, 0.12))
    c.box(x + w * 0.18, y - h * 0.2, w * 0.2, h * 0.2, (126, 178, 206))
    _roof(c, x, y - h * 0.56, w, h * 0.5, roof)


def _roof(c: Canvas, x: Real, y: Real, w: Real, h: Real, tone: tuple[int, ...]) -> None:
    c.poly([(x - w * 0.54, y), (x + w * 0.54, y), (x, y - h)], dark(tone, 0.2))
    c.poly([(x - w * 0.54, y), (x + w * 0.2, y), (x, y - h)], tone)


def hut(c: Canvas, t: Thing) -> None:
    """A building; `state` is wood, stone or burnt."""
    x, y, w, h = t.x, t.y, t.w, t.h
    c.shadow(x, y, w * 0.5)
    if t.state == "burnt":
        _ruin(c, t)
        return
    stone = t.state == "stone"
    wall = STONE if stone else WOOD
    c.box(x, y, w * 0.86, h * 0.62, dark(wall, 0.2))
    c.box(x - w * 0.07, y, w * 0.72, h * 0.62, wall)
    for k in range(1, 4):
        yy = y - h * 0.62 * k / 4
        if stone:
            shift = 0.1 if k % 2 else -0.12
            c.box(x - w * (0.2 + shift), yy, w * 0.22, h * 0.1, light(wall, 0.28))
            c.box(x + w * (0.2 - shift), yy + h * 0.06, w * 0.2, h * 0.1, light(wall, 0.28))
        else:
            c.box(x - w * 0.07, yy, w * 0.72, 0.014, dark(wall, 0.25))
    c.box(x, y, w * 0.24, h * 0.38, dark(wall, 0.5), r=0.01)
    if stone:
        for dx in (-0.36, 0.0, 0.36):
            c.box(x + dx * w, y - h * 0.7, w * 0.26, h * 0.18, light(wall, 0.12))
        c.box(x, y - h * 0.6, w, h * 0.14, dark(wall, 0.08))
    else:
        _roof(c, x, y - h * 0.58, w, h * 0.46, (222, 178, 98))


def _ruin(c: Canvas, t: Thing) -> None:
    x, y, w, h = t.x, t.y, t.w, t.h
    c.oval(x, y, w * 0.6, 0.03, dark(CHAR, 0.3))
    for dx, tall in ((-0.36, 0.42), (-0.12, 0.2), (0.12, 0.3), (0.36, 0.5)):
        c.poly(
            [
                (x + (dx - 0.1) * w, y),
                (x + (dx - 0.1) * w, y - h * tall),
                (x + (dx + 0.08) * w, y - h * (tall - 0.12)),
                (x + (dx + 0.1) * w, y),
            ],
            CHAR,
        )
    for dx, tall in ((-0.24, 0.4), (0.02, 0.52), (0.26, 0.36)):
        _flame(c, x + dx * w, y, w * 0.17, h * tall)


def _flame(c: Canvas, x: Real, y: Real, r: Real, h: Real) -> None:
    for scale, fill in ((1.0, (236, 104, 52)), (0.58, (255, 206, 92))):
        c.oval(x, y - r * scale, r * scale, r * scale, fill)
        c.poly(
            [
                (x - r * scale, y - r * scale * 1.2),
                (x + r * scale, y - r * scale * 1.2),
                (x, y - h * (0.4 + 0.6 * scale)),
            ],
            fill,
        )


def dragon(c: Canvas, t: Thing) -> None:
    """A small dragon in the sky, facing right if `level` > 0."""
    tone, f, x, y, w = hue(t), 1 if t.level > 0 else -1, t.x, t.y, t.w

    def at(points: tuple[Point, ...]) -> list[Point]:
        return [(x + f * a * w, y + b * w) for a, b in points]

    c.poly(at(((-0.7, 0.12), (-0.2, -0.02), (-0.2, 0.18))), tone)
    c.poly(at(((-0.82, 0.02), (-0.62, 0.1), (-0.78, 0.22))), dark(tone, 0.2))
    c.poly(at(((-0.06, 0.0), (-0.46, -0.44), (-0.02, -0.34), (0.16, -0.02))), dark(tone, 0.28))
    c.oval(x, y + 0.08 * w, w * 0.32, w * 0.17, tone)
    c.oval(x + f * 0.02 * w, y + 0.14 * w, w * 0.22, w * 0.09, light(tone, 0.5))
    c.poly(at(((0.14, 0.06), (0.36, -0.2), (0.46, -0.08), (0.28, 0.16))), tone)
    c.oval(x + f * 0.44 * w, y - 0.16 * w, w * 0.15, w * 0.12, tone)
    c.oval(x + f * 0.58 * w, y - 0.12 * w, w * 0.11, w * 0.075, tone)
    c.poly(at(((0.34, -0.24), (0.28, -0.42), (0.44, -0.27))), GOLD)
    c.oval(x + f * 0.46 * w, y - 0.2 * w, w * 0.035, w * 0.035, INK)
    c.poly(at(((0.1, -0.02), (-0.2, -0.56), (0.3, -0.36), (0.26, 0.02))), light(tone, 0.18))


def tree(c: Canvas, t: Thing) -> None:
    """`state` leafy, pine, bare (leafy in winter) or snowy (pine in winter)."""
    x, y, w, h = t.x, t.y, t.w, t.h
    c.shadow(x, y, w * 0.34)
    c.box(x, y, w * 0.16, h * 0.5, dark(WOOD, 0.25))
    if t.state in ("pine", "snowy"):
        for k, (top, half) in enumerate(((0.62, 0.5), (0.82, 0.4), (1.0, 0.29))):
            low = (0.18, 0.42, 0.64)[k]
            tip, foot = (x, y - h * top), y - h * low
            c.poly([tip, (x + half * w, foot), (x - half * w, foot)], dark(PINE, 0.16))
            c.poly([tip, (x + half * w * 0.3, foot), (x - half * w, foot)], PINE)
            if t.state == "snowy":
                up, rise = 0.6, (top - low) * h * 0.4
                c.poly(
                    [
                        (x - half * w, foot),
                        (x - half * up * w, foot - rise),
                        (x, foot - rise * 0.7),
                        (x + half * up * w, foot - rise),
                        (x + half * w, foot),
                        (x, foot - 0.012),
                    ],
                    SNOW,
                )
        if t.state == "snowy":
            c.poly([(x, y - h), (x + 0.1 * w, y - h * 0.86), (x - 0.1 * w, y - h * 0.86)], SNOW)
        return
    if t.state == "leafy":
        for dx, dy, r in ((-0.22, 0.56, 0.28), (0.24, 0.58, 0.26), (0.0, 0.76, 0.34)):
            c.oval(x + dx * w, y - dy * h, r * w, r * w, dark(LEAF, 0.16))
            c.oval(x + dx * w - 0.008, y - dy * h - 0.01, r * w * 0.88, r * w * 0.86, LEAF)
        c.oval(x - 0.1 * w, y - 0.82 * h, w * 0.13, w * 0.1, light(LEAF, 0.3))
        return
    bark = dark(WOOD, 0.25)
    for dx, dy in ((-0.36, 0.86), (0.36, 0.82), (-0.06, 0.98)):
        c.line([(x, y - h * 0.44), (x + dx * w, y - dy * h)], 0.026, bark)
        c.oval(x + dx * w, y - dy * h, 0.03, 0.022, SNOW)
    c.line([(x - 0.19 * w, y - 0.66 * h), (x - 0.42 * w, y - 0.6 * h)], 0.02, bark)
    c.line([(x + 0.19 * w, y - 0.64 * h), (x + 0.44 * w, y - 0.56 * h)], 0.02, bark)


def snowfield(c: Canvas, t: Thing) -> None:
    """The ground from the horizon down; `state` green (nothing to see) or white."""
    if t.state == "white":
        c.box(0.5, 1.0, 1.0, 0.25, (222, 232, 246))
        c.oval(0.3, 0.97, 0.75, 0.2, SNOW)
        c.oval(0.95, 1.0, 0.5, 0.18, mix(SNOW, (222, 232, 246), 0.4))


def sign(c: Canvas, t: Thing) -> None:
    """A wooden sign of the scene's colour."""
    c.box(t.x, t.y, 0.03, t.h, dark(WOOD, 0.15))
    c.box(t.x, t.y - t.h * 0.4, t.w, t.h * 0.6, dark(hue(t), 0.15), r=0.012)
    c.box(t.x - 0.006, t.y - t.h * 0.4 - 0.008, t.w - 0.016, t.h * 0.6 - 0.016, hue(t), r=0.01)


def boot(c: Canvas, t: Thing) -> None:
    """A giant's boot, its sole at y; the leg goes up out of the picture."""
    tone, x, y, w = hue(t), t.x, t.y, t.w
    c.box(x - w * 0.12, y - w * 0.5, w * 0.56, y, dark(tone, 0.4))
    c.box(x - w * 0.17, y - w * 0.5, w * 0.36, y, dark(tone, 0.28))
    c.box(x - w * 0.12, y - 0.02, w * 0.66, w * 0.62, dark(tone, 0.14), r=w * 0.1)
    c.box(x - w * 0.18, y - 0.02, w * 0.44, w * 0.62, tone, r=w * 0.08)
    c.box(x + w * 0.06, y - 0.02, w * 1.0, w * 0.34, dark(tone, 0.14), r=w * 0.16)
    c.box(x, y - 0.05, w * 0.84, w * 0.26, tone, r=w * 0.12)
    c.box(x - w * 0.12, y - w * 0.58, w * 0.72, w * 0.12, light(tone, 0.4), r=0.012)
    c.box(x + w * 0.06, y, w * 1.04, 0.035, INK, r=0.012)


def castle_flag(c: Canvas, t: Thing) -> None:
    """The king's tower on (x, y) with a big flag of his colour."""
    x, y, w, h = t.x, t.y, t.w, t.h
    c.shadow(x, y, w * 0.5)
    c.box(x, y, w, h * 0.62, dark(STONE, 0.16))
    c.box(x - w * 0.1, y, w * 0.72, h * 0.62, STONE)
    for dx in (-0.4, 0.0, 0.4):
        c.box(x + dx * w, y - h * 0.58, w * 0.28, h * 0.12, light(STONE, 0.12))
    c.box(x, y, w * 0.36, h * 0.22, dark(STONE, 0.5), r=w * 0.14)
    c.box(x, y - h * 0.34, w * 0.2, h * 0.12, dark(STONE, 0.5), r=0.01)
    c.box(x, y - h * 0.62, 0.022, h * 0.4, dark(WOOD, 0.2))
    side = t.level
    c.poly(
        [
            (x, y - h * 1.02),
            (x + side * 0.2, y - h * 0.98),
            (x + side * 0.14, y - h * 0.89),
            (x + side * 0.2, y - h * 0.8),
            (x, y - h * 0.78),
        ],
        hue(t),
    )
    c.poly(
        [
            (x, y - h * 0.86),
            (x + side * 0.155, y - h * 0.865),
            (x + side * 0.2, y - h * 0.8),
            (x, y - h * 0.78),
        ],
        dark(hue(t), 0.16),
    )


SPRITES = {
    "cottage": cottage,
    "hut": hut,
    "dragon": dragon,
    "tree": tree,
    "snowfield": snowfield,
    "sign": sign,
    "boot": boot,
    "king": castle_flag,
}
