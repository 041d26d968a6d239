"""The Cross-Modal Enhancer against NumPy."""

import numpy as np
import pytest

from tests import tiny
from tests.models import reference

CONFIG = tiny.CONFIG.model.cme


def cross(p, q, context):
    normed = reference.layer_norm(p["norm_q"], q), reference.layer_norm(p["norm_kv"], context)
    return q + reference.multihead(p["attn"], *normed, CONFIG.heads)


def enhance(params, name, v_hat, encoded, cues):
    """R_bar of one example; ``encoded`` are its tokens, ``cues`` its cues, no padding."""
    p = reference.tree(params, f"cme/{name}")
    q = p["queries"]
    for layer in range(CONFIG.blocks):
        block = reference.tree(params, f"cme/{name}/blocks", layer)
        f1 = cross(block["attn_q_vhat"], q, v_hat)
        f2 = cross(block["attn_e_r"], encoded, cues)
        fused = reference.layer_norm(block["norm_fuse"], cross(block["attn_fuse"], f1, f2))
        ffn = block["ffn"]
        q = fused + reference.mlp(ffn["ff"], reference.layer_norm(ffn["norm"], fused))
    r_bar = cross(p["final_attn"], q, np.concatenate([f2, cues]))
    return reference.layer_norm(p["final_norm"], r_bar)


@pytest.mark.parametrize("name", ["visual_enhancer", "textual_enhancer"])
def test_enhancers(name):
    run = tiny.jit(lambda model, *args: getattr(model.cme, name)(*args))
    v_hat, encoded = tiny.normal(3, 7, 44), tiny.normal(3, 10, 44)
    cues = tiny.normal(3, 6, 44)
    encoded_mask = np.arange(10) < np.array([[10], [4], [7]])
    cue_mask = np.array([[1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1], [0] * 6], bool)
    params = tiny.params()
    out = np.asarray(run(params, v_hat, encoded, encoded_mask, cues, cue_mask))
    assert out.shape == (3, CONFIG.queries, CONFIG.width)
    for row in range(3):
        kept = encoded[row][encoded_mask[row]], cues[row][cue_mask[row]]
        expected = enhance(params, name, v_hat[row], *kept)
        np.testing.assert_allclose(out[row], expected, rtol=2e-3, atol=2e-3)
