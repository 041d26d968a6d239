"""Candles, seedlings, windows, fruit, snowmen."""

from rb_jax.data.reasonworld.canvas import (
    GOLD,
    INK,
    LEAF,
    SNOW,
    WHITE,
    WOOD,
    Canvas,
    Color,
    clear,
    dark,
    light,
    mix,
)
from rb_jax.data.reasonworld.scene import Real, Thing
from rb_jax.data.reasonworld.sprites.common import hue, puddle, sphere

UNIT = 0.115  # the height of wax that burns in an hour


def candle(c: Canvas, t: Thing) -> None:
    """A candle of `level` hours standing on (x, y); at 0 only wax and smoke are left."""
    tone, wax = hue(t), light(hue(t), 0.55)
    c.shadow(t.x, t.y + 0.01, t.w * 0.75)
    c.oval(t.x, t.y + 0.006, t.w * 0.72, 0.03, GOLD)
    c.oval(t.x, t.y - 0.002, t.w * 0.6, 0.022, dark(GOLD, 0.25))
    if t.level <= 0:
        c.oval(t.x, t.y - 0.008, t.w * 0.5, 0.024, tone)
        for k, r in enumerate((0.022, 0.03, 0.038)):
            c.oval(
                t.x + (0.02, -0.018, 0.016)[k], t.y - 0.06 - 0.06 * k, r, r, (120, 120, 136, 110)
            )
        return
    top = t.y - UNIT * t.level
    c.box(t.x, t.y, t.w, t.y - top, dark(tone, 0.12), r=0.012)
    c.box(t.x - t.w * 0.1, t.y, t.w * 0.72, t.y - top, tone, r=0.012)
    for k in range(1, int(t.level)):
        c.box(t.x, t.y - UNIT * k + 0.016, t.w, 0.032, wax)
    c.oval(t.x, top, t.w * 0.5, 0.018, wax)
    c.box(t.x, top, 0.016, 0.03, INK)
    c.haze(t.x, top - 0.06, 0.14, 0.14, (255, 220, 130, 150))
    c.oval(t.x, top - 0.046, 0.03, 0.036, (242, 140, 52))
    c.poly(
        [(t.x - 0.028, top - 0.058), (t.x + 0.028, top - 0.058), (t.x, top - 0.115)], (242, 140, 52)
    )
    c.oval(t.x, top - 0.042, 0.017, 0.024, (255, 232, 140))


def pot(c: Canvas, t: Thing) -> None:
    tone, top = hue(t), t.y - t.h
    c.shadow(t.x, t.y, t.w * 0.42)
    sides = [(-0.46, 0.9), (0.46, 0.9), (0.34, 0.0), (-0.34, 0.0)]
    c.poly([(t.x + a * t.w, t.y - b * t.h) for a, b in sides], dark(tone, 0.16))
    sides = [(-0.46, 0.9), (0.2, 0.9), (0.14, 0.0), (-0.34, 0.0)]
    c.poly([(t.x + a * t.w, t.y - b * t.h) for a, b in sides], tone)
    c.box(t.x, top + 0.05, t.w * 1.08, 0.06, light(tone, 0.22), r=0.012)
    c.oval(t.x, top, t.w * 0.46, 0.02, (104, 74, 62))


def packet(c: Canvas, t: Thing) -> None:
    """A seed packet on a stick, showing what was sown (`state`)."""
    c.box(t.x, t.y, 0.022, t.h, light(WOOD, 0.3))
    c.box(t.x, t.y - t.h * 0.45, t.w, t.w * 1.2, dark(WHITE, 0.12), r=0.012)
    c.box(t.x - 0.005, t.y - t.h * 0.45 - 0.006, t.w - 0.018, t.w * 1.2 - 0.016, WHITE, r=0.008)
    _bloom(c, t.state, t.x, t.y - t.h * 0.45 - t.w * 0.6, t.w * 0.34)


def _bloom(c: Canvas, kind: str, x: Real, y: Real, r: Real) -> None:
    if kind == "sunflower":
        for dx, dy in ((0, -1), (0.75, -0.65), (0.75, 0.65), (0, 1), (-0.75, 0.65), (-0.75, -0.65)):
            c.oval(x + dx * r * 0.62, y + dy * r * 0.62, r * 0.42, r * 0.42, (248, 196, 60))
        c.oval(x, y, r * 0.9, r * 0.62, (248, 196, 60))
        c.oval(x, y, r * 0.5, r * 0.5, (116, 76, 52))
    elif kind == "tulip":
        c.oval(x, y + r * 0.2, r * 0.68, r * 0.76, (222, 74, 92))
        for dx in (-0.42, 0.0, 0.42):
            tip = [(x + (dx - 0.28) * r, y), (x + dx * r, y - r), (x + (dx + 0.28) * r, y)]
            c.poly(tip, (222, 74, 92) if dx else (238, 112, 120))
    else:  # a bush with blue berries
        c.oval(x, y, r, r * 0.9, dark(LEAF, 0.12))
        c.oval(x - r * 0.14, y - r * 0.12, r * 0.76, r * 0.68, LEAF)
        for dx, dy in ((-0.42, -0.2), (0.3, -0.4), (0.1, 0.3), (-0.3, 0.46), (0.6, 0.15)):
            c.oval(x + dx * r, y + dy * r, r * 0.22, r * 0.22, (84, 84, 190))


def seedling(c: Canvas, t: Thing) -> None:
    """A plant growing from (x, y); `state` is its kind, `level` its stage: 0 sown .. 3 in bloom."""
    stage, h = int(t.level), (0.03, 0.12, 0.22, 0.3)[int(t.level)]
    stem = dark(LEAF, 0.12)
    if stage == 0:
        c.pie(t.x, t.y + 0.01, 0.05, 0.04, (180, 360), (128, 94, 76))
        return
    c.box(t.x, t.y + 0.006, 0.026, h, stem)
    for k in range(1, stage + 1):
        y, reach = t.y - h * k / (stage + 0.7), 0.045 + 0.014 * stage
        for side in (-1, 1):
            c.oval(t.x + side * reach * 0.9, y - 0.014, reach, 0.026, LEAF if side < 0 else stem)
    if stage == 3:
        _bloom(c, t.state, t.x, t.y - h - 0.04, 0.12)
    elif stage == 2:
        c.oval(t.x, t.y - h, 0.034, 0.042, light(LEAF, 0.25))


def window(c: Canvas, t: Thing) -> None:
    """A view outside: hills, a house, and at `level` (-1..1) across the sky a sun or a moon."""
    night = t.state == "night"
    top, bottom = t.y - t.h, t.y
    c.box(t.x, t.y + 0.03, t.w + 0.06, t.h + 0.06, dark(hue(t), 0.1), r=0.014)
    c.box(t.x, t.y + 0.022, t.w + 0.04, t.h + 0.044, hue(t), r=0.012)
    sky = ((42, 46, 98), (92, 92, 150)) if night else ((138, 200, 236), (218, 240, 244))
    rows = 12
    for k in range(rows):
        edge = top + (k + 1) * t.h / rows
        c.box(t.x, edge + 0.002, t.w, t.h / rows + 0.004, mix(*sky, k / (rows - 1)))
    if night:
        for dx, dy in ((-0.2, 0.06), (-0.08, 0.2), (0.08, 0.09), (0.2, 0.22)):
            c.oval(t.x + dx, top + dy, 0.011, 0.011, WHITE)
    _disc(c, t.x + t.level * t.w * 0.3, top + 0.15, night)
    left, right = t.x - t.w / 2, t.x + t.w / 2
    hill = (52, 74, 104) if night else (142, 194, 122)
    c.poly(
        [
            (left, bottom),
            (left, bottom - 0.12),
            (t.x - 0.05, bottom - 0.17),
            (right, bottom - 0.09),
            (right, bottom),
        ],
        hill,
    )
    c.box(t.x, bottom, t.w, 0.07, dark(hill, 0.14))
    x, wall = t.x + (0.13 if t.x > 0.5 else -0.13), (104, 96, 138) if night else (248, 234, 210)
    c.box(x, bottom - 0.04, 0.16, 0.13, wall)
    roof = [(x - 0.11, bottom - 0.16), (x + 0.11, bottom - 0.16), (x, bottom - 0.26)]
    c.poly(roof, (78, 56, 96) if night else (206, 98, 84))
    c.box(x, bottom - 0.075, 0.06, 0.06, (255, 216, 104) if night else (120, 160, 190))
    c.box(t.x, bottom, 0.03, t.h, hue(t))
    c.box(t.x, t.y + 0.05, t.w + 0.12, 0.04, light(hue(t), 0.3), r=0.01)


def _disc(c: Canvas, x: Real, y: Real, night: bool) -> None:
    if night:
        c.haze(x, y, 0.13, 0.13, (210, 214, 255, 110))
        c.oval(x, y, 0.075, 0.075, (240, 238, 214))
        for dx, dy, r in ((-0.025, -0.02, 0.018), (0.03, 0.02, 0.014), (-0.01, 0.038, 0.012)):
            c.oval(x + dx, y + dy, r, r, (214, 210, 190))
    else:
        c.haze(x, y, 0.13, 0.13, (255, 246, 190, 190))
        c.oval(x, y, 0.075, 0.075, (255, 208, 84))
        c.oval(x - 0.006, y - 0.008, 0.062, 0.062, (255, 224, 124))


_RIPENESS: tuple[Color, ...] = ((136, 186, 84), (248, 196, 70), (224, 72, 66), (112, 78, 66))


def fruit(c: Canvas, t: Thing) -> None:
    """A round fruit on (x, y); `level`: 0 green, 1 yellow, 2 red, 3 brown and shrunken."""
    stage, r = int(t.level), t.w / 2 * (0.86 if t.level == 3 else 1.0)
    sphere(c, t.x, t.y - r, r, _RIPENESS[stage])
    if stage == 3:
        for dx, dy in ((-0.3, 0.2), (0.3, -0.1), (0.1, 0.46)):
            c.oval(t.x + dx * r, t.y - r + dy * r, r * 0.17, r * 0.15, (78, 54, 52))
    c.line([(t.x, t.y - 2 * r + 0.01), (t.x + 0.012, t.y - 2 * r - 0.02)], 0.016, dark(WOOD, 0.2))
    leaf = dark(LEAF, 0.08) if stage < 3 else (150, 118, 74)
    c.oval(t.x + 0.04, t.y - 2 * r - 0.012, 0.032, 0.016, leaf)


def tray(c: Canvas, t: Thing) -> None:
    tone = hue(t)
    c.shadow(t.x, t.y, t.w * 0.46)
    c.box(t.x, t.y, t.w * 0.36, t.h, dark(tone, 0.25), r=0.01)
    c.box(t.x, t.y - t.h + 0.035, t.w, 0.055, dark(tone, 0.12), r=0.02)
    c.box(t.x, t.y - t.h + 0.022, t.w, 0.038, light(tone, 0.15), r=0.018)


def snowman(c: Canvas, t: Thing) -> None:
    """`state`: whole, melted (a puddle with hat and carrot) or buried (deep in new snow)."""
    carrot, blue = (238, 130, 50), (206, 220, 240)
    if t.state == "melted":
        puddle(c, Thing("puddle", t.x, t.y, 0.5, 0.12))
        c.oval(t.x - 0.03, t.y - 0.02, 0.1, 0.04, blue)
        c.oval(t.x - 0.04, t.y - 0.03, 0.08, 0.032, SNOW)
        _hat(c, t.x + 0.11, t.y + 0.01, t.color)
        c.poly(
            [(t.x - 0.17, t.y - 0.005), (t.x - 0.17, t.y + 0.035), (t.x - 0.08, t.y + 0.02)], carrot
        )
        return
    c.shadow(t.x, t.y, 0.15)
    for y, r in ((0.13, 0.15), (0.34, 0.115), (0.5, 0.085)):
        c.oval(t.x, t.y - y, r, r, blue)
        c.oval(t.x - r * 0.1, t.y - y - r * 0.1, r * 0.88, r * 0.88, SNOW)
    for dy in (0.31, 0.38):
        c.oval(t.x, t.y - dy, 0.017, 0.017, INK)
    for dx in (-0.032, 0.032):
        c.oval(t.x + dx, t.y - 0.525, 0.014, 0.016, INK)
    c.poly(
        [(t.x - 0.012, t.y - 0.505), (t.x - 0.012, t.y - 0.468), (t.x + 0.1, t.y - 0.48)], carrot
    )
    c.box(t.x, t.y - 0.41, 0.17, 0.046, hue(t), r=0.02)
    c.box(t.x + 0.055, t.y - 0.32, 0.046, 0.1, dark(hue(t), 0.1), r=0.012)
    _hat(c, t.x, t.y - 0.56, t.color)
    if t.state == "buried":
        c.oval(t.x, t.y - 0.7, 0.075, 0.03, SNOW)
        c.oval(t.x, t.y + 0.05, 0.42, 0.04, mix(blue, SNOW, 0.2))
        for dx, rx, ry in ((-0.2, 0.24, 0.16), (0.2, 0.24, 0.15), (0.0, 0.28, 0.22)):
            c.pie(t.x + dx, t.y + 0.05, rx, ry, (180, 360), mix(blue, SNOW, 0.2))
            c.pie(t.x + dx - 0.01, t.y + 0.052, rx * 0.94, ry * 0.88, (180, 360), SNOW)
        c.oval(t.x - 0.01, t.y + 0.048, 0.4, 0.03, SNOW)


def _hat(c: Canvas, x: Real, y: Real, color: str) -> None:
    c.box(x, y, 0.2, 0.032, INK, r=0.012)
    c.box(x, y - 0.02, 0.125, 0.12, INK, r=0.012)
    c.box(x, y - 0.025, 0.125, 0.03, hue(Thing("", 0, 0, color=color)))


def weather(c: Canvas, t: Thing) -> None:
    """`state` sun: a big sun; snow: a grey cloud with flakes."""
    if t.state == "sun":
        c.haze(t.x, t.y, 0.22, 0.22, (255, 238, 170, 200))
        c.oval(t.x, t.y, 0.1, 0.1, (255, 206, 84))
        c.oval(t.x - 0.008, t.y - 0.01, 0.086, 0.086, (255, 224, 124))
        return
    for dx, dy in ((-0.1, 0.11), (0.0, 0.15), (0.1, 0.11)):
        c.oval(t.x + dx, t.y + dy, 0.019, 0.019, SNOW)
    for low, fill in ((0.022, (118, 128, 158)), (0.0, (150, 160, 186))):
        c.oval(t.x - 0.09, t.y + low, 0.09, 0.055, clear(fill, 255))
        c.oval(t.x + 0.09, t.y + low, 0.085, 0.052, clear(fill, 255))
        c.oval(t.x, t.y - 0.025 + low, 0.105, 0.075, clear(fill, 255))


SPRITES = {
    "candle": candle,
    "pot": pot,
    "packet": packet,
    "seedling": seedling,
    "window": window,
    "fruit": fruit,
    "tray": tray,
    "snowman": snowman,
    "weather": weather,
}
