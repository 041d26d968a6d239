"""Things that several families share, and the distractors."""

from rb_jax.data.reasonworld.canvas import (
    GOLD,
    HUES,
    INK,
    LEAF,
    STONE,
    WHITE,
    WOOD,
    Canvas,
    Color,
    clear,
    dark,
    light,
    mix,
    spin,
)
from rb_jax.data.reasonworld.scene import Real, Thing


def hue(thing: Thing, default: Color = WOOD) -> Color:
    """The RGB of a thing's colour name."""
    return HUES.get(thing.color, default)


def sphere(c: Canvas, x: Real, y: Real, r: Real, color: Color) -> None:
    """A shaded ball about (x, y)."""
    c.oval(x, y, r, r, dark(color))
    c.oval(x - r * 0.07, y - r * 0.08, r * 0.9, r * 0.89, color)
    c.oval(x - r * 0.3, y - r * 0.34, r * 0.42, r * 0.38, light(color, 0.3))
    c.oval(x - r * 0.38, y - r * 0.44, r * 0.17, r * 0.14, light(color, 0.75))


def slab(c: Canvas, x: Real, y: Real, w: Real, h: Real, angle: Real, color: Color) -> None:
    """A bar about its middle (x, y), turned by an angle, lit from above."""
    for half, tone in ((1.0, dark(color)), (0.4, color)):
        top, bottom = y - h / 2, y - h / 2 + h * (1.0 if half == 1.0 else 0.62)
        corners = [(x - w / 2, top), (x + w / 2, top), (x + w / 2, bottom), (x - w / 2, bottom)]
        c.poly(spin(corners, (x, y), angle), tone)


def ball(c: Canvas, t: Thing) -> None:
    if not t.state:
        c.shadow(t.x, t.y, t.w * 0.42)
    sphere(c, t.x, t.y - t.w / 2, t.w / 2, hue(t))


def crate(c: Canvas, t: Thing) -> None:
    """A box; `level` is its tilt about its foot, in degrees."""
    color, foot = hue(t), (t.x, t.y)

    def face(x0: Real, x1: Real, y0: Real, y1: Real, tone: Color) -> None:
        xs = (t.x + (x0 - 0.5) * t.w, t.x + (x1 - 0.5) * t.w)
        ys = (t.y - y0 * t.h, t.y - y1 * t.h)
        square = [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])]
        c.poly(spin(square, foot, t.level), tone)

    face(0.0, 1.0, 0.0, 1.0, dark(color, 0.3))
    face(0.0, 0.93, 0.07, 1.0, color)
    face(0.16, 0.8, 0.2, 0.84, dark(color, 0.16))
    face(0.16, 0.8, 0.44, 0.6, light(color, 0.3))


def cloud(c: Canvas, t: Thing) -> None:
    tone = clear(WHITE if t.state != "grey" else (150, 160, 184), 255)
    shade = mix(tone, (150, 170, 205), 0.28)
    for low, fill in ((0.08, shade), (0.0, tone)):
        y = t.y + low * t.h
        c.oval(t.x - t.w * 0.24, y, t.w * 0.26, t.h * 0.36, fill)
        c.oval(t.x + t.w * 0.26, y + t.h * 0.02, t.w * 0.24, t.h * 0.34, fill)
        c.oval(t.x, y - t.h * 0.16, t.w * 0.3, t.h * 0.5, fill)


def bush(c: Canvas, t: Thing) -> None:
    tone = mix(LEAF, (60, 110, 96), 0.35)
    for dx, r, fill in (
        (-0.28, 0.3, dark(tone, 0.1)),
        (0.28, 0.27, dark(tone, 0.1)),
        (0, 0.4, tone),
    ):
        c.pie(t.x + dx * t.w, t.y, r * t.w, r * t.w * 1.1, (180, 360), fill)
    c.oval(t.x - 0.1 * t.w, t.y - 0.24 * t.w, 0.13 * t.w, 0.1 * t.w, light(tone, 0.2))


def fence(c: Canvas, t: Thing) -> None:
    tone = light(WOOD, 0.45)
    for dy in (0.3, 0.65):
        c.box(t.x, t.y - dy * t.h, t.w * 1.1, t.h * 0.16, dark(tone, 0.12))
    for dx in (-0.36, 0.0, 0.36):
        c.box(t.x + dx * t.w, t.y, t.w * 0.16, t.h, tone, r=0.008)


def flowers(c: Canvas, t: Thing) -> None:
    for dx, h in ((-0.3, 0.75), (0.05, 1.0), (0.36, 0.7)):
        x, y = t.x + dx * t.w, t.y - h * t.h * 0.8
        c.line([(x, t.y), (x, y)], 0.012, dark(LEAF, 0.15))
        c.oval(x, y, 0.03, 0.03, hue(t))
        c.oval(x, y, 0.012, 0.012, GOLD if t.color != "yellow" else WHITE)


def picture(c: Canvas, t: Thing) -> None:
    c.box(t.x + 0.008, t.y + t.h / 2 + 0.012, t.w, t.h, (50, 40, 70, 40), r=0.008)
    c.box(t.x, t.y + t.h / 2, t.w, t.h, light(WOOD, 0.15), r=0.008)
    c.box(t.x, t.y + t.h / 2 - 0.02, t.w - 0.04, t.h - 0.04, light(hue(t), 0.62))
    base = t.y + t.h / 2 - 0.02
    left, right = t.x - t.w / 2 + 0.02, t.x + t.w / 2 - 0.02
    c.poly([(left, base), (t.x - 0.01, base - t.h * 0.4), (right - 0.02, base)], light(hue(t), 0.2))
    c.poly([(t.x - 0.02, base), (t.x + 0.03, base - t.h * 0.28), (right, base)], hue(t))


def clock(c: Canvas, t: Thing) -> None:
    r = t.h * 0.5
    c.oval(t.x + 0.008, t.y + 0.012, r, r, (50, 40, 70, 40))
    c.oval(t.x, t.y, r, r, hue(t))
    c.oval(t.x, t.y, r * 0.78, r * 0.78, WHITE)
    c.line([(t.x, t.y), (t.x, t.y - r * 0.5)], 0.012, INK)
    c.line([(t.x, t.y), (t.x + r * 0.36, t.y + r * 0.12)], 0.012, INK)


def bunting(c: Canvas, t: Thing) -> None:
    names = list(HUES)
    first = names.index(t.color) if t.color in names else 0
    for k in range(3):
        x, y = t.x + (k - 1) * t.w * 0.42, t.y - 0.06 + (0.014 if k == 1 else 0.0)
        tone = light(HUES[names[(first + 2 * k) % len(names)]], 0.35)
        c.poly([(x - 0.035, y), (x + 0.035, y), (x, y + 0.08)], tone)
    c.line(
        [(t.x - t.w * 0.7, t.y - 0.07), (t.x, t.y - 0.046), (t.x + t.w * 0.7, t.y - 0.07)],
        0.01,
        dark(WOOD, 0.2),
    )


def mug(c: Canvas, t: Thing) -> None:
    tone = light(hue(t), 0.25)
    c.shadow(t.x, t.y, t.w * 0.4)
    c.oval(t.x + t.w * 0.36, t.y - t.h * 0.45, t.w * 0.2, t.h * 0.26, dark(tone))
    c.box(t.x, t.y, t.w * 0.72, t.h * 0.85, dark(tone, 0.14), r=0.016)
    c.box(t.x - t.w * 0.07, t.y, t.w * 0.56, t.h * 0.85, tone, r=0.016)
    c.oval(t.x, t.y - t.h * 0.83, t.w * 0.36, t.h * 0.12, light(tone, 0.5))


def books(c: Canvas, t: Thing) -> None:
    names = list(HUES)
    first = names.index(t.color) if t.color in names else 0
    c.shadow(t.x, t.y, t.w * 0.5)
    for k, w in enumerate((1.0, 0.86, 0.94)):
        tone = mix(HUES[names[(first + 2 * k) % len(names)]], STONE, 0.3)
        y = t.y - k * t.h * 0.3
        c.box(t.x + (0.01 if k == 1 else 0), y, t.w * w, t.h * 0.29, tone, r=0.008)
        c.box(t.x + t.w * 0.26, y - 0.006, t.w * 0.2, t.h * 0.29 - 0.012, WHITE)


def cactus(c: Canvas, t: Thing) -> None:
    c.shadow(t.x, t.y, t.w * 0.35)
    c.box(t.x, t.y - t.h * 0.3, t.w * 0.4, t.h * 0.9, dark(LEAF, 0.25), r=0.022)
    c.box(t.x - t.w * 0.05, t.y - t.h * 0.3, t.w * 0.24, t.h * 0.86, dark(LEAF, 0.1), r=0.018)
    top, base = t.y - t.h * 0.42, t.y
    c.poly(
        [
            (t.x - t.w * 0.34, top),
            (t.x + t.w * 0.34, top),
            (t.x + t.w * 0.24, base),
            (t.x - t.w * 0.24, base),
        ],
        light(hue(t), 0.2),
    )
    c.box(t.x, top + 0.012, t.w * 0.76, 0.026, hue(t), r=0.006)


def puddle(c: Canvas, t: Thing) -> None:
    """A flat pool around (x, y), `w` wide."""
    tone = hue(t, (112, 190, 226))
    c.oval(t.x, t.y, t.w / 2, t.h / 2, dark(tone, 0.1))
    c.oval(t.x - t.w * 0.01, t.y - t.h * 0.06, t.w * 0.47, t.h * 0.42, tone)
    c.oval(t.x - t.w * 0.14, t.y - t.h * 0.14, t.w * 0.2, t.h * 0.12, light(tone, 0.5))


def sun(c: Canvas, t: Thing) -> None:
    c.haze(t.x, t.y, t.w * 1.05, t.w * 1.05, (255, 238, 170, 190))
    c.oval(t.x, t.y, t.w / 2, t.w / 2, (255, 214, 96))
    c.oval(t.x - t.w * 0.04, t.y - t.w * 0.05, t.w * 0.42, t.w * 0.42, (255, 228, 132))


SPRITES = {
    "ball": ball,
    "crate": crate,
    "cloud": cloud,
    "bush": bush,
    "fence": fence,
    "flowers": flowers,
    "picture": picture,
    "clock": clock,
    "bunting": bunting,
    "mug": mug,
    "books": books,
    "cactus": cactus,
    "puddle": puddle,
    "sun": sun,
}
