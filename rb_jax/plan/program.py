"""The programs that a configuration runs, lowered for devices that need not be here."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rb_jax.config import Config, from_config_dict
from rb_jax.data.pipeline.synthetic import batch_shapes
from rb_jax.sharding.mesh import batch_sharding, check_batch_size, make_mesh, replicated
from rb_jax.sharding.rules import param_shardings
from rb_jax.train import step
from rb_jax.train.flops import count_flops
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import abstract_state, layout_of, trainable_paths
from rb_jax.weights.params import Params, cast_params, definition, merge


def lower(
    devices: Sequence[Any], config: Mapping[str, Any], program: str = "train"
) -> jax.stages.Lowered:
    """The training step, or the whole sampler, exactly as ``rb-jax train`` compiles it.

    ``config`` is a configuration as nested dicts. Raises InputError when the mesh or the batch
    does not fit the devices.
    """
    settings = from_config_dict(config)
    mesh = make_mesh(settings.mesh, devices)
    check_batch_size(mesh, settings.train.batch_size)
    traced = _train(settings, mesh) if program == "train" else _sample(settings, mesh)
    platform: str = devices[0].platform
    platform = "cuda" if platform == "gpu" else platform
    with jax.set_mesh(mesh):
        return traced().lower(lowering_platforms=(platform,))


def _train(config: Config, mesh: jax.sharding.Mesh):
    tx = make_optimizer(config)
    state = abstract_state(config, tx, mesh)
    run = functools.partial(step.train_step, definition(config)[0], config, tx)
    layouts = (layout_of(state), replicated(mesh))
    jitted = jax.jit(run, donate_argnums=0, out_shardings=layouts)
    return lambda: jitted.trace(state, _batch(config, mesh))


def _sample(config: Config, mesh: jax.sharding.Mesh):
    """All Euler steps, from a batch to latents, with weights in the compute dtype."""
    graphdef, shapes = definition(config)[0], sampler_weights(config)
    layouts = param_shardings(mesh, shapes, config.mesh.frozen)
    params = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layouts[path])
        for path, x in shapes.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))

    def sample(params, batch, key):
        return merge(graphdef, params).sample_latents(batch, key)

    return lambda: jax.jit(sample).trace(params, _batch(config, mesh), key)


def sampler_weights(config: Config) -> Params:
    """Shapes of all weights in the compute dtype."""
    return jax.eval_shape(functools.partial(cast_params, config), definition(config)[1])


def _batch(config: Config, mesh: jax.sharding.Mesh):
    layout = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
        batch_shapes(config, config.train.batch_size),
    )


def model_flops(config: Config, program: str = "train") -> float:
    """What the mathematics asks for, of a training step or of the whole sampler."""
    batch = batch_shapes(config, config.train.batch_size)
    if program == "train":
        return step.model_flops(config, batch)
    graphdef, shapes, key = definition(config)[0], sampler_weights(config), jax.random.key(0)
    return count_flops(lambda p, b: merge(graphdef, p).sample_latents(b, key), shapes, batch)


@functools.lru_cache(maxsize=8)
def parameters(config: Config) -> tuple[int, int]:
    """How many there are, and how many of them train."""
    _, shapes, names = definition(config)
    trained = trainable_paths(config, names)
    sizes = {path: math.prod(shape.shape) for path, shape in shapes.items()}
    return sum(sizes.values()), sum(sizes[path] for path in trained)
