"""The same training and sampling on one device and on every mesh of eight, for test_equality.py.

``python -m tests.sharding.meshes TASK MESH...`` prints JSON: for each mesh (a number of MESHES)
how far it is from one device.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import jax
import numpy as np

from rb_jax.config import Config, MeshConfig
from rb_jax.data import synthetic
from rb_jax.sharding.mesh import make_mesh, replicated, shard_batch
from rb_jax.sharding.rules import param_shardings, state_shardings
from rb_jax.train import checkpoint
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import cast_params, init_state, merge
from rb_jax.train.step import train_step
from tests import tiny

MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, fsdp=4, tensor=2),
    MeshConfig(data=1, context=8),
    MeshConfig(data=2, context=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(data=1, fsdp=2, tensor=2, context=2),
]
STEPS, ROWS = 20, 8
# 5 x 5 image and 18 conditioning tokens, 3 heads: nothing is a multiple of the axes.
SETTINGS: dict[str, Any] = dict(
    data__image_size=40, train__batch_size=ROWS, train__steps=STEPS, train__eval_examples=0,
    optimizer__clip_norm=0.0, flow__drop_condition=0.3, data__name="synthetic",
)  # fmt: skip


def config(task: str) -> Config:
    if task == "mmdit":
        return tiny.config(**SETTINGS, train__task="mmdit", train__frozen=())
    return tiny.config(**SETTINGS)


def batch(config: Config) -> Any:
    if config.train.task == "edit":
        return tiny.batch(config, ROWS)  # with padding of every kind
    return next(synthetic.batches(config))


def trained(config: Config, mesh: jax.sharding.Mesh) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The losses of all steps and the first one's gradient, which Adam's first moment holds."""
    tx, graphdef = make_optimizer(config), tiny.definition(config)[0]
    state = init_state(config, tx, tiny.params(config), mesh)
    layouts = (state_shardings(mesh, state), replicated(mesh))
    step = functools.partial(train_step, graphdef, config, tx)
    losses, gradient, sharded = [], {}, shard_batch(mesh, batch(config))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, donate_argnums=0, out_shardings=layouts).lower(state, sharded)
        compiled = compiled.compile()
    for _ in range(config.train.steps):
        state, metrics = compiled(state, sharded)
        losses.append(float(metrics["loss"]))
        if not gradient:
            moments = {n: x for n, x in checkpoint.flat(state).items() if "/mu/" in n}
            scale = 1 / (1 - config.optimizer.b1)
            gradient = {n.split("/mu/")[1]: scale * np.asarray(x) for n, x in moments.items()}
    return np.array(losses), gradient


def sampled(config: Config, mesh: jax.sharding.Mesh) -> np.ndarray:
    """Pictures, or the latents of a model that has no autoencoder."""
    graphdef, params = tiny.definition(config)[0], cast_params(config, tiny.params(config))
    layouts = param_shardings(mesh, params)
    params = {path: jax.device_put(x, layouts[path]) for path, x in params.items()}
    draw = "sample" if config.train.task == "edit" else "sample_latents"

    def sample(params, batch, key):
        return getattr(merge(graphdef, params), draw)(batch, key)

    with jax.set_mesh(mesh):
        run = jax.jit(sample, out_shardings=replicated(mesh))
        return np.asarray(run(params, shard_batch(mesh, batch(config)), jax.random.key(1)))


def results(task: str, mesh: jax.sharding.Mesh) -> tuple[np.ndarray, dict, np.ndarray]:
    made = config(task)
    return *trained(made, mesh), sampled(made, mesh)


def distance(here: tuple, there: tuple) -> dict[str, Any]:
    """Of losses, gradients and samples from those of one device, ``here``."""
    (losses, gradient, sample), (other_losses, other_gradient, other_sample) = here, there
    assert gradient.keys() == other_gradient.keys()
    norms = {path: np.linalg.norm(g) for path, g in gradient.items()}
    floor = 1e-4 * np.linalg.norm(list(norms.values()))  # where mathematics says 0, noise remains
    errors = {
        path: np.linalg.norm(other_gradient[path] - g) / max(norms[path], floor)
        for path, g in gradient.items()
    }
    worst = max(errors, key=lambda path: errors[path])
    mse = np.mean((sample - other_sample) ** 2)
    return {
        "loss": float(np.max(np.abs(other_losses / losses - 1))),
        "gradient": float(errors[worst]),
        "worst": worst,
        "psnr": float(10 * np.log10(np.ptp(sample) ** 2 / max(mse, 1e-30))),
    }


def main(task: str, *numbers: str) -> None:
    devices = jax.devices()
    here = results(task, make_mesh(MeshConfig(), devices[:1]))
    found = {}
    for number in map(int, numbers):
        found[number] = distance(here, results(task, make_mesh(MESHES[number], devices)))
        print(MESHES[number], found[number], file=sys.stderr, flush=True)
    moved = float(abs(here[0][-1] / here[0][0] - 1))
    print(json.dumps({"meshes": found, "moved": moved}))


if __name__ == "__main__":
    main(*sys.argv[1:])
