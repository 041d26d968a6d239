"""Eight devices compute on every mesh what one device does; they live in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rb_jax.sharding.mesh import mesh_shape
from tests import quick
from tests.sharding.meshes import MESHES

ROOT = Path(__file__).parents[2]
ALL = tuple(range(len(MESHES)))
EVERYTHING = MESHES[-1]  # parameters, heads and tokens are split at once
LOSS, GRADIENT, PSNR = 1e-5, 1e-4, 60


def on_eight_devices(check: str, task: str, *meshes: int) -> dict[str, dict[str, Any]]:
    """How far the results on meshes are from one device's."""
    flags = f"--xla_force_host_platform_device_count=8 {quick.FLAGS}"
    run = subprocess.run(
        [sys.executable, "-m", "tests.sharding.meshes", check, task, *map(str, meshes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) == len(meshes)
    return {str(MESHES[int(number)]): figures for number, figures in found.items()}


def check_training(task: str, *meshes: int) -> None:
    """Losses of 20 steps, and norm by norm the gradients of the first."""
    found = on_eight_devices("trained", task, *meshes)
    far = {m: f for m, f in found.items() if f["loss"] > LOSS or f["gradient"] > GRADIENT}
    assert not far


def check_sampling(task: str, *meshes: int) -> None:
    found = on_eight_devices("forward", task, *meshes)
    assert not {m: f for m, f in found.items() if f["loss"] > LOSS or f["psnr"] < PSNR}


def test_the_flow_model_trains_on_mixed_meshes():
    check_training("mmdit", *(i for i in ALL if sum(n > 1 for n in mesh_shape(MESHES[i], 8)) > 1))


def test_the_flow_model_samples_on_every_mesh():
    check_sampling("mmdit", *ALL)


def test_the_whole_model_sees_and_paints_the_same():
    check_sampling("edit", MESHES.index(EVERYTHING))


def test_kernels_on_parts():
    """Attention and heads as on a TPU, interpreted, with tokens split over 4 and over 2 devices."""
    found = on_eight_devices("kernels", "mmdit", 4, 6)
    assert not {m: f for m, f in found.items() if max(f.values()) > LOSS}
    for figures in found.values():  # another computation than that of one device
        assert max(figures.values()) > 0


@pytest.mark.exhaustive
def test_the_flow_model_trains_on_every_mesh():
    check_training("mmdit", *ALL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mesh", ALL, ids=str)
def test_the_whole_model_trains_on_every_mesh(mesh):
    check_training("edit", mesh)


@pytest.mark.exhaustive
def test_the_whole_model_samples_on_every_mesh():
    check_sampling("edit", *ALL)


@pytest.mark.exhaustive
def test_kernels_on_parts_of_every_mesh():
    found = on_eight_devices("kernels", "mmdit", *ALL)
    assert not {m: f for m, f in found.items() if max(f.values()) > LOSS}
