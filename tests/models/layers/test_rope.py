"""Rotary embeddings in both conventions, against multiplication by complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.models.layers.rope import angles, axes_angles, rotate_half, rotate_interleaved
from tests.models import reference

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def interleaved(x, angle):
    """One angle for all rows, as the MMDiT has it."""
    return jnp.stack([rotate_interleaved(x[i : i + 1], angle[i])[0] for i in range(len(x))])


CONVENTIONS = [
    (interleaved, reference.rotate_interleaved),
    (rotate_half, reference.rotate_half),
]


def test_angles():
    positions = jnp.array([[0, 1, 5], [2, 9, 30]])
    expected = np.asarray(positions)[..., None] * reference.frequencies(8, 500.0)
    np.testing.assert_allclose(angles(positions, 8, 500.0), expected, rtol=1e-6)


def test_axes_fill_their_share_of_the_pairs():
    ids = jnp.array([[0, 3, 1], [1, 0, 7]])
    out = axes_angles(ids, (4, 8, 2), 100.0)
    assert out.shape == (2, 2 + 4 + 1)
    parts = [
        np.asarray(ids)[:, a, None] * reference.frequencies(d, 100.0)
        for a, d in enumerate((4, 8, 2))
    ]
    np.testing.assert_allclose(out, np.concatenate(parts, -1), rtol=1e-6)


@pytest.mark.parametrize(("rotate", "by_complex"), CONVENTIONS)
def test_rotation_is_multiplication_by_complex_numbers(rotate, by_complex):
    x, angle = normal(2, 5, 3, 8), normal(2, 5, 4)
    out, x, angle = (np.asarray(a) for a in (jax.jit(rotate)(x, angle), x, angle))
    for row in range(2):
        np.testing.assert_allclose(out[row], by_complex(x[row], angle[row]), atol=2e-6)
    norms = [np.linalg.norm(y, axis=-1) for y in (out, x)]
    np.testing.assert_allclose(*norms, rtol=1e-5)


@pytest.mark.parametrize(("rotate", "_"), CONVENTIONS)
def test_products_depend_on_the_distance_alone(rotate, _):
    q, k = normal(1, 1, 2, 8), normal(1, 1, 2, 8)

    def product(i, j):
        at = [rotate(x, angles(jnp.array([[p]]), 8, 100.0)) for x, p in ((q, i), (k, j))]
        return np.asarray(at[0] * at[1]).sum(-1)

    np.testing.assert_allclose(product(3, 1), product(12, 10), rtol=1e-4, atol=1e-5)
    assert np.abs(product(3, 1) - product(1, 3)).max() > 1e-3


def test_conventions_differ_by_a_permutation_of_channels():
    x, angle = normal(1, 5, 2, 8), normal(1, 5, 4)
    order = np.array([0, 4, 1, 5, 2, 6, 3, 7])
    halves = rotate_half(x, angle)[..., order]
    np.testing.assert_allclose(interleaved(x[..., order], angle), halves, atol=2e-6)


def test_half_precision_is_kept_outside_only():
    x = normal(1, 1, 1, 4).astype(jnp.bfloat16)
    angle = jnp.array([[[1000.25, 0.125]]])
    out = rotate_half(x, angle)
    assert out.dtype == x.dtype
    exact = reference.rotate_half(np.asarray(x[0], np.float64), np.asarray(angle[0]))
    np.testing.assert_allclose(np.asarray(out[0], np.float64), exact, rtol=8e-3, atol=8e-3)
