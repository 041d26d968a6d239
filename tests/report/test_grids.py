"""Grids of edits: what is drawn where, and what is refused."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from rb_jax.report.grids import GridRow, edit_grid, upscale, wrap

RED, LIME, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat(color, side=16):
    return np.full((side, side, 3), color, np.uint8)


def example(**changes):
    pictures = {"source": flat(RED), "edit": flat(LIME), "truth": flat(BLUE)}
    values = {"instruction": "What if it rained?", "pictures": pictures, "category": "causal"}
    return GridRow(**(values | changes))


def colored(image, color):
    """Boolean [H, W]: where the image has exactly this colour."""
    return (np.asarray(image) == np.array(color)).all(-1)


def test_columns_stand_in_the_order_asked_for_and_fill_their_size():
    size = 48
    grid = edit_grid([example()], columns=("truth", "source", "edit"), size=size)
    middles = []
    for color in (BLUE, RED, LIME):
        where = colored(grid, color)
        # Rounded corners take a few pixels away.
        assert size * size * 0.95 < where.sum() <= size * size
        middles.append(np.argwhere(where).mean(0)[1])
    assert middles == sorted(middles)


def test_each_row_has_its_own_pictures_from_top_to_bottom():
    rows = [example(pictures={"source": flat(color)}) for color in (RED, LIME, BLUE)]
    grid = edit_grid(rows, columns=("source",), size=64)
    tops = [np.argwhere(colored(grid, color))[:, 0].min() for color in (RED, LIME, BLUE)]
    assert np.diff(tops)[0] == np.diff(tops)[1] > 64


def test_score_marks_change_only_the_caption():
    plain, right, wrong = (
        np.asarray(edit_grid([example(aligned=aligned)], size=128))
        for aligned in (None, True, False)
    )
    for marked in (right, wrong):
        changed = np.argwhere((marked != plain).any(-1))
        assert len(changed) and changed[:, 1].max() < np.argwhere(colored(plain, RED))[:, 1].min()
    assert (right != wrong).any()


@pytest.mark.parametrize("instruction", ["", "word " * 200, "unbroken" * 60])
def test_no_instruction_leaves_its_box(instruction):
    """Even a caption far too long stays left of the pictures and inside the card."""
    grid = np.asarray(edit_grid([example(instruction=instruction, psnr=20.0)], size=32))
    empty = np.asarray(edit_grid([example(instruction="", psnr=20.0)], size=32))
    changed = np.argwhere((grid != empty).any(-1))
    if instruction:
        assert changed[:, 1].max() < np.argwhere(colored(grid, RED))[:, 1].min()
        assert changed[:, 0].max() < len(grid) - 40


def test_wrapped_lines_fit_and_lose_nothing():
    font, text = ImageFont.load_default(size=14), "a lamp nobody had switched off " + "x" * 90
    lines = wrap(text, font, 100)
    assert all(font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("", font, 100) == []


def test_upscale_keeps_the_shape_of_the_picture():
    assert upscale(np.zeros((64, 32, 3), np.uint8), 192).size == (96, 192)
    same = Image.new("RGB", (20, 20), RED)
    assert np.array_equal(np.asarray(upscale(same, 20)), flat(RED, 20))


def test_a_missing_picture_leaves_a_frame():
    grid = edit_grid([example(pictures={"source": flat(RED)})], size=48)
    assert grid.size == edit_grid([example()], size=48).size
    assert not colored(grid, LIME).any()


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)], ids=["dtype", "shape"]
)
def test_wrong_pictures_are_refused_by_what_they_are(picture):
    with pytest.raises(ValueError, match=r"uint8 \[S, S, 3\], got .*8"):
        edit_grid([example(pictures={"edit": picture})])


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        edit_grid([])
    with pytest.raises(ValueError, match="one column"):
        edit_grid([example()], columns=())
