"""Region proposals on flat drawings and photographs."""

import time

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

from rb_jax.data.inputs.regions import segment


def resized(pixels, size):
    return np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX))


def test_flat_shapes_are_found():
    pixels = np.full((64, 64, 3), (200, 220, 255), np.uint8)
    pixels[40:] = (90, 160, 80)
    pixels[16:36, 8:28] = (220, 40, 40)
    masks, valid = segment(pixels, 16, 8)
    assert valid.tolist() == [True] * 3 + [False] * 5
    assert masks.sum(axis=(1, 2))[:3].tolist() == [135, 96, 25]
    assert masks[2, 4:9, 2:7].all()
    assert not masks[3:].any()


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_photographs_give_several_disjoint_regions(name):
    pixels = resized(getattr(photos, name)(), 128)
    masks, valid = segment(pixels, 32, 16)
    areas = masks.sum(axis=(1, 2))
    assert 3 <= valid.sum() <= 16
    assert masks.sum(axis=0).max() == 1
    assert (areas[valid] >= 2).all() and (np.diff(areas) <= 0).all()
    assert masks.sum() > 0.5 * masks[0].size
    again, _ = segment(pixels.copy(), 32, 16)
    assert np.array_equal(masks, again)


def test_pictures_that_are_not_square():
    wide = np.full((24, 40, 3), (200, 220, 255), np.uint8)
    wide[8:16, 28:36] = (220, 40, 40)
    masks, valid = segment(wide, 6, 3)
    assert masks.shape == (3, 6, 10) and valid.tolist() == [True, True, False]
    assert masks[1].sum() == 4 and masks[1, 2:4, 7:9].all()
    turned, _ = segment(np.ascontiguousarray(wide.swapaxes(0, 1)), 10, 3)
    assert np.array_equal(turned, masks.swapaxes(1, 2))
    with pytest.raises(ValueError, match="do not fill"):
        segment(wide[:, :38], 6, 3)


def test_a_constant_picture_is_one_region():
    masks, valid = segment(np.full((32, 32, 3), 7, np.uint8), 8, 4)
    assert valid.tolist() == [True, False, False, False] and masks[0].all()


def test_noise_leaves_at_least_well_formed_masks():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    masks, valid = segment(noise, 16, 4)
    assert (masks.any(axis=(1, 2)) == valid).all()


def test_a_grid_of_one_cell():
    masks, valid = segment(np.zeros((8, 8, 3), np.uint8), 1, 2)
    assert valid.tolist() == [True, False] and masks[0].all()


def test_the_grid_must_divide_the_side():
    with pytest.raises(ValueError, match="4 rows of square cells do not fill"):
        segment(np.zeros((10, 10, 3), np.uint8), 4, 2)


def test_it_is_quick():
    pixels = resized(photos.astronaut(), 64)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        segment(pixels, 16, 8)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
