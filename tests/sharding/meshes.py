"""The same training and sampling on one device and on every mesh of eight, for test_equality.py.

``python -m tests.sharding.meshes WHAT TASK MESH...`` prints JSON: how far each mesh (a number of
MESHES) is from one device. WHAT is a function of CHECKS.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rb_jax.checkpoint import layout
from rb_jax.config import Config, MeshConfig
from rb_jax.data.pipeline import synthetic
from rb_jax.models.layers import attention as attention_layer
from rb_jax.models.layers import qk_norm_rope as heads
from rb_jax.models.layers import splash
from rb_jax.models.layers.attention import attention
from rb_jax.sharding.mesh import make_mesh, replicated, shard_batch
from rb_jax.sharding.rules import param_shardings, state_shardings
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import TrainState, init_state
from rb_jax.train.step import train_step
from rb_jax.weights.params import cast_params, merge
from tests import tiny

MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, fsdp=4, tensor=2, frozen="replicated"),
    MeshConfig(data=1, context=8),
    MeshConfig(data=2, context=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(data=1, fsdp=2, tensor=2, context=2),
]
STEPS, ROWS = 20, 8
# 5 x 5 image and 18 conditioning tokens, 3 heads: nothing is a multiple of the axes.
SETTINGS: dict[str, Any] = dict(
    data__image_size=40,
    train__batch_size=ROWS,
    train__steps=STEPS,
    train__eval_examples=0,
    # At larger rates what rounding does to the first steps grows from step to step.
    optimizer__clip_norm=0.0,
    optimizer__learning_rate=1e-4,
    flow__drop_condition=0.3,
    data__name="synthetic",
    model__mmdit__single_blocks=2,
    train__frozen=("autoencoder/**", "mllm/language_model/layers/mlp/**"),
)


def config(task: str) -> Config:
    if task == "mmdit":
        return tiny.config(**SETTINGS | {"train__task": "mmdit", "train__frozen": ()})
    return tiny.config(**SETTINGS)


def batch(config: Config) -> Any:
    if config.train.task == "edit":
        return tiny.batch(config, ROWS)  # with padding of every kind
    return next(synthetic.batches(config))


@functools.cache
def first_state(config: Config) -> TrainState:
    """On the host."""
    return jax.device_get(init_state(config, make_optimizer(config), tiny.params(config)))


def trained(config: Config, mesh: jax.sharding.Mesh) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The losses of all steps and the first one's gradient, which Adam's first moment holds."""
    tx, graphdef = make_optimizer(config), tiny.definition(config)[0]
    state = first_state(dataclasses.replace(config, mesh=MeshConfig()))
    layouts = (state_shardings(mesh, state, config.mesh.frozen), replicated(mesh))
    state = jax.device_put(state, layouts[0])
    step = functools.partial(train_step, graphdef, config, tx)
    losses, gradient, sharded = [], {}, shard_batch(mesh, batch(config))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, donate_argnums=0, out_shardings=layouts).lower(state, sharded)
        compiled = compiled.compile()
    for _ in range(config.train.steps):
        state, metrics = compiled(state, sharded)
        losses.append(float(metrics["loss"]))
        if not gradient:
            moments = {n: x for n, x in layout.flat(state).items() if "/mu/" in n}
            scale = 1 / (1 - config.optimizer.b1)
            gradient = {n.split("/mu/")[1]: scale * np.asarray(x) for n, x in moments.items()}
    return np.array(losses), gradient


def forward(config: Config, mesh: jax.sharding.Mesh) -> tuple[np.ndarray, np.ndarray]:
    """A loss; and pictures, or the latents of a model that has no autoencoder."""
    graphdef, params = tiny.definition(config)[0], cast_params(config, tiny.params(config))
    layouts = param_shardings(mesh, params, config.mesh.frozen)
    params = {path: jax.device_put(x, layouts[path]) for path, x in params.items()}
    draw = "sample" if config.train.task == "edit" else "sample_latents"

    def run(params, batch, key):
        model = merge(graphdef, params)
        return model.loss(batch, key)[0], getattr(model, draw)(batch, key)

    with jax.set_mesh(mesh):
        compiled = jax.jit(run, out_shardings=replicated(mesh))
        made = compiled(params, shard_batch(mesh, batch(config)), jax.random.key(1))
    loss, sample = map(np.asarray, made)
    return loss[None], sample


def kernels(config: Config, mesh: jax.sharding.Mesh) -> dict[str, np.ndarray]:
    """Outputs and gradients of the kernels of a TPU, interpreted: each device runs its part."""
    names = ("qkv", "q_scale", "k_scale")
    shapes = {"qkv": (4, 264, 3 * 4 * 128), "q_scale": (128,), "k_scale": (128,)}
    given = {name: jnp.asarray(tiny.normal(*shapes[name], seed=3)) for name in names}
    angle, ids = jnp.asarray(tiny.normal(264, 64)), jnp.arange(264) // 99
    mask = jnp.asarray(tiny.normal(4, 264) > -0.5)

    def loss(given):
        q, k, v = heads.normed_heads(given["qkv"], given["q_scale"], given["k_scale"], angle)
        segments = jnp.broadcast_to(ids, mask.shape)
        out = [
            attention(q, k[:, :, ::2], v[:, :, ::2], mask, causal, (segments, segments))
            for causal in (False, True)
        ]
        return sum(jnp.sin(3 * x).sum() for x in out), {"attention": out, "q": q, "v": v}

    with jax.set_mesh(mesh):
        grads, out = jax.jit(jax.grad(loss, has_aux=True), out_shardings=replicated(mesh))(given)
    leaves = jax.tree_util.tree_leaves_with_path(out | {"gradient": grads})
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def interpreted() -> None:
    """From here on the layers run what they would run on a TPU."""
    normed = jax.custom_vjp(lambda *args: heads._forward(*args, interpret=True)[0])
    normed.defvjp(
        functools.partial(heads._forward, interpret=True),
        functools.partial(heads._backward, interpret=True),
    )
    heads._kernel, heads.platform = normed, lambda: "tpu"
    run = functools.partial(splash.splash_attention, interpret=True)
    splash.splash_attention, attention_layer.backend = run, lambda q, k: "splash"


def relative(there: np.ndarray, here: np.ndarray) -> float:
    return float(np.linalg.norm(there - here) / np.linalg.norm(here))


def far_trained(here: tuple, there: tuple) -> dict[str, Any]:
    (losses, gradient), (other_losses, other) = here, there
    assert gradient.keys() == other.keys()
    norms = {path: np.linalg.norm(g) for path, g in gradient.items()}
    floor = 1e-4 * np.linalg.norm(list(norms.values()))  # where mathematics says 0, noise remains
    errors = {
        path: float(np.linalg.norm(other[path] - g) / max(norms[path], floor))
        for path, g in gradient.items()
    }
    worst = max(errors, key=lambda path: errors[path])
    loss = float(np.max(np.abs(other_losses / losses - 1)))
    return {"loss": loss, "gradient": errors[worst], "worst": worst}


def far_forward(here: tuple, there: tuple) -> dict[str, Any]:
    mse = np.mean((here[1] - there[1]) ** 2)
    psnr = 10 * np.log10(np.ptp(here[1]) ** 2 / max(mse, 1e-30))
    return {"loss": relative(there[0], here[0]), "psnr": float(psnr)}


def far_kernels(here: dict, there: dict) -> dict[str, Any]:
    return {name: relative(there[name], value) for name, value in here.items()}


CHECKS = {
    "trained": (trained, far_trained),
    "forward": (forward, far_forward),
    "kernels": (kernels, far_kernels),
}


def main(what: str, task: str, *numbers: str) -> None:
    made, (run, far), devices = config(task), CHECKS[what], jax.devices()
    here, found = run(made, make_mesh(MeshConfig(), devices[:1])), {}
    if what == "kernels":
        interpreted()
    for number in numbers:
        mesh = make_mesh(MESHES[int(number)], devices)
        found[number] = far(here, run(dataclasses.replace(made, mesh=MESHES[int(number)]), mesh))
        print(MESHES[int(number)], found[number], file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
