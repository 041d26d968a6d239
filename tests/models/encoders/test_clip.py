"""CLIP's towers against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rb_jax.models.encoders.clip import MEAN, STD, CLIPText, CLIPVision, preprocess
from rb_jax.models.types import Text
from tests import tiny
from tests.models import reference

VISION, TEXT = tiny.CONFIG.model.vision, tiny.CONFIG.model.text


def layer(p, x, heads, causal):
    h, attn = reference.layer_norm(p["layer_norm1"], x), p["self_attn"]
    q, k, v = (
        reference.heads(reference.linear(attn[name], h), heads)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    attended = reference.attention(q, k, v, causal).reshape(len(x), -1)
    x = x + reference.linear(attn["out_proj"], attended)
    h = reference.layer_norm(p["layer_norm2"], x)
    return x + reference.mlp(p["mlp"], h, lambda y: y / (1 + np.exp(-1.702 * y)))


@pytest.fixture(scope="module")
def text_tower():
    params, run = tiny.part(lambda rngs: CLIPText(TEXT, rngs))
    return params, run


def test_text_tower(text_tower):
    (params, run), batch = text_tower, tiny.batch()
    hidden, pooled = (np.asarray(x) for x in run(params, batch.text.ids, batch.text.mask))
    named = {f"text/{path}": value for path, value in params.items()}
    p = reference.tree(named, "text")
    for row in range(3):
        ids = batch.text.ids[row][batch.text.mask[row]]
        x = p["token_embedding"][ids] + p["position_embedding"][: len(ids)]
        for i in range(TEXT.layers):
            x = layer(reference.tree(named, "text/layers", i), x, TEXT.heads, causal=True)
        x = reference.layer_norm(p["final_layer_norm"], x)
        np.testing.assert_allclose(hidden[row, : len(ids)], x, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(pooled[row], hidden[row, len(ids) - 1], rtol=1e-5, atol=1e-5)


def test_text_tower_is_causal(text_tower):
    params, run = text_tower
    ids, mask = np.full((1, 8), 7, np.int32), np.ones((1, 8), bool)
    other = ids.copy()
    other[0, 5] = 11
    before, after = (np.asarray(run(params, x, mask)[0]) for x in (ids, other))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[0, 5:].max(-1) > 1e-3).all()


def test_absent_objects_have_zero_features():
    params, batch = tiny.params(), tiny.batch()
    encode = tiny.jit(lambda model, *args: model.text.encode_objects(*args))
    out = np.asarray(encode(params, batch.objects, batch.object_mask))
    assert not np.any(out[~batch.object_mask])
    run = tiny.jit(lambda model, text: model.text(text.ids, text.mask)[1])
    for row, slot in np.argwhere(batch.object_mask):
        name = Text(batch.objects.ids[row, slot][None], batch.objects.mask[row, slot][None])
        np.testing.assert_allclose(out[row, slot], run(params, name)[0], rtol=1e-4, atol=1e-5)


def test_vision_tower():
    params, run = tiny.part(lambda rngs: CLIPVision(VISION, rngs))
    images = tiny.batch(rows=2).source
    last, patches = (np.asarray(x) for x in run(params, images))
    named = {f"vision/{path}": value for path, value in params.items()}
    p = reference.tree(named, "vision")
    pixels = np.asarray(preprocess(jnp.asarray(images), VISION.image_size), np.float64)
    for row in range(2):
        x = reference.conv(p["patch_embedding"], pixels[row], VISION.patch_size, (0, 0))
        x = np.concatenate([p["class_embedding"][None], x.reshape(-1, VISION.width)])
        x = reference.layer_norm(p["pre_layernorm"], x + p["position_embedding"])
        states = [x]
        for i in range(VISION.layers):
            block = reference.tree(named, "vision/layers", i)
            states.append(layer(block, states[-1], VISION.heads, causal=False))
        np.testing.assert_allclose(last[row], states[-1], rtol=1e-3, atol=1e-3)
        chosen = states[VISION.feature_layer][1:]
        np.testing.assert_allclose(patches[row], chosen, rtol=1e-3, atol=1e-3)
        assert np.abs(chosen - states[-1][1:]).max() > 0.1


def test_preprocessing_is_an_antialiased_bicubic_resize():
    rng = np.random.default_rng(0)
    # Pillow clips between its two passes: stay where nothing is clipped.
    images = rng.integers(80, 176, (1, 32, 32, 3)).astype(np.uint8)
    for size in (32, 24, 48):
        made = np.asarray(preprocess(jnp.asarray(images), size))[0] * np.array(STD) + np.array(MEAN)
        resized = Image.fromarray(images[0]).resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(255 * made, np.asarray(resized, np.float32), atol=1.6)
