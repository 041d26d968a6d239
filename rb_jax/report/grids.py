"""Grids of edited pictures: one row per example, its instruction beside the pictures."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Picture = np.ndarray | Image.Image
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# One colour a reasoning category, shared by every drawing: legible on white and on near-black.
CATEGORY_COLORS = {
    "physical": "#2f6fde",
    "temporal": "#a16207",
    "causal": "#c2415b",
    "story": "#7c4fd0",
}
OTHER_COLOR = "#64748b"

BACKGROUND, CARD, LINE = "#f6f5f1", "#ffffff", "#e4e1d8"
INK, SOFT, GOOD, BAD = "#20242c", "#7a7f8a", "#1f8a5b", "#c8452f"

MARGIN, GAP, PAD = 20, 12, 14
TEXT_WIDTH, HEADER = 250, 30
SHORTEST = 136  # pixels that a caption needs however small the pictures are
# Shapes are drawn this much larger and shrunk, which is how Pillow gets smooth edges.
SMOOTH = 4


@dataclass(frozen=True)
class GridRow:
    """One edit to show.

    ``pictures`` maps a column's name ("source", "edit", "truth", ...) to uint8 [S, S, 3] or a
    Pillow image. ``aligned`` says whether the edit counts as the right outcome, ``psnr`` is that of
    the edited region in dB; None leaves either out.
    """

    instruction: str
    pictures: Mapping[str, Picture]
    category: str = ""
    aligned: bool | None = None
    psnr: float | None = None


def category_color(category: str) -> str:
    """The colour of a category, grey for one that is not of the four."""
    return CATEGORY_COLORS.get(category, OTHER_COLOR)


def to_image(picture: Picture) -> Image.Image:
    """An RGB image of uint8 [S, S, 3]; ValueError for another dtype or shape."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"a picture is uint8 [S, S, 3], got {array.dtype} {list(array.shape)}")
    return Image.fromarray(array)


def upscale(picture: Picture, size: int) -> Image.Image:
    """The picture with its longer side ``size`` pixels, resampled with Lanczos."""
    image = to_image(picture)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def png_bytes(picture: Picture) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_image(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def edit_grid(
    rows: Sequence[GridRow],
    columns: Sequence[str] = ("source", "edit", "truth"),
    size: int = 192,
) -> Image.Image:
    """Draws the rows as one RGB picture.

    Each row is a card: category, instruction and score on the left, then one picture of ``size`` x
    ``size`` pixels per column. A missing picture leaves an empty frame. ValueError without rows or
    columns, or with a picture that is not uint8 [S, S, 3].
    """
    if not rows or not columns:
        raise ValueError("a grid needs at least one row and one column")
    inner = max(size, SHORTEST)
    card = inner + 2 * PAD
    width = 2 * MARGIN + TEXT_WIDTH + len(columns) * (size + GAP) + 2 * PAD
    height = MARGIN + HEADER + len(rows) * (card + GAP) - GAP + MARGIN
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    left = MARGIN + PAD + TEXT_WIDTH + GAP
    _draw_header(canvas, columns, left, size)
    for index, row in enumerate(rows):
        top = MARGIN + HEADER + index * (card + GAP)
        _rounded(canvas, (MARGIN, top, width - MARGIN, top + card), 10, CARD, LINE)
        _draw_caption(canvas, row, (MARGIN + PAD + 4, top + PAD), inner)
        for number, column in enumerate(columns):
            x, y = left + number * (size + GAP), top + (card - size) // 2
            _draw_picture(canvas, row.pictures.get(column), (x, y), size)
    return canvas


def _draw_header(canvas: Image.Image, columns: Sequence[str], left: int, size: int) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for number, column in enumerate(columns):
        middle = left + number * (size + GAP) + size / 2
        draw.text((middle, MARGIN + HEADER / 2 - 6), column, SOFT, font, anchor="mm")


def _draw_picture(
    canvas: Image.Image, picture: Picture | None, corner: tuple[int, int], size: int
) -> None:
    x, y = corner
    if picture is None:
        _rounded(canvas, (x, y, x + size, y + size), 6, BACKGROUND, LINE)
        return
    image = upscale(picture, size)
    mask = _mask(image.size, 6)
    offset = ((size - image.width) // 2, (size - image.height) // 2)
    canvas.paste(image, (x + offset[0], y + offset[1]), mask)


def _draw_caption(canvas: Image.Image, row: GridRow, corner: tuple[int, int], height: int) -> None:
    """Category on top, instruction below it, score at the foot of the card."""
    draw = ImageDraw.Draw(canvas)
    x, y = corner
    foot = y + height
    if row.category:
        y = _draw_chip(canvas, row.category, (x, y)) + 10
    scored = row.aligned is not None or row.psnr is not None
    lines, font, step = _fit(row.instruction, TEXT_WIDTH - 14, foot - y - (32 if scored else 0))
    for number, line in enumerate(lines):
        draw.text((x, y + number * step), line, INK, font)
    if scored:
        _draw_score(canvas, row, (x, foot - 11))


def _draw_chip(canvas: Image.Image, label: str, corner: tuple[int, int]) -> int:
    """A coloured pill with the category's name; returns the y of its lower edge."""
    x, y = corner
    font = ImageFont.load_default(size=13)
    width = int(font.getlength(label)) + 20
    _rounded(canvas, (x, y, x + width, y + 22), 11, category_color(label), None)
    ImageDraw.Draw(canvas).text((x + width / 2, y + 11), label, CARD, font, anchor="mm")
    return y + 22


def _draw_score(canvas: Image.Image, row: GridRow, middle: tuple[int, int]) -> None:
    """A tick or a cross and the PSNR, vertically centred on ``middle``."""
    x, y = middle
    if row.aligned is not None:
        canvas.paste(GOOD if row.aligned else BAD, (x, y - 10), _mark(20, row.aligned))
        x += 28
    if row.psnr is not None:
        font = ImageFont.load_default(size=14)
        ImageDraw.Draw(canvas).text((x, y), f"{row.psnr:.1f} dB", SOFT, font, anchor="lm")


def _mark(side: int, tick: bool) -> Image.Image:
    """Mask of a disc with a tick or a cross cut out of it."""
    big = Image.new("L", (side * SMOOTH, side * SMOOTH), 0)
    draw, unit = ImageDraw.Draw(big), side * SMOOTH / 20
    draw.ellipse((0, 0, 20 * unit - 1, 20 * unit - 1), fill=255)
    tick_line = [(5.6, 10.4), (8.8, 13.6), (14.6, 6.8)]
    cross_lines = [[(6.6, 6.6), (13.4, 13.4)], [(6.6, 13.4), (13.4, 6.6)]]
    for points in [tick_line] if tick else cross_lines:
        line = [(px * unit, py * unit) for px, py in points]
        draw.line(line, fill=0, width=round(2.2 * unit), joint="curve")
    return big.resize((side, side), Image.Resampling.LANCZOS)


def _fit(text: str, width: int, height: int) -> tuple[list[str], Font, float]:
    """The text in the largest font whose lines fit the box; the smallest one is cut short."""
    for points in (17, 16, 15, 14, 13):
        font = ImageFont.load_default(size=points)
        step = points * 1.35
        lines = wrap(text, font, width)
        if len(lines) * step <= height:
            return lines, font, step
    kept = lines[: max(1, int(height / step))]
    while kept[-1] and font.getlength(kept[-1] + "...") > width:
        kept[-1] = kept[-1][:-1]
    return [*kept[:-1], kept[-1].rstrip() + "..."], font, step


def wrap(text: str, font: Font, width: float | int) -> list[str]:
    """Lines of at most ``width`` pixels, broken at spaces, inside a word only if it is too long."""
    lines, line = [], ""
    for word in text.split():
        while font.getlength(word) > width:
            lengths = range(2, len(word))
            cut = 1 + bisect_right(lengths, width, key=lambda n, w=word: font.getlength(w[:n]))
            if line:
                lines.append(line)
                line = ""
            lines.append(word[:cut])
            word = word[cut:]
        joined = f"{line} {word}".strip()
        if line and font.getlength(joined) > width:
            lines.append(line)
            joined = word
        line = joined
    return [*lines, line] if line else lines


def _mask(size: tuple[int, int], radius: int) -> Image.Image:
    """A smooth mask of a rectangle with rounded corners."""
    width, height = size
    big = Image.new("L", (width * SMOOTH, height * SMOOTH), 0)
    box = (0, 0, width * SMOOTH - 1, height * SMOOTH - 1)
    ImageDraw.Draw(big).rounded_rectangle(box, radius * SMOOTH, fill=255)
    return big.resize(size, Image.Resampling.LANCZOS)


def _rounded(
    canvas: Image.Image, box: tuple[int, int, int, int], radius: int, fill: str, outline: str | None
) -> None:
    """Fills a rectangle with rounded corners, with an outline one pixel wide if it has a colour."""
    left, top, right, bottom = box
    if outline:
        canvas.paste(outline, (left, top), _mask((right - left, bottom - top), radius))
        left, top, right, bottom = left + 1, top + 1, right - 1, bottom - 1
        radius -= 1
    canvas.paste(fill, (left, top), _mask((right - left, bottom - top), radius))
