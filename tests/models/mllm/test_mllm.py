"""The language model against NumPy, row by row and without any padding."""

import jax
import numpy as np
import pytest

from rb_jax.models.mllm.llava import Projector
from tests import tiny
from tests.models import reference

CONFIG = tiny.CONFIG.model.mllm


def angles(count):
    frequencies = reference.frequencies(CONFIG.width // CONFIG.heads, CONFIG.rope_theta)
    return np.arange(count)[:, None] * frequencies


def adapted(p, x):
    """A linear layer with LoRA, merged."""
    merged = p["kernel"] + CONFIG.lora_alpha / CONFIG.lora_rank * p["lora_a"] @ p["lora_b"]
    return x @ merged


def llama(params, x):
    """[T C] embeddings -> [T C] last hidden states."""
    prefix = "mllm/language_model"
    for layer in range(CONFIG.layers):
        p = reference.tree(params, f"{prefix}/layers", layer)
        h, attn = reference.rms_norm(p["input_layernorm"], x), p["self_attn"]
        q = reference.heads(adapted(attn["q_proj"], h), CONFIG.heads)
        k, v = (
            reference.heads(adapted(attn[name], h), CONFIG.kv_heads)
            for name in ("k_proj", "v_proj")
        )
        q, k = (reference.rotate_half(y, angles(len(x))) for y in (q, k))
        attended = reference.attention(q, k, v, causal=True).reshape(len(x), -1)
        x = x + adapted(attn["o_proj"], attended)
        h, mlp = reference.rms_norm(p["post_attention_layernorm"], x), p["mlp"]
        gated = reference.silu(reference.linear(mlp["gate_proj"], h))
        gated = gated * reference.linear(mlp["up_proj"], h)
        x = x + reference.linear(mlp["down_proj"], gated)
    return reference.rms_norm(reference.tree(params, f"{prefix}/norm"), x)


def guidance(params, features, cues, row):
    """V and L_MLLM of one example, of the tokens that are there."""
    p = reference.tree(params, "mllm")
    words = features.prompt.ids[row][features.prompt.mask[row]]
    visual, textual = (
        x[row][mask[row]]
        for x, mask in ((cues.visual, cues.visual_mask), (cues.textual, cues.textual_mask))
    )
    sequence = [
        reference.linear(p["mm_projector"]["linear_1"], features.patches[row]),
        reference.linear(p["visual_cue_proj"], visual),
        reference.linear(p["textual_cue_proj"], textual),
        p["language_model"]["embed_tokens"][words],
        p["image_tokens"]["embedding"],
    ]
    hidden, count = llama(params, np.concatenate(sequence)), CONFIG.image_tokens
    loss = 0.0
    for i in range(count):
        state = hidden[len(hidden) - count + i - 1]
        heads = (p["language_model"]["lm_head"], p["image_tokens"]["lm_head"])
        probability = reference.softmax(np.concatenate([state @ h["kernel"] for h in heads]))
        loss -= np.log(probability[CONFIG.vocab_size + i])
    return hidden[-count:], loss


@pytest.fixture(scope="module")
def mllm():
    return tiny.jit(lambda model, features, cues: model.mllm(features, cues))


def test_guidance_and_loss(mllm):
    params, features = tiny.params(), tiny.features()
    cues = tiny.cues(features)
    v, loss = (np.asarray(x) for x in mllm(params, features, cues))
    assert v.shape == (3, CONFIG.image_tokens, CONFIG.width)
    lengths = features.prompt.mask.sum(1) + cues.visual_mask.sum(1) + cues.textual_mask.sum(1)
    assert len(set(lengths)) == 3  # rows of different length, or the test would show little
    for row in range(3):
        expected, expected_loss = guidance(params, features, cues, row)
        np.testing.assert_allclose(v[row], expected, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(loss[row], expected_loss, rtol=1e-3)


def test_padding_between_parts_may_hold_anything(mllm):
    params, features = tiny.params(), tiny.features()
    cues = tiny.cues(features)
    noisy = type(cues)(
        np.where(cues.visual_mask[..., None], cues.visual, 50.0).astype(np.float32),
        cues.visual_mask,
        np.where(cues.textual_mask[..., None], cues.textual, -50.0).astype(np.float32),
        cues.textual_mask,
    )
    jax.tree.map(
        np.testing.assert_array_equal, mllm(params, features, cues), mllm(params, features, noisy)
    )


def test_decoder_is_causal():
    decode = tiny.jit(lambda model, x, mask: model.mllm.language_model(x, mask))
    x, mask = tiny.normal(2, 9, CONFIG.width), np.ones((2, 9), bool)
    mask[1, :3] = False
    other = x.copy()
    other[:, 5] += 1.0
    before, after = (np.asarray(decode(tiny.params(), y, mask)) for y in (x, other))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[:, 5:].max(-1) > 1e-3).all()
    # Leading padding shifts nothing.
    shorter = decode(tiny.params(), np.roll(x, -3, 1), np.roll(mask, -3, 1))
    np.testing.assert_allclose(before[1, 3:], np.asarray(shorter)[1, :6], rtol=1e-4, atol=1e-5)


def test_two_layer_projector():
    params, project = tiny.part(lambda rngs: Projector(6, 10, "mlp", rngs))
    x, p = tiny.normal(2, 4, 6), reference.tree({f"p/{k}": v for k, v in params.items()}, "p")
    expected = reference.linear(p["linear_2"], reference.gelu(reference.linear(p["linear_1"], x)))
    np.testing.assert_allclose(project(params, x), expected, rtol=1e-4, atol=1e-4)
