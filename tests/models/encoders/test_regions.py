"""Pooling over region masks, and the stem that makes what is pooled."""

import jax
import jax.numpy as jnp
import numpy as np

from rb_jax.models.encoders.regions import RegionEncoder, masked_pool
from tests import tiny

CONFIG = tiny.CONFIG.model.regions


def test_masked_pool_is_the_mean_over_each_region():
    features = tiny.normal(2, 4, 4, 3)
    masks = np.random.default_rng(0).random((2, 5, 4, 4)) > 0.5
    masks[1, 2] = False
    out = np.asarray(jax.jit(masked_pool)(features, masks))
    for row in range(2):
        for region in range(5):
            inside = features[row][masks[row, region]]
            expected = inside.mean(0) if len(inside) else np.zeros(3)
            np.testing.assert_allclose(out[row, region], expected, rtol=1e-5, atol=1e-6)


def test_features_know_the_place_and_the_colour():
    params, run = tiny.part(lambda rngs: RegionEncoder(CONFIG, rngs))
    side, grid = 32, 32 // CONFIG.stride
    images = np.full((2, side, side, 3), 90, np.uint8)
    images[1] = 200
    regions = np.zeros((2, 3, grid, grid), bool)
    regions[:, 0, :2, :2] = regions[:, 1, -3:, 1:4] = True
    out = np.asarray(run(params, jnp.asarray(images), jnp.asarray(regions)))
    assert out.shape == (2, 3, CONFIG.width) and not np.any(out[:, 2])
    assert np.abs(out[0, 0] - out[0, 1]).max() > 1e-2
    assert np.abs(out[0, 0] - out[1, 0]).max() > 1e-2
