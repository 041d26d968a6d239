"""One device and eight train alike; the eight virtual ones live in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rb_jax.sharding.mesh import make_mesh, replicated, shard_batch
from rb_jax.train import state as S
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.step import train_step
from tests import tiny
from tests.train import fake

ROOT = Path(__file__).parents[2]


def losses(steps: int = 4) -> list[float]:
    """Losses of a few steps of the fake model on all devices of this process."""
    S.MODELS = {"edit": (fake.__name__, "FakeBrain")}
    config, mesh = fake.config(), make_mesh()
    tx, graphdef = make_optimizer(config), S.definition(config)[0]
    state = S.init_state(config, tx, sharding=replicated(mesh))
    step = jax.jit(lambda s, b: train_step(graphdef, config, tx, s, b), donate_argnums=0)
    found = []
    for seed in range(steps):
        batch = shard_batch(mesh, tiny.batch(config, 8, seed))
        source: Any = batch.source
        assert len(source.sharding.device_set) == len(mesh.devices)
        assert source.addressable_shards[0].data.shape[0] == 8 // len(mesh.devices)
        state, metrics = step(state, batch)
        found += [float(metrics["loss"]), float(metrics["grad_norm"])]
    return found


def test_eight_devices_train_as_one(monkeypatch):
    fake.use(monkeypatch)
    here = losses()
    code = f"import json; from {__name__} import losses; print(json.dumps(losses()))"
    flags = "--xla_force_host_platform_device_count=8"
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    np.testing.assert_allclose(here, json.loads(there.stdout.splitlines()[-1]), atol=1e-5)
