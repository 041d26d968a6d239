"""Packing of latents into tokens, in FLUX's order."""

import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.models.mmdit.latents import pack, position_ids, text_ids, unpack
from tests import tiny


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_tokens_are_patches_with_the_channel_slowest(patch):
    height, width, channels = 2 * patch, 5 * patch, 3
    x = tiny.normal(2, height, width, channels)
    tokens = np.asarray(pack(jnp.asarray(x), patch))
    assert tokens.shape == (2, 10, channels * patch**2)
    for row in range(2):
        for column in range(5):
            cut = x[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            expected = cut.transpose(0, 3, 1, 2).reshape(2, -1)  # (c ph pw)
            np.testing.assert_array_equal(tokens[:, row * 5 + column], expected)
    np.testing.assert_array_equal(unpack(jnp.asarray(tokens), height, width, patch), x)


def test_positions_are_image_row_column():
    expected = [[1, row, column] for row in range(2) for column in range(3)]
    np.testing.assert_array_equal(position_ids(4, 6, 2, image=1), expected)
    assert not np.any(np.asarray(position_ids(4, 6, 2))[:, 0])
    np.testing.assert_array_equal(text_ids(4), np.zeros((4, 3)))
