"""The renderer: backdrops, and a scene's things painted from back to front.

A picture is painted at several times its size with Pillow and box-filtered down.
"""

import functools

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rb_jax.data.reasonworld.canvas import Canvas, Color, light, mix
from rb_jax.data.reasonworld.scene import Scene
from rb_jax.data.reasonworld.sprites import SPRITES

# backdrop: (top, bottom) of the sky or wall, (top, bottom) of the ground or table, far hill
OUTDOORS = ("meadow", "sands", "dusk", "coast")
INDOORS = ("cream", "mint", "rose", "slate")
_BACKDROPS: dict[str, tuple[Color, Color, Color, Color, Color]] = {
    "meadow": ((158, 208, 236), (226, 242, 240), (160, 202, 124), (124, 176, 104), (184, 218, 158)),
    "sands": ((246, 206, 160), (254, 240, 214), (236, 204, 150), (214, 174, 118), (240, 214, 170)),
    "dusk": ((142, 132, 192), (246, 200, 186), (122, 138, 132), (92, 108, 112), (168, 150, 178)),
    "coast": ((136, 204, 208), (236, 246, 230), (206, 204, 160), (172, 176, 134), (142, 194, 198)),
    "cream": ((250, 236, 210), (244, 224, 192), (196, 146, 104), (168, 118, 82), (226, 198, 162)),
    "mint": ((206, 232, 216), (186, 218, 202), (204, 160, 118), (174, 128, 92), (160, 196, 180)),
    "rose": ((246, 216, 210), (236, 198, 194), (186, 136, 112), (158, 108, 90), (216, 172, 168)),
    "slate": ((196, 210, 226), (174, 190, 212), (172, 138, 116), (144, 110, 94), (148, 166, 192)),
}
_HORIZON = 0.72


def _gradient(image: np.ndarray, rows: slice, top: Color, bottom: Color) -> None:
    n = len(image[rows])
    t = np.linspace(0, 1, max(n, 1))[:, None]
    image[rows] = (np.array(top) * (1 - t) + np.array(bottom) * t)[:, None, :]


@functools.lru_cache(maxsize=64)
def _backdrop(name: str, side: int) -> Image.Image:
    top, bottom, ground, near, far = _BACKDROPS[name]
    pixels = np.zeros((side, side, 3))
    edge = round(_HORIZON * side)
    _gradient(pixels, slice(0, edge), top, bottom)
    _gradient(pixels, slice(edge, side), ground, near)
    image = Image.fromarray(pixels.round().astype(np.uint8))
    canvas = Canvas(image)
    if name in OUTDOORS:
        canvas.oval(0.22, _HORIZON + 0.16, 0.55, 0.26, far)
        canvas.oval(0.86, _HORIZON + 0.16, 0.48, 0.22, mix(far, ground, 0.35))
        image.paste(Image.fromarray(pixels.round().astype(np.uint8)[edge:]), (0, edge))
    else:  # a skirting and the table's lit edge
        canvas.box(0.5, _HORIZON, 1.0, 0.025, far)
        canvas.box(0.5, _HORIZON + 0.018, 1.0, 0.018, light(ground, 0.35))
    return image


def supersampling(size: int) -> int:
    """How many times larger a picture of this size is painted."""
    return 4 if size <= 128 else 3 if size <= 256 else 2


def render(scene: Scene, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Paints a scene at `size` pixels a side; KeyError for a kind nobody can draw."""
    factor = supersampling(size)
    canvas = Canvas(_backdrop(scene.backdrop, size * factor).copy())
    for thing in scene.things:
        SPRITES[thing.kind](canvas, thing)
    return np.asarray(canvas.image.reduce(factor))
