"""The autoencoder against NumPy, and its training loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.models.encoders.vae import Autoencoder
from rb_jax.models.pixels import to_float, to_uint8
from tests import tiny
from tests.models import reference

CONFIG = tiny.CONFIG.model.autoencoder
GROUPS = CONFIG.norm_groups


def resnet(p, x):
    h = reference.conv(p["conv1"], reference.silu(reference.group_norm(p["norm1"], x, GROUPS)))
    h = reference.conv(p["conv2"], reference.silu(reference.group_norm(p["norm2"], h, GROUPS)))
    return h + (reference.linear(p["conv_shortcut"], x) if "conv_shortcut" in p else x)


def middle(p, x):
    x, attn = resnet(p["resnet_1"], x), p["attention"]
    h = reference.group_norm(attn["group_norm"], x, GROUPS).reshape(-1, 1, x.shape[-1])
    q, k, v = (reference.linear(attn[name], h) for name in ("to_q", "to_k", "to_v"))
    read = reference.linear(attn["to_out"], reference.attention(q, k, v))
    return resnet(p["resnet_2"], x + read.reshape(x.shape))


def finish(p, x):
    x = reference.silu(reference.group_norm(p["conv_norm_out"], x, GROUPS))
    return reference.conv(p["conv_out"], x)


def encode(p, x):
    x = reference.conv(p["conv_in"], x)
    for level in p["down_blocks"].values():
        for block in level["resnets"].values():
            x = resnet(block, x)
        if "downsampler" in level:  # FLUX pads below and to the right only
            x = np.pad(x, ((0, 1), (0, 1), (0, 0)))
            x = reference.conv(level["downsampler"], x, stride=2, pad=(0, 0))
    return finish(p, middle(p["mid_block"], x))


def decode(p, z):
    x = middle(p["mid_block"], reference.conv(p["conv_in"], z))
    for level in p["up_blocks"].values():
        for block in level["resnets"].values():
            x = resnet(block, x)
        if "upsampler" in level:
            x = reference.conv(level["upsampler"], np.kron(x, np.ones((2, 2, 1))))
    return finish(p, x)


@pytest.fixture(scope="module")
def weights():
    return {k: v for k, v in tiny.params().items() if k.startswith("autoencoder/")}


def test_latents(weights):
    images = tiny.batch(rows=2).source
    latents = np.asarray(tiny.jit(lambda model, x: model.encode_latents(x))(tiny.params(), images))
    assert latents.shape == (2, 8, 8, CONFIG.latent_channels)
    p = reference.tree(weights, "autoencoder/encoder")
    for row in range(2):
        mean = encode(p, images[row] / 127.5 - 1.0)[..., : CONFIG.latent_channels]
        expected = CONFIG.scale_factor * (mean - CONFIG.shift_factor)
        np.testing.assert_allclose(latents[row], expected, rtol=2e-3, atol=2e-3)


def test_pictures(weights):
    z = tiny.normal(1, 4, 4, CONFIG.latent_channels)
    out = np.asarray(tiny.jit(lambda model, z: model.autoencoder.decode(z))(tiny.params(), z))
    assert out.shape == (1, 16, 16, 3) and out.dtype == np.float32
    p = reference.tree(weights, "autoencoder/decoder")
    expected = decode(p, z[0] / CONFIG.scale_factor + CONFIG.shift_factor)
    np.testing.assert_allclose(out[0], expected, rtol=2e-3, atol=2e-3)


def test_bytes_survive_the_trip_through_floats():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    floats = to_float(jnp.asarray(levels))
    assert float(floats.min()) == -1.0 and float(floats.max()) == 1.0
    np.testing.assert_array_equal(to_uint8(floats), levels)
    np.testing.assert_array_equal(to_uint8(jnp.full((1, 2, 2, 3), 9.0)), np.full((1, 2, 2, 3), 255))
    np.testing.assert_array_equal(to_uint8(jnp.full((1, 2, 2, 3), -9.0)), np.zeros((1, 2, 2, 3)))


def test_training_loss_has_gradients_everywhere():
    config = tiny.config(train__task="autoencoder", train__frozen=(), train__kl_weight=0.5)
    params, batch = tiny.params(config), tiny.batch(config, rows=2)

    def loss(model, batch):
        return model.loss(batch, jax.random.key(0))

    value_and_grad = jax.value_and_grad(tiny.jit(loss, config), has_aux=True)
    (value, terms), grads = value_and_grad(params, batch)
    total = terms["l1"] + terms["mse"] + 0.5 * terms["kl"]
    np.testing.assert_allclose(value, total, rtol=1e-6)
    assert [path for path, grad in grads.items() if not np.any(grad)] == []


def test_kl_is_that_of_the_unit_gaussian(weights):
    """Zero for mean 0 and variance 1; by numerical integration elsewhere."""
    config = tiny.config(train__task="autoencoder", train__frozen=())
    params = {path: jnp.zeros_like(v) for path, v in weights.items()}
    bias = np.array([0.0, 0.7, -1.2, 0.0, 0.4, -0.9], np.float32)  # means, then log-variances
    params["autoencoder/encoder/conv_out/bias"] = jnp.asarray(bias)
    run = tiny.jit(lambda model, b: model.loss(b, jax.random.key(0))[1], config)
    x = np.linspace(-30, 30, 200_001)
    expected = 0.0
    for mean, logvar in zip(bias[:3], bias[3:], strict=True):
        density = np.exp(-((x - mean) ** 2) / (2 * np.exp(logvar)))
        density /= density.sum()
        ratio = -((x - mean) ** 2) / (2 * np.exp(logvar)) - logvar / 2 + x**2 / 2
        expected += (density * ratio).sum()
    kl = float(run(params, tiny.batch(config, rows=2))["kl"])
    np.testing.assert_allclose(kl, 8 * 8 * expected, rtol=1e-3)


def test_trainer_holds_the_same_autoencoder():
    config = tiny.config(train__task="autoencoder", train__frozen=())
    paths = tiny.definition(config)[1]
    alone, _ = tiny.part(lambda rngs: Autoencoder(CONFIG, rngs))
    assert {f"autoencoder/{path}" for path in alone} == set(paths)
