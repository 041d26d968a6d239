"""Pictures, prompts and masks of the small model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from rb_jax.config import ConfigError
from rb_jax.models.encoders.sam import SAM, Prompts
from rb_jax.models.encoders.sam.mask_decoder import Upscale
from rb_jax.models.encoders.sam.pixels import (
    MEAN,
    STD,
    bilinear_matrix,
    fitted_size,
    preprocess,
    preprocess_picture,
)
from rb_jax.weights.params import merge
from tests import tiny
from tests.models.encoders.sam.small import CONFIG, build, sam

FEATURES = tiny.normal(1, 5, 5, CONFIG.out_channels)
PLACES = np.array([[[[3.0, 9.0]], [[15.0, 2.0]]]], np.float32)
LABELS = np.array([[[1], [0]]])


@pytest.mark.parametrize(
    "change, name",
    [
        (dict(patch_size=3), "patch_size"),
        (dict(heads=5), "heads"),
        (dict(window_size=0), "window_size"),
        (dict(global_layers=(1, 4)), "global_layers"),
        (dict(global_layers=(1, 1)), "global_layers"),
        (dict(out_channels=6), "out_channels"),
        (dict(decoder_heads=3), "decoder_heads"),
        (dict(attention_downsample=3), "attention_downsample"),
        (dict(mask_channels=6), "mask_channels"),
        (dict(iou_head_layers=1), "iou_head_layers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, name):
    with pytest.raises(ConfigError, match=rf"^config\.model\.sam\.{name}: "):
        SAM(dataclasses.replace(CONFIG, **change), nnx.Rngs(0))


def test_preprocessing_is_an_antialiased_bilinear_resize():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    for size in (32, 20, 48):
        made = np.asarray(preprocess(jnp.asarray(images), size))[0] * np.array(STD) + np.array(MEAN)
        resized = Image.fromarray(images[0]).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(255 * made, np.asarray(resized, np.float32), atol=1.1)


@pytest.mark.parametrize("height, width", [(40, 30), (13, 20), (20, 20), (1, 300), (7, 5)])
def test_pictures_are_fitted_into_the_corner(height, width):
    picture = np.random.default_rng(1).integers(1, 256, (height, width, 3)).astype(np.uint8)
    pixels = preprocess_picture(picture, 20)
    fitted = fitted_size(height, width, 20)
    assert pixels.shape == (1, 20, 20, 3) and max(fitted) == 20
    exact = 20 * min(height, width) / max(height, width)
    assert min(fitted) == max(1, round(exact))
    outside = np.ones((20, 20), bool)
    outside[: fitted[0], : fitted[1]] = False
    assert not np.any(pixels[0][outside]) and np.all(np.any(pixels[0][~outside], axis=-1))


def test_interpolation_along_an_axis():
    for source, target in [(5, 13), (7, 3), (4, 4), (1, 6)]:
        matrix = bilinear_matrix(source, target)
        assert matrix.shape == (target, source)
        np.testing.assert_allclose(matrix.sum(1), 1)
        # A straight line stays one between the outermost pixel centres.
        centres = (np.arange(target) + 0.5) * source / target - 0.5
        expected = np.clip(centres, 0, source - 1)
        np.testing.assert_allclose(matrix @ np.arange(source), expected, atol=1e-12)
    np.testing.assert_array_equal(bilinear_matrix(4, 4), np.eye(4))


def test_upscaling_is_a_transposed_convolution():
    graph, params = build(lambda rngs: Upscale(6, 5, rngs))
    x, kernel = tiny.normal(2, 3, 4, 6), np.asarray(params["kernel"])
    out = np.asarray(merge(graph, params)(jnp.asarray(x)))
    assert out.shape == (2, 6, 8, 5)
    for row, column in np.ndindex(6, 8):
        expected = x[:, row // 2, column // 2] @ kernel[:, row % 2, column % 2] + params["bias"]
        np.testing.assert_allclose(out[:, row, column], expected, rtol=1e-4, atol=1e-5)


def test_a_point_has_the_place_of_its_cell():
    model, patch = sam(), CONFIG.image_size // 5
    grid = np.asarray(model.shared_image_embedding.grid(5))
    row, column = 3, 1
    centre = np.array([[[[column, row]]]], np.float32) * patch + patch / 2 - 0.5
    labels = np.array([[[1]]])
    sparse, _ = model.prompt_encoder(Prompts(centre, labels), model.shared_image_embedding)
    assert sparse.shape == (1, 1, 2, CONFIG.out_channels)
    point = sparse[0, 0, 0] - model.prompt_encoder.point_embed[1][0]
    np.testing.assert_allclose(point, grid[row, column], rtol=1e-4, atol=1e-5)
    assert np.abs(point - grid[column, row]).max() > 0.1
    nothing = model.prompt_encoder.not_a_point_embed[...][0]
    np.testing.assert_array_equal(sparse[0, 0, 1], nothing)


def test_a_box_is_two_points():
    model = sam()
    corners = np.array([[[[2.0, 3.0], [11.0, 17.0]]]], np.float32)
    labels = np.zeros((1, 1, 2), np.int32)
    encode, places = model.prompt_encoder, model.shared_image_embedding
    points, _ = encode(Prompts(points=corners, labels=labels), places)
    box, _ = encode(Prompts(boxes=corners.reshape(1, 1, 4)), places)
    background, _, first, second = (e[...] for e in encode.point_embed)
    assert box.shape == (1, 1, 2, CONFIG.out_channels)
    expected = points[0, 0, :2] - background + np.concatenate([first, second])
    np.testing.assert_allclose(box[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_prompts_that_say_nothing():
    with pytest.raises(ValueError, match="labels"):
        sam().decode(jnp.asarray(FEATURES), Prompts(points=PLACES))
    with pytest.raises(ValueError, match="points, boxes or masks"):
        sam().decode(jnp.asarray(FEATURES), Prompts())


def test_prompts_do_not_see_each_other():
    decode = jax.jit(lambda model, *args: model.decode(*args))
    masks, iou = decode(sam(), FEATURES, Prompts(PLACES, LABELS))
    assert masks.shape == (1, 2, 3, 20, 20) and iou.shape == (1, 2, 3)
    for i in range(2):
        alone = Prompts(PLACES[:, i : i + 1], LABELS[:, i : i + 1])
        alone_masks, alone_iou = decode(sam(), FEATURES, alone)
        np.testing.assert_allclose(alone_masks[:, 0], masks[:, i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(alone_iou[:, 0], iou[:, i], rtol=1e-4, atol=1e-5)
    assert np.abs(masks[:, 0] - masks[:, 1]).max() > 1e-2


def test_parameters_in_half_precision():
    """The output is float32, near to that of the same parameters in full precision."""
    cast = jax.tree.map(lambda value: value.astype(jnp.bfloat16), sam())
    images = np.random.default_rng(0).integers(0, 256, (1, 33, 33, 3)).astype(np.uint8)
    run = jax.jit(lambda model, x: model(x, Prompts(PLACES, LABELS)))
    low, full = (run(model, images) for model in (cast, sam()))
    for a, b in zip(low, full, strict=True):
        assert a.dtype == jnp.float32
        assert np.abs(a - b).max() < 0.1 * np.abs(b).max()
