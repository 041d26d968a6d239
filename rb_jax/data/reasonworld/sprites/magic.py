"""A wand, and what its spell turns pumpkins, mushrooms and rocks into."""

from rb_jax.data.reasonworld.canvas import (
    GOLD,
    LEAF,
    STONE,
    WHITE,
    WOOD,
    Canvas,
    dark,
    light,
)
from rb_jax.data.reasonworld.scene import Real, Thing
from rb_jax.data.reasonworld.sprites.common import hue

_CREAM = (248, 234, 208)


def wand(c: Canvas, t: Thing) -> None:
    """A wand whose star is at (x, y), its stick slanting away by `level` (-1 left, 1 right)."""
    c.line([(t.x, t.y), (t.x + t.level * 0.13, t.y - 0.17)], 0.03, dark(hue(t), 0.1))
    c.haze(t.x, t.y, 0.13, 0.13, (255, 240, 160, 190))
    r = 0.07
    for pts in (
        ((0, -1), (0.3, 0), (-0.3, 0)),
        ((-0.95, -0.32), (0.2, -0.2), (0, 0.35)),
        ((0.95, -0.32), (-0.2, -0.2), (0, 0.35)),
        ((0.6, 0.8), (0.3, -0.2), (-0.2, 0.3)),
        ((-0.6, 0.8), (-0.3, -0.2), (0.2, 0.3)),
    ):
        c.poly([(t.x + a * r, t.y + b * r) for a, b in pts], (255, 206, 70))


def enchanted(c: Canvas, t: Thing) -> None:
    """A pumpkin, mushroom or rock on (x, y); `state` begins with "magic-" once transformed."""
    c.shadow(t.x, t.y, t.w * 0.48)
    _ENCHANTED[t.state](c, t.x, t.y, t.w)


def _pumpkin(c: Canvas, x: Real, y: Real, w: Real) -> None:
    tone = (240, 140, 54)
    for dx, fill in ((-0.3, dark(tone, 0.12)), (0.3, dark(tone, 0.24)), (0.0, tone)):
        c.oval(x + dx * w, y - w * 0.36, w * 0.26, w * 0.35, fill)
    c.oval(x - 0.06 * w, y - w * 0.46, w * 0.08, w * 0.14, light(tone, 0.3))
    c.box(x, y - w * 0.66, w * 0.12, w * 0.18, dark(LEAF, 0.25), r=0.008)


def _coach(c: Canvas, x: Real, y: Real, w: Real) -> None:
    c.oval(x, y - w * 0.56, w * 0.54, w * 0.42, dark(GOLD, 0.2))
    c.oval(x - w * 0.03, y - w * 0.58, w * 0.48, w * 0.37, GOLD)
    c.box(x, y - w * 0.44, w * 0.5, w * 0.34, (122, 96, 170), r=0.014)
    c.box(x, y - w * 0.44, w * 0.06, w * 0.34, GOLD)
    c.poly(
        [
            (x - 0.14 * w, y - w * 0.94),
            (x - 0.2 * w, y - w * 1.14),
            (x, y - w * 1.02),
            (x + 0.2 * w, y - w * 1.14),
            (x + 0.14 * w, y - w * 0.94),
        ],
        (255, 222, 120),
    )
    for dx in (-0.36, 0.36):
        c.oval(x + dx * w, y - w * 0.17, w * 0.18, w * 0.18, dark(WOOD, 0.3))
        c.oval(x + dx * w, y - w * 0.17, w * 0.09, w * 0.09, GOLD)


def _mushroom(c: Canvas, x: Real, y: Real, w: Real) -> None:
    c.box(x, y, w * 0.34, w * 0.5, dark(_CREAM, 0.1), r=w * 0.1)
    c.box(x - w * 0.04, y, w * 0.22, w * 0.5, _CREAM, r=w * 0.08)
    c.pie(x, y - w * 0.36, w * 0.5, w * 0.44, (180, 360), (214, 76, 72))
    for dx, dy, r in ((-0.26, 0.5, 0.08), (0.04, 0.64, 0.1), (0.28, 0.48, 0.07)):
        c.oval(x + dx * w, y - dy * w, r * w, r * w, WHITE)


def _mushroom_house(c: Canvas, x: Real, y: Real, w: Real) -> None:
    c.box(x, y, w * 0.78, w * 0.62, dark(_CREAM, 0.1), r=w * 0.1)
    c.box(x - w * 0.06, y, w * 0.62, w * 0.62, _CREAM, r=w * 0.08)
    c.box(x - w * 0.14, y, w * 0.24, w * 0.38, dark(WOOD, 0.1), r=w * 0.1)
    c.box(x + w * 0.2, y - w * 0.2, w * 0.2, w * 0.2, (255, 214, 104), r=0.008)
    c.box(x + w * 0.34, y - w * 0.8, w * 0.14, w * 0.34, STONE)
    c.pie(x, y - w * 0.52, w * 0.62, w * 0.6, (180, 360), (214, 76, 72))
    for dx, dy, r in ((-0.34, 0.68, 0.1), (0.02, 0.92, 0.11), (0.34, 0.66, 0.09)):
        c.oval(x + dx * w, y - dy * w, r * w, r * w, WHITE)


def _rock(c: Canvas, x: Real, y: Real, w: Real) -> None:
    pts = ((-0.5, 0.0), (-0.44, 0.34), (-0.14, 0.6), (0.24, 0.54), (0.5, 0.22), (0.48, 0.0))
    c.poly([(x + a * w, y - b * w) for a, b in pts], dark(STONE, 0.22))
    pts = ((-0.5, 0.0), (-0.44, 0.34), (-0.14, 0.6), (0.1, 0.5), (0.14, 0.2), (0.04, 0.0))
    c.poly([(x + a * w, y - b * w) for a, b in pts], STONE)
    pts = ((-0.44, 0.34), (-0.14, 0.6), (0.1, 0.5), (-0.06, 0.36))
    c.poly([(x + a * w, y - b * w) for a, b in pts], light(STONE, 0.35))


def _castle(c: Canvas, x: Real, y: Real, w: Real) -> None:
    c.box(x, y, w * 0.7, w * 0.56, STONE)
    for dx in (-0.42, 0.42):
        tone = light(STONE, 0.2) if dx < 0 else dark(STONE, 0.14)
        c.box(x + dx * w, y, w * 0.3, w * 0.84, tone)
        c.poly(
            [
                (x + (dx - 0.2) * w, y - w * 0.82),
                (x + (dx + 0.2) * w, y - w * 0.82),
                (x + dx * w, y - w * 1.2),
            ],
            (132, 98, 176),
        )
    for dx in (-0.16, 0.0, 0.16):
        c.box(x + dx * w, y - w * 0.52, w * 0.1, w * 0.14, STONE)
    c.box(x, y, w * 0.24, w * 0.34, dark(STONE, 0.55), r=w * 0.08)


_ENCHANTED = {
    "pumpkin": _pumpkin,
    "mushroom": _mushroom,
    "rock": _rock,
    "magic-pumpkin": _coach,
    "magic-mushroom": _mushroom_house,
    "magic-rock": _castle,
}


SPRITES = {"wand": wand, "enchanted": enchanted}
