"""Fingerprints: the same however an array is laid out, and another for any other array."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.checkpoint import fingerprints

ROOT = Path(__file__).parents[2]
DTYPES = (jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (3, 5, 7), (2, 3, 4, 5)])
def test_hosts_and_devices_agree(shape, dtype):
    array = np.asarray(np.random.default_rng(0).normal(size=shape)).astype(dtype)
    on_host = fingerprints._on_host(array)
    np.testing.assert_array_equal(fingerprints._on_devices(jnp.asarray(array)), on_host)
    assert fingerprints.of({"x": array}) == fingerprints.of({"x": jnp.asarray(array)})


LAYOUTS = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from rb_jax.checkpoint import fingerprints
mesh = Mesh(np.array(jax.devices()).reshape(2, 3), ("a", "b"))
array = np.random.default_rng(0).normal(size=(6, 6, 12)).astype(np.float32)
wanted = fingerprints._on_host(array)
for spec in (P(), P("a"), P(None, "b"), P(None, None, "b"), P("a", "b"), P("b", "a", None)):
    laid_out = jax.device_put(array, NamedSharding(mesh, spec))
    found = np.asarray(fingerprints._on_devices(laid_out))
    assert (found == wanted).all(), (spec, found, wanted)
print("all agree")
"""


def test_layouts_agree():
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=6",
        "PATH": "/usr/bin:/bin",
    }
    ended = subprocess.run(
        [sys.executable, "-c", LAYOUTS], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.stdout == "all agree\n", ended.stderr


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_and_every_swap_shows(dtype):
    rng = np.random.default_rng(1)
    array = rng.integers(0, 2, size=(3, 5)).astype(dtype)
    before = fingerprints.of({"x": array})
    bits = 8 * array.nbytes
    for bit in range(0, bits, 8 if dtype == jnp.bool_ else 1):
        other = array.copy()
        other.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        assert fingerprints.of({"x": other}) != before, bit
    values = np.arange(15).reshape(3, 5).astype(np.float32)
    seen = {fingerprints.of({"x": values})["x"]}
    for axis in (0, 1):
        seen.add(fingerprints.of({"x": np.roll(values, 1, axis)})["x"])
    seen.add(fingerprints.of({"x": values.reshape(5, 3)})["x"])
    assert len(seen) == 4


def test_what_is_not_finite_is_known():
    for large in (3, fingerprints.SMALL_BYTES):
        values = np.zeros((2, large), np.float32)
        assert fingerprints.Fingerprints({"x": values}).finite()
        for wrong in (np.nan, np.inf, -np.inf):
            values[1, -1] = wrong
            assert not fingerprints.Fingerprints({"x": values, "y": np.zeros(3, np.int32)}).finite()
