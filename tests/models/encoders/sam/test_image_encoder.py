"""Windows, relative positions and the order of the blocks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rb_jax.models.encoders.sam.image_encoder import (
    ImageEncoder,
    ImageEncoderLayer,
    partition,
    relative_bias,
    unpartition,
)
from rb_jax.weights.params import merge
from tests import tiny
from tests.models import reference
from tests.models.encoders.sam.small import CONFIG, build


@pytest.mark.parametrize("height, width, window", [(5, 7, 3), (6, 4, 2), (2, 3, 4), (1, 1, 1)])
def test_windows_tile_the_picture_and_are_filled_with_zeros(height, width, window):
    x = tiny.normal(2, height, width, 3)
    windows = np.asarray(partition(jnp.asarray(x), window))
    down, across = -(-height // window), -(-width // window)
    assert windows.shape == (2 * down * across, window, window, 3)
    padded = np.zeros((2, down * window, across * window, 3), np.float32)
    padded[:, :height, :width] = x
    for row in range(2):
        for i in range(down):
            for j in range(across):
                tile = padded[row, i * window :, j * window :][:window, :window]
                np.testing.assert_array_equal(windows[(row * down + i) * across + j], tile)
    np.testing.assert_array_equal(unpartition(jnp.asarray(windows), height, width), x)


def test_relative_positions():
    side, heads, dim = 3, 2, 4
    q = tiny.normal(2, side, side, heads, dim)
    down, across = tiny.normal(2 * side - 1, dim), tiny.normal(2 * side - 1, dim, seed=1)
    bias = np.asarray(relative_bias(*map(jnp.asarray, (q, down, across))))
    assert bias.shape == (2, heads, side * side, side * side) and bias.dtype == np.float32
    for (i, j), (k, m) in [((0, 0), (2, 2)), ((2, 1), (0, 2)), ((1, 1), (1, 1)), ((0, 2), (1, 0))]:
        vectors = down[i - k + side - 1] + across[j - m + side - 1]
        expected = q[:, i, j] @ vectors
        np.testing.assert_allclose(bias[..., i * side + j, k * side + m], expected, rtol=1e-4)


def naive_layer(p, x, heads, window):
    """One block on one picture [G G C], window by window."""
    h = reference.layer_norm(p["layer_norm1"], x, 1e-6)
    grid, side = len(x), window or len(x)
    padded = np.pad(h, ((0, -grid % side), (0, -grid % side), (0, 0)))
    out = np.zeros_like(padded)
    for top in range(0, grid, side):
        for left in range(0, grid, side):
            tile = padded[top : top + side, left : left + side].reshape(side * side, -1)
            q, k, v = np.split(reference.linear(p["attn"]["qkv"], tile), 3, axis=-1)
            q, k, v = (reference.heads(t, heads) for t in (q, k, v))
            place = np.stack(np.divmod(np.arange(side * side), side), 1)
            step = place[:, None] - place + side - 1
            table = p["attn"]["rel_pos_h"][step[..., 0]] + p["attn"]["rel_pos_w"][step[..., 1]]
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
            scores += np.einsum("qhd,qkd->hqk", q, table)
            read = np.einsum("hqk,khd->qhd", reference.softmax(scores), v).reshape(len(tile), -1)
            tile = reference.linear(p["attn"]["proj"], read).reshape(side, side, -1)
            out[top : top + side, left : left + side] = tile
    x = x + out[:grid, :grid]
    return x + reference.mlp(p["mlp"], reference.layer_norm(p["layer_norm2"], x, 1e-6))


@pytest.mark.parametrize("window", [None, 2, 4, 7])
def test_a_block(window):
    x = tiny.normal(2, 5, 5, CONFIG.width)
    graph, params = build(lambda rngs: ImageEncoderLayer(CONFIG, window or 5, rngs))
    out = np.asarray(jax.jit(lambda p, x: merge(graph, p)(x, window))(params, x))
    p = reference.tree({f"layer/{path}": value for path, value in params.items()}, "layer")
    for row in range(2):
        expected = naive_layer(p, x[row].astype(np.float64), CONFIG.heads, window)
        np.testing.assert_allclose(out[row], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("everywhere", [(3, 0), (1,), (), (0, 1, 2, 3)])
def test_blocks_run_in_order(everywhere):
    """Each block is taken out of its stack and run alone."""
    config = dataclasses.replace(CONFIG, global_layers=everywhere)
    graph, params = build(lambda rngs: ImageEncoder(config, rngs))
    pixels = tiny.normal(2, CONFIG.image_size, CONFIG.image_size, 3)

    def one_by_one(p, pixels):
        encoder = merge(graph, p)
        x = encoder.patch_embed(pixels) + encoder.pos_embed[...]
        used = {True: itertools.count(), False: itertools.count()}
        for layer in range(config.layers):
            inside = layer in everywhere
            stacked = encoder.global_layers if inside else encoder.window_layers
            block, arrays = nnx.split(stacked)
            index = next(used[inside])
            block = nnx.merge(block, jax.tree.map(lambda value, i=index: value[i], arrays))
            x = block(x, None if inside else config.window_size)
        return encoder.neck(x)

    run = jax.jit(lambda p, x, remat: merge(graph, p)(x, remat), static_argnums=2)
    expected = jax.jit(one_by_one)(params, pixels)
    assert expected.shape == (2, 5, 5, CONFIG.out_channels)
    out = run(params, pixels, "full" if len(everywhere) == 2 else "off")
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    stacks = {path.split("/")[0] for path in params if "layers/" in path}
    names = {"global_layers": everywhere, "window_layers": len(everywhere) < config.layers}
    assert stacks == {name for name, some in names.items() if some}
