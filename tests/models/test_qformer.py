"""The QFormer against NumPy."""

import numpy as np

from tests import tiny
from tests.models import reference

CONFIG = tiny.CONFIG.model.qformer


def test_v_hat():
    params = tiny.params()
    v = tiny.normal(2, 5, tiny.CONFIG.model.mllm.width)
    out = np.asarray(tiny.jit(lambda model, v: model.qformer(v))(params, v))
    assert out.shape == (2, CONFIG.queries, CONFIG.width)
    p = reference.tree(params, "qformer")
    for row in range(2):
        tokens, q = reference.linear(p["input_proj"], v[row]), p["queries"]
        for layer in range(CONFIG.layers):
            block = reference.tree(params, "qformer/blocks", layer)
            h = reference.layer_norm(block["norm_self"], q)
            q = q + reference.multihead(block["self_attn"], h, h, CONFIG.heads)
            h = reference.layer_norm(block["norm_cross_q"], q)
            read = reference.layer_norm(block["norm_cross_kv"], tokens)
            q = q + reference.multihead(block["cross_attn"], h, read, CONFIG.heads)
            q = q + reference.mlp(block["ffn"], reference.layer_norm(block["norm_ffn"], q))
        expected = reference.layer_norm(p["out_norm"], q)
        np.testing.assert_allclose(out[row], expected, rtol=1e-3, atol=1e-3)
