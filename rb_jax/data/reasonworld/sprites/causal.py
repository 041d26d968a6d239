"""Walls that hold water, lamps, dominoes, taps, stacks."""

import math

from rb_jax.data.reasonworld.canvas import (
    STEEL,
    STONE,
    WATER,
    WHITE,
    WOOD,
    Canvas,
    dark,
    light,
    spin,
)
from rb_jax.data.reasonworld.scene import Real, Thing
from rb_jax.data.reasonworld.sprites.common import hue


def water(c: Canvas, t: Thing) -> None:
    """A body of water standing on (x, y), `w` wide and `h` deep."""
    if t.h <= 0.02:
        return
    c.box(t.x, t.y, t.w, t.h, dark(WATER, 0.06))
    c.box(t.x, t.y, t.w, t.h * 0.45, dark(WATER, 0.18))
    c.box(t.x, t.y - t.h + 0.03, t.w, 0.03, light(WATER, 0.5))


def barrier(c: Canvas, t: Thing) -> None:
    """A wall on (x, y); `state` stone, wood (planks with a cross-beam) or gone."""
    if t.state == "gone":
        for dx, dy, w in ((-0.05, 0.03, 0.1), (0.045, 0.015, 0.08)):
            c.box(t.x + dx, t.y + dy, w, 0.035, dark(WOOD, 0.1), r=0.008)
        return
    left, top = t.x - t.w / 2, t.y - t.h
    if t.state == "wood":
        c.box(t.x, t.y + 0.02, t.w, t.h + 0.02, dark(WOOD, 0.25), r=0.008)
        c.box(t.x - t.w * 0.12, t.y + 0.02, t.w * 0.68, t.h + 0.02, light(WOOD, 0.12), r=0.008)
        for dy in (0.2, 0.7):
            c.box(t.x, t.y - t.h * dy, t.w * 1.25, 0.05, dark(WOOD, 0.38), r=0.008)
        return
    c.box(t.x, t.y + 0.02, t.w, t.h + 0.02, dark(STONE, 0.3), r=0.012)
    rows = 5
    for k in range(rows):
        y, shift = top + (k + 1) * t.h / rows, (k % 2) * t.w * 0.3
        c.box(
            left + t.w * 0.3 - shift * 0.3, y, t.w * 0.46 - shift * 0.2, t.h / rows - 0.014, STONE
        )
        c.box(
            left + t.w * 0.78 - shift * 0.2, y, t.w * 0.38, t.h / rows - 0.014, light(STONE, 0.18)
        )


def toy_boat(c: Canvas, t: Thing) -> None:
    hull = [(-0.5, 0.36), (0.5, 0.36), (0.3, 0.0), (-0.3, 0.0)]
    c.poly(
        [
            (t.x - 0.006, t.y - t.w),
            (t.x - 0.006, t.y - t.w * 0.4),
            (t.x + t.w * 0.4, t.y - t.w * 0.4),
        ],
        WHITE,
    )
    c.poly(
        [
            (t.x - 0.02, t.y - t.w * 0.86),
            (t.x - 0.02, t.y - t.w * 0.4),
            (t.x - t.w * 0.34, t.y - t.w * 0.4),
        ],
        light(hue(t), 0.4),
    )
    c.poly([(t.x + a * t.w, t.y - b * t.w) for a, b in hull], hue(t))


def lamp(c: Canvas, t: Thing) -> None:
    """A pendant lamp whose shade's rim is at (x, y); `state` on or off."""
    tone, on = hue(t), t.state == "on"
    if on:
        for spread, alpha in ((0.105, 80), (0.075, 80)):
            c.poly(
                [
                    (t.x - t.w * 0.42, t.y),
                    (t.x + t.w * 0.42, t.y),
                    (t.x + spread, 0.82),
                    (t.x - spread, 0.82),
                ],
                (255, 238, 160, alpha),
            )
        c.haze(t.x, 0.82, 0.12, 0.045, (255, 244, 190, 200))
        c.haze(t.x, t.y, 0.115, 0.115, (255, 236, 150, 210))
    c.box(t.x, t.y - t.h, 0.018, t.y - t.h + 0.02, STEEL)
    c.oval(t.x, t.y, t.w * 0.22, t.w * 0.24, (255, 242, 170) if on else (126, 128, 146))
    shade = [(-0.2, 1.0), (0.2, 1.0), (0.5, 0.0), (-0.5, 0.0)]
    main, side = (light(tone, 0.25), tone) if on else (dark(tone, 0.15), dark(tone, 0.35))
    c.poly([(t.x + a * t.w, t.y - b * t.h) for a, b in shade], side)
    c.poly(
        [(t.x + a * t.w, t.y - b * t.h) for a, b in ((-0.2, 1), (0.06, 1), (0.2, 0), (-0.5, 0))],
        main,
    )


def domino(c: Canvas, t: Thing) -> None:
    """A tile on (x, y) turned `level` degrees about its lower corner on that side."""
    tone = hue(t)
    pivot = (t.x + math.copysign(t.w / 2, t.level) if t.level else t.x, t.y)
    if not t.level:
        c.shadow(t.x, t.y, t.w * 0.8)

    def bar(x0: Real, x1: Real, y0: Real, y1: Real, fill: tuple[int, ...]) -> None:
        xs, ys = (t.x + x0 * t.w, t.x + x1 * t.w), (t.y - y0 * t.h, t.y - y1 * t.h)
        corners = [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])]
        c.poly(spin(corners, pivot, t.level), fill)

    bar(-0.5, 0.5, 0.0, 1.0, dark(tone, 0.3))
    bar(-0.5, 0.22, 0.0, 1.0, tone)
    bar(-0.5, 0.5, 0.46, 0.56, WHITE)


def tap(c: Canvas, t: Thing) -> None:
    """A spout on a rail; its mouth is at (x, y), `h` below the rail. `state` shut or open."""
    rail = t.y - t.h
    c.box(t.x, t.y, 0.07, t.h, dark(STEEL, 0.1), r=0.01)
    c.box(t.x - 0.012, t.y, 0.03, t.h, light(STEEL, 0.4))
    c.box(t.x, t.y, 0.095, 0.03, STEEL, r=0.01)
    c.box(t.x, rail + 0.01, 0.035, 0.07, dark(STEEL, 0.2))
    c.box(t.x, rail - 0.05, 0.16, 0.05, hue(t), r=0.02)


def rail(c: Canvas, t: Thing) -> None:
    """A water pipe right across the picture."""
    c.box(0.5, t.y + 0.022, 1.0, 0.05, dark(STEEL, 0.15))
    c.box(0.5, t.y + 0.006, 1.0, 0.024, light(STEEL, 0.4))


def glass(c: Canvas, t: Thing) -> None:
    """A tumbler on (x, y), `level` full."""
    c.shadow(t.x, t.y, t.w * 0.46)
    c.box(t.x, t.y, t.w, t.h, (232, 244, 248, 140), r=0.014)
    if t.level > 0:
        depth = (t.h - 0.03) * t.level
        c.box(t.x, t.y - 0.02, t.w - 0.03, depth, (76, 160, 212), r=0.008)
        c.box(t.x, t.y - depth + 0.012, t.w - 0.03, 0.026, light(WATER, 0.6))
    c.box(t.x, t.y, t.w, 0.03, (190, 210, 226), r=0.012)
    for side in (-1, 1):
        c.box(
            t.x + side * (t.w / 2 - 0.009),
            t.y,
            0.02,
            t.h,
            (190, 210, 226) if side > 0 else (214, 230, 240),
            r=0.008,
        )


def teddy(c: Canvas, t: Thing) -> None:
    """A toy bear sitting on (x, y)."""
    fur, x, y, w = (196, 142, 96), t.x, t.y, t.w
    for side in (-1, 1):
        c.oval(x + side * w * 0.26, y - w * 0.98, w * 0.14, w * 0.14, dark(fur, 0.12))
        c.oval(x + side * w * 0.34, y - w * 0.12, w * 0.2, w * 0.13, dark(fur, 0.12))
    c.oval(x, y - w * 0.3, w * 0.34, w * 0.3, fur)
    c.oval(x, y - w * 0.76, w * 0.34, w * 0.3, light(fur, 0.08))
    c.oval(x, y - w * 0.68, w * 0.17, w * 0.13, light(fur, 0.55))
    for side in (-1, 1):
        c.oval(x + side * w * 0.14, y - w * 0.84, w * 0.045, w * 0.05, (58, 44, 50))
    c.oval(x, y - w * 0.72, w * 0.05, w * 0.04, (58, 44, 50))
    c.oval(x, y - w * 0.28, w * 0.17, w * 0.17, light(fur, 0.4))


def block(c: Canvas, t: Thing) -> None:
    """A toy block on (x, y) with a disc or a star on it."""
    tone = hue(t)
    c.box(t.x, t.y, t.w, t.h, dark(tone, 0.26), r=0.012)
    c.box(t.x - t.w * 0.04, t.y - t.h * 0.1, t.w * 0.92, t.h * 0.9, tone, r=0.012)
    c.oval(t.x - t.w * 0.04, t.y - t.h * 0.55, t.h * 0.24, t.h * 0.24, light(tone, 0.6))


SPRITES = {
    "water": water,
    "barrier": barrier,
    "boat": toy_boat,
    "lamp": lamp,
    "domino": domino,
    "tap": tap,
    "rail": rail,
    "glass": glass,
    "teddy": teddy,
    "block": block,
}
