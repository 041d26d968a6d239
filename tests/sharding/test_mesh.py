"""One device and eight train alike on every mesh; the eight live in a process of their own."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rb_jax.config import MeshConfig
from rb_jax.errors import InputError
from rb_jax.sharding.mesh import (
    abstract_mesh,
    batch_divisor,
    check_batch_size,
    make_mesh,
    mesh_shape,
    replicated,
    shard_batch,
)
from rb_jax.train import state as S
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.step import train_step
from rb_jax.weights import params
from tests import tiny
from tests.train import fake

ROOT = Path(__file__).parents[2]
MESHES = [
    MeshConfig(),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=2, fsdp=-1, tensor=2),
    MeshConfig(data=2, tensor=2, context=2),
    MeshConfig(data=2, fsdp=2, tensor=2, frozen="replicated"),
]


def losses(mesh_config: MeshConfig, steps: int = 3) -> list[float]:
    """Losses of a few steps of the fake model on all devices of this process."""
    params.MODELS = fake.MODELS
    config, mesh = dataclasses.replace(fake.config(), mesh=mesh_config), make_mesh(mesh_config)
    tx, graphdef = make_optimizer(config), params.definition(config)[0]
    found = []
    with jax.set_mesh(mesh):
        state = S.init_state(config, tx, mesh=mesh)
        step = jax.jit(
            lambda s, b: train_step(graphdef, config, tx, s, b),
            donate_argnums=0,
            out_shardings=(S.layout_of(state), replicated(mesh)),
        )
        for seed in range(steps):
            batch = shard_batch(mesh, tiny.batch(config, 8, seed))
            source: Any = batch.source
            assert len(source.sharding.device_set) == mesh.size
            assert source.addressable_shards[0].data.shape[0] == 8 // batch_divisor(mesh)
            state, metrics = step(state, batch)
            found += [float(metrics["loss"]), float(metrics["grad_norm"])]
    return found


def eight_devices() -> list[list[float]]:
    return [losses(mesh) for mesh in MESHES]


def test_eight_devices_train_as_one_on_every_mesh(monkeypatch):
    fake.use(monkeypatch)
    here = losses(MeshConfig())
    code = f"import json; from {__name__} import *; print(json.dumps(eight_devices()))"
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    there = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    for mesh, found in zip(MESHES, json.loads(there.stdout.splitlines()[-1]), strict=True):
        np.testing.assert_allclose(found, here, atol=1e-5, err_msg=str(mesh))


def test_one_axis_is_filled():
    assert mesh_shape(MeshConfig(), 8) == (8, 1, 1, 1)
    assert mesh_shape(MeshConfig(data=2, fsdp=-1, context=3), 24) == (2, 4, 1, 3)
    assert mesh_shape(MeshConfig(data=4, fsdp=2, slices=2), 8) == (4, 2, 1, 1)


def test_parameters_are_shared_within_a_slice_and_by_at_most_64_devices():
    assert mesh_shape(MeshConfig(fsdp=-1, tensor=2), 24) == (1, 12, 2, 1)
    assert mesh_shape(MeshConfig(fsdp=-1, slices=2), 12) == (2, 6, 1, 1)
    assert mesh_shape(MeshConfig(fsdp=-1), 192) == (3, 64, 1, 1)


@pytest.mark.parametrize(
    ("mesh", "count", "message"),
    [
        (dict(fsdp=3), 8, "may multiply to 2 or 4"),
        (dict(data=2, fsdp=2), 8, "are 4 devices and there are 8"),
        (dict(data=1, fsdp=-1, tensor=-1), 8, "only one axis can be -1"),
        (dict(tensor=0), 8, "config.mesh.tensor: must be at least 1"),
        (dict(data=3, slices=2), 3, "config.mesh.data=3: not a multiple"),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_would(mesh, count, message):
    with pytest.raises(InputError, match=message):
        mesh_shape(MeshConfig(**mesh), count)


def test_a_batch_that_does_not_divide_names_the_nearest():
    mesh = abstract_mesh((2, 3, 1, 1))
    check_batch_size(mesh, 12)
    with pytest.raises(InputError, match=r"batch_size=16 .* use 12 or 18"):
        check_batch_size(mesh, 16)
