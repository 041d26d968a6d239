"""The MMDiT against NumPy, for both ways of giving it the source."""

import numpy as np
import pytest
from flax import nnx

from rb_jax.models.mmdit import MMDiT
from rb_jax.models.mmdit.blocks import FinalLayer, Modulation
from rb_jax.models.types import Conditioning
from rb_jax.weights.params import flatten
from tests import tiny
from tests.models import reference

CONFIG = tiny.CONFIG.model.mmdit
HEIGHT, WIDTH, CHANNELS, VECTOR = 4, 6, 3, 10  # of the latent, of the pooled text vector


def modulation(p, vec, count):
    """Chunks shift, scale, gate, shift, ... of one example."""
    return np.split(reference.linear(p, reference.silu(vec)), count)


def embed(p, x):
    return reference.linear(p["out_layer"], reference.silu(reference.linear(p["in_layer"], x)))


def sinusoids(t):
    phase = 1000 * t * 10_000.0 ** (-np.arange(128) / 128)
    return np.concatenate([np.cos(phase), np.sin(phase)])


def tokens(latent):
    rows, columns, patch = HEIGHT // 2, WIDTH // 2, CONFIG.patch_size
    cuts = [
        latent[patch * i : patch * i + 2, patch * j : patch * j + 2]
        for i in range(rows)
        for j in range(columns)
    ]
    return np.array([cut.transpose(2, 0, 1).ravel() for cut in cuts])


def positions(image):
    return [(image, i, j) for i in range(HEIGHT // 2) for j in range(WIDTH // 2)]


def angles(ids):
    ids = np.array(ids)
    axes = enumerate(CONFIG.axes_dim)
    return np.concatenate([ids[:, a, None] * reference.frequencies(d) for a, d in axes], -1)


def plain_norm(x, shift, scale):
    return (1 + scale) * reference.layer_norm({}, x, 1e-6) + shift


def qkv(p, y, norm):
    q, k, v = (reference.heads(z, CONFIG.heads) for z in np.split(y, 3, -1))
    return reference.rms_norm(norm["query_norm"], q), reference.rms_norm(norm["key_norm"], k), v


def attend(q, k, v, angle):
    q, k = (reference.rotate_interleaved(x, angle) for x in (q, k))
    return reference.attention(q, k, v).reshape(len(q), -1)


def double_block(p, streams, vec, angle):
    """streams is {"txt": [M C], "img": [N C]}; text goes first in the joint attention."""
    mods = {name: modulation(p[name]["mod"]["lin"], vec, 6) for name in streams}
    parts = []
    for name, x in streams.items():
        attn = p[name]["attn"]
        y = reference.linear(attn["qkv"], plain_norm(x, *mods[name][:2]))
        parts.append(qkv(attn, y, attn["norm"]))
    q, k, v = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    attended = np.split(attend(q, k, v, angle), [len(streams["txt"])])
    out = {}
    for (name, x), read in zip(streams.items(), attended, strict=True):
        shift1, scale1, gate1, shift2, scale2, gate2 = mods[name]
        x = x + gate1 * reference.linear(p[name]["attn"]["proj"], read)
        h = plain_norm(x, shift2, scale2)
        out[name] = x + gate2 * reference.mlp(p[name]["mlp"], h, reference.gelu_tanh)
    return out


def single_block(p, x, vec, angle):
    shift, scale, gate = modulation(p["modulation"]["lin"], vec, 3)
    y = reference.linear(p["linear1"], plain_norm(x, shift, scale))
    read = attend(*qkv(p, y[:, : 3 * CONFIG.width], p["norm"]), angle)
    hidden = reference.gelu_tanh(y[:, 3 * CONFIG.width :])
    return x + gate * reference.linear(p["linear2"], np.concatenate([read, hidden], -1))


def velocity(params, source, z, t, guidance, conditioning, row):
    """What the MMDiT should say of one example, [HEIGHT WIDTH CHANNELS]."""
    p = reference.tree(params, "mmdit")
    vec = embed(p["time_in"], sinusoids(t[row])) + embed(p["vector_in"], conditioning.vector[row])
    if "guidance_in" in p:
        vec = vec + embed(p["guidance_in"], sinusoids(guidance[row]))
    img, given = tokens(z[row]), tokens(conditioning.source_latent[row])
    ids = positions(0)
    img = np.concatenate([img, given], -1 if source == "channel" else 0)
    ids = ids + positions(1) if source == "sequence" else ids
    text = conditioning.tokens[row]
    angle = angles([(0, 0, 0)] * len(text) + ids)
    streams = {
        "txt": reference.linear(p["txt_in"], text),
        "img": reference.linear(p["img_in"], img),
    }
    for layer in range(CONFIG.double_blocks):
        block = reference.tree(params, "mmdit/double_blocks", layer)
        streams = double_block(block, streams, vec, angle)
    x = np.concatenate([streams["txt"], streams["img"]])
    for layer in range(CONFIG.single_blocks):
        x = single_block(reference.tree(params, "mmdit/single_blocks", layer), x, vec, angle)
    x = x[len(text) : len(text) + len(positions(0))]
    shift, scale = modulation(p["final_layer"]["adaLN_modulation"], vec, 2)
    out = reference.linear(p["final_layer"]["linear"], plain_norm(x, shift, scale))
    cells = out.reshape(HEIGHT // 2, WIDTH // 2, CHANNELS, 2, 2)
    return cells.transpose(0, 3, 1, 4, 2).reshape(HEIGHT, WIDTH, CHANNELS)


def inputs():
    conditioning = Conditioning(
        tiny.normal(2, 5, CONFIG.context_width),
        tiny.normal(2, VECTOR),
        tiny.normal(2, HEIGHT, WIDTH, CHANNELS, seed=9),
    )
    t, guidance = np.array([0.3, 0.9], np.float32), np.array([1.0, 3.5], np.float32)
    return tiny.normal(2, HEIGHT, WIDTH, CHANNELS), t, guidance, conditioning


@pytest.mark.parametrize(("source", "embed_guidance"), [("channel", True), ("sequence", False)])
def test_velocity(source, embed_guidance):
    config = tiny.config(
        model__mmdit__source=source, model__mmdit__guidance_embed=embed_guidance
    ).model.mmdit
    params, run = tiny.part(lambda rngs: MMDiT(config, CHANNELS, VECTOR, rngs))
    out = np.asarray(run(params, *inputs()))
    named = {f"mmdit/{path}": value for path, value in params.items()}
    for row in range(2):
        expected = velocity(named, source, *inputs(), row)
        np.testing.assert_allclose(out[row], expected, rtol=2e-3, atol=2e-3)


def test_training_starts_from_identity_blocks_and_zero_velocity():
    final = flatten(FinalLayer(6, 4, nnx.Rngs(0)))
    assert not any(np.any(value) for value in final.values())
    gates = flatten(Modulation(6, 2, nnx.Rngs(0)))
    assert set(gates) == {"lin/kernel", "lin/bias"}
    assert not any(np.any(value) for value in gates.values())
