"""What training carries from step to step, and which parameters it may change.

Parameters live outside the model in flat dicts, "mmdit/double_blocks/img/attn/qkv/kernel" -> array;
the same names are used by the configuration's patterns, the checkpoints and the weight files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from rb_jax.config import Config, ConfigError
from rb_jax.models.types import ENCODERS, STAGES, record
from rb_jax.paths import matches
from rb_jax.runtime import programs
from rb_jax.runtime.compiling import fast_compile
from rb_jax.sharding.mesh import AnyMesh
from rb_jax.sharding.rules import state_shardings
from rb_jax.weights.hashed import hashed_key
from rb_jax.weights.params import (
    Params,
    build,
    cast_params,
    check_weights,
    definition,
    flatten,
)


@record
class TrainState:
    step: Int[Array, ""]  # batches consumed; the rng and the sample order are functions of it
    skipped: Int[Array, ""]  # of those, how many changed nothing: non-finite gradients and spikes
    norm_average: Float[Array, ""]  # running average of the gradient's norm
    params: Params  # trainable, in config.train.param_dtype
    frozen: Params  # never changed, in the model's compute dtype
    opt_state: optax.OptState
    ema: Params  # running average of ``params``, float32; empty with config.train.ema_decay 0


def init_state(
    config: Config,
    tx: optax.GradientTransformation,
    weights: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
    """A state at step 0, created in its layout on ``mesh`` (default: one device).

    ``weights`` replaces the random values of the paths it names. Raises ConfigError when a pattern
    of config.train.trainable or .frozen matches nothing, or when nothing is left to train.
    """
    _, shapes, parameters = definition(config)
    trainable = trainable_paths(config, parameters)
    weights = dict(weights or {})
    check_weights(weights, {path: shapes[path] for path in shapes if path in weights})
    create = functools.partial(_create, config, tx, trainable)
    layout = None
    if mesh is not None:
        layout = _layout(config, mesh, _abstract(config, tx, trainable, shapes))
    devices = jax.devices() if mesh is None else mesh.devices.flat
    options = fast_compile({d.platform for d in devices})
    jitted = jax.jit(create, out_shardings=layout)
    args = hashed_key(config.train.seed), weights
    about = config, args, layout
    program = programs.find("a fresh state", about)
    if program is None:
        program = programs.compile_and_keep("a fresh state", about, jitted.lower(*args), options)
    return program(*args)


def abstract_state(
    config: Config, tx: optax.GradientTransformation, mesh: AnyMesh | None = None
) -> TrainState:
    """The shapes, dtypes and (on a mesh) layout of ``init_state``'s result, without its arrays."""
    _, shapes, parameters = definition(config)
    state = _abstract(config, tx, trainable_paths(config, parameters), shapes)
    if mesh is None:
        return state
    return jax.tree.map(
        lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
        state,
        _layout(config, mesh, state),
    )


def _layout(config: Config, mesh: AnyMesh, state: TrainState) -> TrainState:
    return state_shardings(mesh, state, config.mesh.frozen)


def layout_of(state: TrainState) -> TrainState:
    """The sharding of each array of a state, as a tree of the same structure."""
    return jax.tree.map(lambda x: x.sharding, state)


def _abstract(config: Config, tx, trainable: set[str], shapes: Params) -> TrainState:
    return jax.eval_shape(functools.partial(_state, config, tx, trainable), shapes)


def _create(config: Config, tx, trainable: set[str], key, weights: Params) -> TrainState:
    return _state(config, tx, trainable, flatten(build(config, nnx.Rngs(key))) | weights)


def _state(config: Config, tx, trainable: set[str], values: Params) -> TrainState:
    """At step 0, with these values of all the model's arrays."""
    params = {p: values[p].astype(config.train.param_dtype) for p in sorted(trainable)}
    frozen = cast_params(config, {p: values[p] for p in sorted(set(values) - trainable)})
    # float32, since what a step adds is lost in bfloat16; buffers of its own, since the state is
    # donated.
    ema = {p: jnp.array(x, jnp.float32, copy=True) for p, x in params.items()}
    ema = ema if config.train.ema_decay else {}
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, skipped, jnp.zeros(()), params, frozen, tx.init(params), ema)


def trainable_paths(config: Config, paths: Iterable[str]) -> set[str]:
    """Paths that some pattern of train.trainable matches and none of train.frozen does.

    ``*`` stands for any part of one name and ``**`` for any number of whole names. Raises
    ConfigError naming the key and the pattern when one matches no path.
    """
    paths = set(paths)
    chosen = {}
    for key in ("trainable", "frozen"):
        chosen[key] = set()
        for pattern in getattr(config.train, key):
            matched = {path for path in paths if matches(pattern, path)}
            absent = config.data.inputs == "features" and pattern.split("/")[0] in ENCODERS
            if not matched and not absent:
                raise ConfigError(f"config.train.{key}: pattern {pattern!r} matches no parameter")
            chosen[key] |= matched
    trainable = chosen["trainable"] - chosen["frozen"]
    if not trainable:
        raise ConfigError("config.train.trainable: every parameter is frozen, nothing to train")
    return trainable


def parameter_report(state: TrainState) -> str:
    """A table of trainable and frozen parameter counts and of bytes, a row for each stage."""
    rows: dict[str, list[float]] = {}
    for column, params in enumerate((state.params, state.frozen)):
        for path, value in params.items():
            row = rows.setdefault(path.split("/")[0], [0, 0, 0])
            row[column] += value.size
            row[2] += value.size * value.dtype.itemsize
    rows = {stage: rows[stage] for stage in sorted(rows, key=STAGES.index)}
    rows["total"] = [sum(row[i] for row in rows.values()) for i in range(3)]
    width = max(len(name) for name in rows) + 2
    lines = [f"{'parameters':<{width}}{'trainable':>13}{'frozen':>13}{'bytes':>13}"]
    for name, (trained, frozen, size) in rows.items():
        cells = f"{trained / 1e6:>11.3f} M{frozen / 1e6:>11.3f} M{size / 1e6:>10.2f} MB"
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)


def ema_params(state: TrainState) -> Params:
    """All the model's arrays, the trainable ones as their running average if there is one."""
    return dict(state.params) | state.ema | state.frozen


def replace(state: TrainState, **changes: Any) -> TrainState:
    return dataclasses.replace(state, **changes)
