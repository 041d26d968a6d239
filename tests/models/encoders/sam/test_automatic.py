"""Automatic masks: grid, crops, filters, suppression, and the regions made of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data

from rb_jax.errors import InputError
from rb_jax.models.encoders.sam import SAM, automatic
from rb_jax.models.encoders.sam.automatic import (
    AutomaticMaskSettings,
    automatic_masks,
    crop_boxes,
    mask_boxes,
    near_crop_edge,
    nms,
    point_grid,
    regions,
    stability_score,
)
from rb_jax.weights.params import merge
from tests.models.encoders.sam.small import CONFIG, build, sam

# Nothing is filtered, so that what is left is up to the suppression.
SETTINGS = AutomaticMaskSettings(
    points_per_side=3,
    points_per_batch=4,
    pred_iou_thresh=0.0,
    stability_score_thresh=0.0,
    stability_score_offset=0.005,
    mask_threshold=0.05,
    box_nms_thresh=0.9,
)


def photograph(width, height):
    return np.asarray(Image.fromarray(data.astronaut()).resize((width, height)))


def test_point_grid():
    np.testing.assert_allclose(
        point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    )
    np.testing.assert_allclose(point_grid(1), [[0.5, 0.5]])


def test_crops_cover_the_picture_and_overlap():
    crops = crop_boxes(90, 121, 2, 0.3)
    assert crops[0] == ((0, 0, 121, 90), 0)
    assert [layer for _, layer in crops] == [0] + [1] * 4 + [2] * 16
    # Layer 1: an overlap of int(0.3 x 90) = 27 pixels.
    assert [box for box, layer in crops if layer == 1] == [
        (0, 0, 74, 59),
        (0, 32, 74, 90),
        (47, 0, 121, 59),
        (47, 32, 121, 90),
    ]
    for layer in (1, 2):
        covered = np.zeros((90, 121), int)
        for (left, top, right, bottom), number in crops:
            covered[top:bottom, left:right] += number == layer
        assert covered.min() == 1 and covered.max() == 4
    assert crop_boxes(90, 121, 0, 0.3) == crops[:1]
    with pytest.raises(InputError, match="crop_n_layers: 3 is too much"):
        crop_boxes(5, 5, 3, 0.3)


def test_stability_score():
    logits = jnp.asarray([[[3.0, 0.5], [-0.5, -3.0]], [[-9.0, -9.0], [-9.0, -9.0]]])
    np.testing.assert_allclose(stability_score(logits, 0.0, 1.0), [1 / 3, 0])
    np.testing.assert_allclose(stability_score(logits, 1.0, 1.0), [1 / 2, 0])
    np.testing.assert_allclose(stability_score(logits, 0.0, 0.1), [1, 0])


def test_boxes_of_masks():
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 1:4, 2:6] = True
    masks[1, 4, 0] = True
    np.testing.assert_array_equal(mask_boxes(masks), [[2, 1, 5, 3], [0, 4, 0, 4], [0, 0, 0, 0]])
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_boxes_cut_off_by_a_crop():
    crop, picture = np.array([100, 0, 300, 200]), np.array([0, 0, 400, 200])
    boxes = np.array(
        [
            [150, 50, 250, 150],  # inside
            [120, 50, 250, 150],  # at the left edge of the crop
            [121, 50, 250, 150],  # just not
            [150, 50, 285, 150],  # at its right edge
            [150, 5, 250, 195],  # at the edges of the picture
        ]
    )
    expected = [False, True, False, True, False]
    np.testing.assert_array_equal(near_crop_edge(boxes, crop, picture), expected)


def test_suppression():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 10, 5], [3, 3, 3, 3]])
    scores = np.array([0.5, 0.9, 0.7, 0.8, 0.1])
    # IoU with the second: 0.9 for the first, 5/9 for the fourth.
    assert nms(boxes, scores, 0.89).tolist() == [1, 3, 2, 4]
    assert nms(boxes, scores, 0.91).tolist() == [1, 3, 2, 0, 4]
    assert nms(boxes, scores, 0.5).tolist() == [1, 2, 4]
    same = np.ones(5)
    assert nms(boxes, same, 0.89).tolist() == [0, 2, 3, 4]
    assert nms(boxes[:0], same[:0], 0.5).shape == (0,)


def test_regions():
    masks = np.zeros((6, 6, 6), bool)
    masks[0, :2, :2] = True  # one cell
    masks[1, :, :4] = True  # two columns of cells
    masks[2, 5, 5] = True  # a quarter of a cell
    masks[3, :, 1] = True  # half of each cell in the first column
    masks[4, 3:, 0] = masks[4, 3:, 5] = True  # as large; one and a half cells in two columns
    cells, valid = regions(masks, 3, 5)
    expected = np.zeros((5, 3, 3), bool)
    expected[0, :, :2] = True
    expected[1, :, 0] = True
    expected[2, 2, [0, 2]] = True
    expected[3, 0, 0] = True
    np.testing.assert_array_equal(cells, expected)
    assert valid.tolist() == [True] * 4 + [False]
    few, all_valid = regions(masks, 3, 2)
    np.testing.assert_array_equal(few, expected[:2])
    assert all_valid.all()
    assert not regions(masks[:0], 3, 2)[1].any()


def test_regions_of_a_picture_that_the_grid_does_not_divide():
    """Cells are 5/3 x 7/3 pixels: the shares of their pixels are added up."""
    mask = np.random.default_rng(3).random((1, 5, 7)) > 0.5
    cells, _ = regions(mask, 3, 1)
    fine = np.kron(mask[0], np.ones((3, 3)))  # 15 x 21: cells of 5 x 7
    expected = fine.reshape(3, 5, 3, 7).mean((1, 3)) >= 0.5
    np.testing.assert_array_equal(cells[0], expected)
    # A grid finer than the picture.
    np.testing.assert_array_equal(
        regions(mask[:, :3, :3], 6, 1)[0][0], np.kron(mask[0, :3, :3], np.ones((2, 2)))
    )


@pytest.mark.parametrize(
    "change, name",
    [
        (dict(points_per_side=0), "points_per_side"),
        (dict(points_per_batch=0), "points_per_batch"),
        (dict(crop_n_layers=-1), "crop_n_layers"),
        (dict(crop_overlap_ratio=1.0), "crop_overlap_ratio"),
        (dict(crop_n_points_downscale_factor=0), "crop_n_points_downscale_factor"),
        (dict(crop_n_layers=3, crop_n_points_downscale_factor=4), "crop_n_points_downscale_factor"),
    ],
)
def test_settings_that_make_no_sense(change, name):
    with pytest.raises(InputError, match=f"^{name}: "):
        AutomaticMaskSettings(**change)


@pytest.mark.parametrize("width, height", [(31, 17), (20, 20), (9, 40)])
def test_masks_of_pictures_of_any_shape(width, height):
    found = automatic_masks(sam(), photograph(width, height), SETTINGS)
    assert found.masks.shape[1:] == (height, width) and len(found.masks) >= 2
    assert np.all(np.diff(found.iou_scores) <= 0)
    np.testing.assert_array_equal(found.boxes, mask_boxes(found.masks))
    assert nms(found.boxes, found.iou_scores, 0.9).tolist() == list(range(len(found.masks)))


def test_masks_depend_on_the_picture_and_on_nothing_else():
    picture = photograph(31, 23)
    first = automatic_masks(sam(), picture, SETTINGS)
    again = automatic_masks(sam(), picture.copy(), SETTINGS)
    whole = automatic_masks(sam(), picture, dataclasses.replace(SETTINGS, points_per_batch=9))
    for other in (again, whole):
        np.testing.assert_array_equal(first.masks, other.masks)
        np.testing.assert_allclose(first.iou_scores, other.iou_scores, rtol=1e-5)
    different = automatic_masks(sam(), picture[::-1].copy(), SETTINGS)
    assert first.masks.shape != different.masks.shape or (first.masks != different.masks).any()


def test_filters():
    picture, keep_all = photograph(31, 23), dataclasses.replace(SETTINGS, box_nms_thresh=1.0)
    every = automatic_masks(sam(), picture, keep_all)
    assert len(every.masks) == 9 * 3
    threshold = float(every.iou_scores[4:6].mean())
    assert threshold > 0
    best = automatic_masks(sam(), picture, dataclasses.replace(keep_all, pred_iou_thresh=threshold))
    np.testing.assert_array_equal(best.iou_scores, every.iou_scores[:5])
    np.testing.assert_array_equal(best.masks, every.masks[:5])
    stable = dataclasses.replace(keep_all, stability_score_thresh=0.6)
    assert 0 < len(automatic_masks(sam(), picture, stable).masks) < 9 * 3
    none = automatic_masks(sam(), picture, dataclasses.replace(keep_all, pred_iou_thresh=9.0))
    assert none.masks.shape == (0, 23, 31) and none.boxes.shape == (0, 4)


def test_crops_are_put_in_their_place(monkeypatch):
    """A stand-in finds one pixel: the brightest of whatever it is shown."""
    picture = np.zeros((120, 150, 3), np.uint8)
    spots = [(60, 60), (40, 110), (30, 30)]
    for number, (row, column) in enumerate(spots):
        picture[row, column] = 100 + number

    def brightest(sam, part, side, settings):
        sides.append(side)
        light = part[..., 0].astype(int)
        yield (light == light.max())[None], np.array([light.max() / 255], np.float32)

    sides = []
    monkeypatch.setattr(automatic, "_proposals", brightest)
    settings = AutomaticMaskSettings(
        points_per_side=8, crop_n_layers=1, crop_n_points_downscale_factor=2
    )
    found = automatic_masks(sam(), picture, settings)
    assert sides == [8, 4, 4, 4, 4]
    rows, columns = zip(*(np.argwhere(mask)[0] for mask in found.masks), strict=True)
    # (30, 30) is seen in the whole picture and in one crop. (40, 110) is the brightest of another.
    # (60, 60) is near the edges of the crops that see it.
    assert sorted(zip(rows, columns, strict=True)) == [(30, 30), (30, 30), (40, 110)]
    np.testing.assert_array_equal(found.boxes[:, :2], np.stack([columns, rows], axis=1))


def test_decoder_is_compiled_once(monkeypatch):
    """Neither a picture of another shape nor another object with the weights is traced anew."""
    graph, params = build(lambda rngs: SAM(CONFIG, rngs))
    automatic_masks(merge(graph, params), photograph(25, 15), SETTINGS)
    monkeypatch.setattr(automatic, "Prompts", None)
    assert len(automatic_masks(merge(graph, params), photograph(15, 26), SETTINGS).masks) > 0
