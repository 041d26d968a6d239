"""Euler integration and classifier-free guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.config import FlowConfig
from rb_jax.models.flow.matching import shift_mu
from rb_jax.models.flow.sampler import euler, sample, schedule, true_cfg, without_condition
from rb_jax.models.flow.training import row_keys
from tests import tiny

FLOW = FlowConfig()
NOISE, DATA = (jnp.asarray(tiny.normal(2, 3, 5, 4, seed=seed)) for seed in (1, 2))


@pytest.mark.parametrize("steps", [1, 2, 28])
@pytest.mark.parametrize("shift", [True, False])
def test_schedule(steps, shift):
    flow = dataclasses.replace(FLOW, shift=shift)
    times = np.asarray(schedule(flow, steps, 1024), np.float64)
    assert times.shape == (steps + 1,) and times[0] == 1.0 and times[-1] == 0.0
    assert (np.diff(times) < 0).all()
    t = np.linspace(1, 0, steps + 1)[:-1]
    mu = np.exp(shift_mu(flow, 1024))
    np.testing.assert_allclose(times[:-1], mu / (mu + 1 / t - 1), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 28])
def test_a_straight_flow_lands_on_the_data(steps):
    """The exact velocity of the path to DATA is (z - DATA) / t; any number of steps follows it."""
    times = schedule(FLOW, steps, 64)
    out = euler(lambda z, t: (z - DATA) / t, NOISE, times)
    np.testing.assert_allclose(out, DATA, atol=2e-5)
    np.testing.assert_allclose(euler(lambda z, t: NOISE - DATA, NOISE, times), DATA, atol=2e-5)


def test_a_curved_flow_takes_eulers_steps():
    times = schedule(FLOW, 5, 64)
    out = euler(lambda z, t: z * t, NOISE, times)
    z, t = np.asarray(NOISE, np.float64), np.asarray(times, np.float64)
    for now, after in zip(t[:-1], t[1:], strict=True):
        z = z + (after - now) * z * now
    np.testing.assert_allclose(out, z, rtol=1e-5)


def test_true_cfg():
    np.testing.assert_allclose(true_cfg(NOISE, DATA, 1.0), NOISE, atol=1e-6)
    np.testing.assert_allclose(true_cfg(NOISE, DATA, 0.0), DATA, atol=1e-6)
    np.testing.assert_allclose(true_cfg(NOISE, DATA, 3.0), 3 * NOISE - 2 * DATA, atol=1e-5)


def test_null_condition_keeps_the_source():
    conditioning = tiny.conditioning(2)
    null = without_condition(conditioning)
    assert not np.any(null.tokens) and not np.any(null.vector)
    np.testing.assert_array_equal(null.source_latent, conditioning.source_latent)


@pytest.mark.parametrize("scale", [None, 1.0, 3.0])
def test_sample_follows_the_guided_velocity_from_each_rows_noise(scale):
    """v = z mean(tokens) + guidance, and without the condition v = guidance."""
    flow = dataclasses.replace(FLOW, steps=3, guidance=0.25, true_cfg=2.0)
    conditioning = jax.tree.map(jnp.asarray, tiny.conditioning(2))
    shape, keys = (2, 3, 5, 4), row_keys(jax.random.key(1), 2)

    def velocity(z, t, guidance, conditioning):
        mean = conditioning.tokens.mean((1, 2))
        return (z * mean[:, None, None, None]) + guidance[:, None, None, None]

    out = sample(velocity, conditioning, keys, shape, flow, 64, true_cfg_scale=scale)
    z = np.stack([np.asarray(jax.random.normal(key, shape[1:])) for key in keys])
    times = np.asarray(schedule(flow, 3, 64))
    means = np.asarray(conditioning.tokens).mean((1, 2))[:, None, None, None]
    for now, after in zip(times[:-1], times[1:], strict=True):
        z = z + (after - now) * ((2.0 if scale is None else scale) * z * means + 0.25)
    np.testing.assert_allclose(out, z, rtol=1e-4, atol=1e-5)
