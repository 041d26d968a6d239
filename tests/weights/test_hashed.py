"""The generator of fresh parameters: its numbers are as random as theirs need to be."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.weights.hashed import hashed_key


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@functools.cache
def normal(seed=0, shape=(600, 500)):
    return np.asarray(jax.random.normal(hashed_key(seed), shape))


def test_normal_numbers_are_normal():
    x = normal().astype(np.float64)
    bound = 5 / np.sqrt(x.size)
    assert abs(x.mean()) < bound and abs(x.std() - 1) < bound
    assert abs((x**3).mean()) < 4 * bound and abs((x**4).mean() - 3) < 10 * bound
    assert np.unique(x).size > 0.98 * x.size


def test_every_bit_is_set_half_of_the_time():
    bits = np.asarray(jax.random.bits(hashed_key(3), (2**16,)))
    share = ((bits[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(axis=0)
    assert np.all(abs(share - 0.5) < 5 * 0.5 / 2**8)
    counts = np.bincount(bits >> 24, minlength=256)
    assert abs(((counts - 256.0) ** 2 / 256).sum() - 255) < 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbours_have_nothing_to_do_with_each_other(axis):
    x = np.moveaxis(normal(), axis, 0)
    bound = 5 / np.sqrt(x.size)
    for distance in (1, 2, 64):
        assert abs(correlation(x[:-distance], x[distance:])) < bound
        assert abs(correlation(x[:-distance] ** 2, x[distance:] ** 2)) < bound


def test_keys_have_nothing_to_do_with_each_other():
    key = hashed_key(0)
    keys = [key, hashed_key(1), hashed_key(2**31)]
    keys += [jax.random.fold_in(key, i) for i in (0, 1, 2)] + list(jax.random.split(key, 3))
    keys += [jax.random.fold_in(keys[3], 0), jax.random.split(keys[3], 1)[0]]
    assert len({tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}) == len(keys)
    drawn = np.stack([np.asarray(jax.random.normal(k, (40_000,))) for k in keys])
    for values in (drawn, drawn**2):
        off = np.corrcoef(values) - np.eye(len(keys))
        assert abs(off).max() < 5 / np.sqrt(40_000)


def test_folded_keys_of_many_parameters_differ_in_both_halves():
    keys = jax.vmap(lambda i: jax.random.fold_in(hashed_key(0), i))(jnp.arange(10_000))
    halves = np.asarray(jax.random.key_data(keys))
    assert len(np.unique(halves, axis=0)) == 10_000
    assert all(len(np.unique(half)) > 9_990 for half in halves.T)


def test_numbers_do_not_depend_on_how_they_are_drawn():
    rows = jax.vmap(lambda key: jax.random.bits(key, (4,)))(jax.random.split(hashed_key(5), 3))
    one = [jax.random.bits(key, (4,)) for key in jax.random.split(hashed_key(5), 3)]
    np.testing.assert_array_equal(rows, np.stack(one))


ON_MESHES = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from rb_jax.weights.hashed import hashed_key
draw = lambda key: jax.random.bits(key, (12, 40))
mesh = jax.make_mesh((2, 4), ("a", "b"))
for spec in (P("a", "b"), P("b"), P(None, ("a", "b")), P()):
    layout = jax.sharding.NamedSharding(mesh, spec)
    split = jax.jit(draw, out_shardings=layout)(hashed_key(5))
    np.testing.assert_array_equal(split, draw(hashed_key(5)))
"""


def test_numbers_do_not_depend_on_the_layout():
    environ = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", ON_MESHES], check=True, env=environ)
