"""The palette and a canvas in unit coordinates.

Light falls from the upper left; a shape is its colour, one lighter and one darker tone, never an
outline.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from rb_jax.data.reasonworld.scene import Real

Color = tuple[int, ...]  # RGB, or RGBA with alpha 0..255
Point = tuple[Real, Real]

HUES: dict[str, Color] = {
    "red": (219, 79, 74),
    "orange": (239, 144, 62),
    "yellow": (246, 203, 86),
    "green": (86, 163, 102),
    "blue": (66, 126, 196),
    "purple": (140, 98, 180),
}
INK: Color = (58, 52, 70)
WHITE: Color = (252, 250, 244)
WOOD: Color = (178, 122, 78)
STONE: Color = (150, 154, 166)
STEEL: Color = (96, 102, 120)
WATER: Color = (92, 174, 214)
LEAF: Color = (104, 168, 92)
PINE: Color = (52, 118, 96)
SNOW: Color = (244, 248, 252)
CHAR: Color = (66, 58, 62)
GOLD: Color = (250, 206, 92)


def mix(a: Color, b: Color, t: Real) -> Color:
    """Colour between a (t = 0) and b (t = 1)."""
    return tuple(round(x + (y - x) * t) for x, y in zip(a[:3], b[:3], strict=True))


def light(color: Color, t: Real = 0.28) -> Color:
    """A tone towards warm white."""
    return mix(color, (255, 250, 236), t)


def dark(color: Color, t: Real = 0.22) -> Color:
    """A tone towards the shadows' violet."""
    return mix(color, (48, 34, 78), t)


def clear(color: Color, alpha: int) -> Color:
    """The colour with an alpha of 0..255."""
    return (*color[:3], alpha)


def spin(points: Sequence[Point], center: Point, degrees: Real) -> list[Point]:
    """Points turned about a centre, clockwise as seen."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cx, cy = center
    return [(cx + (x - cx) * c - (y - cy) * s, cy + (x - cx) * s + (y - cy) * c) for x, y in points]


class Canvas:
    """A picture being painted; positions and lengths are fractions of its side."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.side = image.width
        self._draw = ImageDraw.Draw(image, "RGBA")

    def _px(self, points: Sequence[Point]) -> list[Point]:
        side = self.side
        return [(x * side, y * side) for x, y in points]

    def poly(self, points: Sequence[Point], fill: Color) -> None:
        """A filled polygon."""
        self._draw.polygon(self._px(points), fill=fill)

    def oval(self, x: Real, y: Real, rx: Real, ry: Real, fill: Color) -> None:
        """A filled ellipse about (x, y)."""
        self._draw.ellipse(self._px([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def pie(self, x: Real, y: Real, rx: Real, ry: Real, arc: Point, fill: Color) -> None:
        """A slice of an ellipse, degrees clockwise from three o'clock."""
        box = self._px([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.pieslice(box, arc[0], arc[1], fill=fill)

    def box(self, x: Real, y: Real, w: Real, h: Real, fill: Color, r: Real = 0.0) -> None:
        """A rectangle standing on (x, y), with corners rounded by r."""
        corners = self._px([(x - w / 2, y - h), (x + w / 2, y)])
        (x0, y0), (x1, y1) = corners
        if x1 - x0 < 1 or y1 - y0 < 1:
            return
        if r > 0:
            self._draw.rounded_rectangle(corners, radius=r * self.side, fill=fill)
        else:
            self._draw.rectangle([(x0, y0), (x1 - 1, y1 - 1)], fill=fill)

    def line(self, points: Sequence[Point], width: Real, fill: Color) -> None:
        """A stroke with round ends and joints (opaque colours only)."""
        px = self._px(points)
        self._draw.line(px, fill=fill, width=max(1, round(width * self.side)))
        r = width * self.side / 2
        for x, y in px:
            self._draw.ellipse([(x - r, y - r), (x + r, y + r)], fill=fill)

    def haze(self, x: Real, y: Real, rx: Real, ry: Real, fill: Color) -> None:
        """A soft ellipse fading outwards; its alpha is reached at the centre."""
        w, h = round(2 * rx * self.side), round(2 * ry * self.side)
        if w < 2 or h < 2:
            return
        mask = _soft_oval(w, h, fill[3] if len(fill) == 4 else 255)
        corner = (round(x * self.side - w / 2), round(y * self.side - h / 2))
        self.image.paste(fill[:3], (*corner, corner[0] + w, corner[1] + h), mask)

    def shadow(self, x: Real, y: Real, rx: Real) -> None:
        """The contact shadow of something rx wide either way that stands on (x, y)."""
        self.haze(x + rx * 0.12, y, rx * 1.25, max(0.02, rx * 0.26), (44, 34, 70, 120))


@functools.lru_cache(maxsize=1024)
def _soft_oval(w: int, h: int, alpha: int) -> Image.Image:
    y, x = np.mgrid[0:h, 0:w]
    d2 = ((x + 0.5) / w * 2 - 1) ** 2 + ((y + 0.5) / h * 2 - 1) ** 2
    fade = np.clip(1 - d2, 0, 1)
    return Image.fromarray((alpha * fade**1.5).astype(np.uint8))
