"""Rectified flow: times, interpolation, loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.config import FlowConfig
from rb_jax.models.flow.matching import (
    flow_loss,
    interpolate,
    sample_times,
    shift_mu,
    shift_time,
    velocity_of_data,
)
from tests import tiny

FLOW = FlowConfig()


def test_shift_is_fluxs():
    t = np.linspace(0.001, 1, 57)
    for mu in (0.0, 0.5, 1.15):
        expected = np.exp(mu) / (np.exp(mu) + (1 / t - 1) ** 1.0)
        np.testing.assert_allclose(shift_time(jnp.asarray(t), mu), expected, rtol=1e-5)
    np.testing.assert_array_equal(shift_time(jnp.array([0.0, 1.0]), 0.8), [0.0, 1.0])


def test_shift_grows_with_the_number_of_tokens():
    assert shift_mu(FLOW, 256) == pytest.approx(0.5)
    assert shift_mu(FLOW, 4096) == pytest.approx(1.15)
    assert shift_mu(FLOW, 1024) == pytest.approx(0.5 + 0.65 * 768 / 3840)
    assert shift_mu(dataclasses.replace(FLOW, shift=False), 1024) == 0.0


def test_times_are_logit_normal():
    flow = dataclasses.replace(FLOW, logit_mean=0.4, logit_std=0.7, shift=False)
    draw = jax.jit(sample_times, static_argnums=(1, 2, 3))
    t = np.asarray(draw(jax.random.key(0), 100_000, flow, 1024), np.float64)
    assert t.min() > 0 and t.max() < 1
    logit = np.log(t / (1 - t))
    assert logit.mean() == pytest.approx(0.4, abs=0.01)
    assert logit.std() == pytest.approx(0.7, abs=0.01)
    assert np.mean(np.abs(logit - 0.4) < 0.7) == pytest.approx(0.6827, abs=0.006)
    shifted = np.asarray(
        draw(jax.random.key(0), 100_000, dataclasses.replace(flow, shift=True), 1024)
    )
    added = np.log(shifted / (1 - shifted)) - logit  # a shift of t is an addition to its logit
    np.testing.assert_allclose(added, shift_mu(FLOW, 1024), atol=2e-3)


def test_interpolation_and_loss():
    x0, noise = tiny.normal(3, 2, 5, 4, seed=1), tiny.normal(3, 2, 5, 4, seed=2)
    t = np.array([0.0, 1.0, 0.25], np.float32)
    z = np.asarray(interpolate(*map(jnp.asarray, (x0, noise, t))))
    np.testing.assert_array_equal(z[0], x0[0])  # t = 0 is data
    np.testing.assert_array_equal(z[1], noise[1])  # t = 1 is noise
    np.testing.assert_allclose(z[2], 0.75 * x0[2] + 0.25 * noise[2], rtol=1e-6)
    loss = flow_loss(*map(jnp.asarray, (z, x0, noise)))
    expected = [np.mean((z[i] - (noise[i] - x0[i])) ** 2) for i in range(3)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not np.any(flow_loss(jnp.asarray(noise - x0), jnp.asarray(x0), jnp.asarray(noise)))


def test_velocity_that_the_right_data_implies():
    x0, noise = (jnp.asarray(tiny.normal(3, 2, 5, 4, seed=seed)) for seed in (1, 2))
    t = jnp.array([0.1, 1.0, 0.0])
    velocity = np.asarray(velocity_of_data(x0, interpolate(x0, noise, t), t))
    np.testing.assert_allclose(velocity[:2], (noise - x0)[:2], rtol=1e-4, atol=1e-5)
    assert not np.any(velocity[2])  # and finite where there is no noise left
