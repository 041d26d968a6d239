"""A model's parameters outside of the model: flat dicts, path -> array.

"mmdit/double_blocks/img/attn/qkv/kernel" and the like; the same names are used by the
configuration's patterns, the checkpoints and the weight files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from rb_jax.config import Config
from rb_jax.errors import InputError, listed
from rb_jax.models.encoders.vae import AutoencoderTrainer
from rb_jax.models.mmdit.trainer import MMDiTTrainer
from rb_jax.models.reasonbrain import ReasonBrain
from rb_jax.paths import join, split
from rb_jax.runtime.programs import recalled

Params = dict[str, Any]  # path -> array (or its jax.ShapeDtypeStruct)

# config.train.task -> the module that it trains. Each has loss(batch, rng).
MODELS: dict[str, Callable[[Config, nnx.Rngs], Any]] = {
    "edit": ReasonBrain,
    "mmdit": MMDiTTrainer,
    "autoencoder": AutoencoderTrainer,
}


def model_class(config: Config) -> Callable[[Config, nnx.Rngs], Any]:
    """The class of the module that ``config.train.task`` trains."""
    return MODELS[config.train.task]


def build(config: Config, rngs: nnx.Rngs) -> Any:
    """The module that ``config.train.task`` trains, freshly initialised."""
    return model_class(config)(config, rngs)


def definition(config: Config) -> tuple[nnx.GraphDef, Params, set[str]]:
    """The model without arrays: graph, shape of every variable, which are parameters."""
    graphdef, shapes, parameters = _definition(config, model_class(config))
    return graphdef, dict(shapes), set(parameters)


@functools.lru_cache(maxsize=16)  # seconds of tracing, asked for in many places
def _definition(config: Config, make: Callable) -> tuple[nnx.GraphDef, Params, set[str]]:
    def trace() -> tuple[nnx.GraphDef, Params, set[str]]:
        graphdef, variables = nnx.split(nnx.eval_shape(lambda: make(config, nnx.Rngs(0))))
        flat = {join(path): leaf for path, leaf in nnx.to_flat_state(variables)}
        shapes = {path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, v in flat.items()}
        return graphdef, shapes, {path for path, v in flat.items() if isinstance(v, nnx.Param)}

    return recalled("a model's definition", (config, make), trace)


def merge(graphdef: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """The module of ``graphdef`` holding the arrays of ``params``; inverse of ``flatten``."""
    leaves = [(split(path), value) for path, value in params.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def merge_partial(graphdef: nnx.GraphDef, params: Params, shapes: Mapping[str, Any]) -> Any:
    """The module with some of its arrays, for the methods that need no others (these are zeros).

    ``shapes`` are those of all. Inside a program what is not used is not computed.
    """
    zeros = {p: jnp.zeros(x.shape, x.dtype) for p, x in shapes.items() if p not in params}
    return merge(graphdef, zeros | params)


def flatten(model: nnx.Module) -> Params:
    """Every variable of a module by its "/"-joined path."""
    return {join(p): v.get_value() for p, v in nnx.to_flat_state(nnx.state(model))}


def cast_params(config: Config, params: Params) -> Params:
    """Floating arrays in the model's compute dtype; gradients pass through the cast."""
    return {path: _cast(value, jnp.dtype(config.model.dtype)) for path, value in params.items()}


def _cast(value: Array | np.ndarray, dtype: np.dtype) -> Array | np.ndarray:
    return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value


def check_weights(given: Mapping[str, Any], expected: Mapping[str, Any], where: str = "") -> None:
    """Raises InputError listing the missing, unexpected and differently shaped paths."""
    problems = [f"missing {path}" for path in sorted(set(expected) - set(given))]
    problems += [f"unexpected {path}" for path in sorted(set(given) - set(expected))]
    for path in sorted(set(given) & set(expected)):
        have, want = tuple(np.shape(given[path])), tuple(expected[path].shape)
        if have != want:
            problems.append(f"{path} has shape {have}, the model needs {want}")
    if problems:
        raise InputError(f"{where or 'weights'} do not fit the model: {listed(problems, '; ')}")
