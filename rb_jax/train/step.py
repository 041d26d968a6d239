"""One training step and one evaluation, as pure functions of the state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rb_jax.config import Config, RematConfig
from rb_jax.models.types import AnyBatch, Batch, FeatureBatch
from rb_jax.sharding.activations import constrain
from rb_jax.sharding.rules import constrain_params, is_vector
from rb_jax.train.flops import count_flops
from rb_jax.train.optimizer import make_schedule
from rb_jax.train.state import TrainState, ema_params, replace, trainable_paths
from rb_jax.weights.params import Params, cast_params, definition, merge

Metrics = dict[str, Array]
NORM_DECAY = 0.98  # of the running average of the gradient's norm
SPIKES_FROM = 50  # updates, before which that average says too little


def train_step(
    graphdef: nnx.GraphDef,
    config: Config,
    tx: optax.GradientTransformationExtraArgs,
    state: TrainState,
    batch: AnyBatch,
) -> tuple[TrainState, Metrics]:
    """Next state and the step's metrics: the loss and its terms, norms, learning rate.

    Randomness depends on (config.train.seed, state.step) only. A step whose loss or gradient is
    not finite, or whose gradient is a spike (config.optimizer.spike_factor), changes no parameter:
    it only counts, in ``step`` and in ``skipped``.
    """
    rng = jax.random.fold_in(jax.random.key(config.train.seed), state.step)

    def loss_fn(params, batch, rows):
        params = constrain_params(cast_params(config, params))
        return merge(graphdef, params | state.frozen).loss(batch, rng, rows)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, terms), grads = accumulate(grad_fn, state.params, batch, config.train.accumulation)
    norms = stage_norms(grads)
    grad_norm = jnp.sqrt(sum((norm**2 for norm in norms.values()), jnp.zeros(())))
    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(grads, state.opt_state, state.params, grad_norm=grad_norm)
        params: Any = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))

    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    factor, updated = config.optimizer.spike_factor, state.step - state.skipped
    spike, norm_average = watch_norm(factor, updated, state.norm_average, grad_norm)
    kept = finite & ~spike
    old = (state.params, state.opt_state)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(kept, new, old), (params, opt_state), old
    )
    share = jnp.where(kept, 1 - decay, 0.0)
    ema = {path: old + share * (params[path] - old) for path, old in state.ema.items()}
    skipped = state.skipped + jnp.where(kept, 0, 1)
    metrics = terms | {
        "loss": loss,
        "grad_norm": grad_norm,
        **{f"grad_norm/{stage}": norm for stage, norm in norms.items() if len(norms) > 1},
        "learning_rate": make_schedule(config)(state.step - state.skipped),
        "spikes": spike.astype(jnp.float32),
        "skipped": skipped,
    }
    state = replace(
        state,
        step=state.step + 1,
        skipped=skipped,
        norm_average=norm_average,
        params=params,
        opt_state=opt_state,
        ema=ema,
    )
    return state, metrics


def watch_norm(
    factor: float, updates: Int[Array, ""], average: Float[Array, ""], norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Whether a gradient's norm is a spike after so many updates; the running average with it.

    A spike enters the average as the largest norm that is none, so that the average follows when
    the norm has grown for good.
    """
    limit = factor * average if factor else jnp.inf
    finite, begun = jnp.isfinite(norm), average > 0
    spike = finite & begun & (updates >= SPIKES_FROM) & (norm > limit)
    moved = average + (1 - NORM_DECAY) * (jnp.minimum(norm, limit) - average)
    return spike, jnp.where(finite, jnp.where(begun, moved, norm), average)


def shapes(batch: AnyBatch) -> tuple[tuple[int, ...], ...]:
    """Of all arrays: batches that have the same can use the same program."""
    return tuple(x.shape for x in jax.tree.leaves(batch))


def model_flops(config: Config, batch: Any) -> float:
    """What the mathematics of a step asks for: the loss and its gradient, nothing run again.

    A trained product costs three forward ones, a frozen one that a gradient passes two. ``batch``
    may be shapes.
    """
    config = dataclasses.replace(config, remat=RematConfig())
    graphdef, shapes, names = definition(config)
    trained = trainable_paths(config, names)
    shapes = jax.eval_shape(functools.partial(cast_params, config), shapes)
    params = {path: x for path, x in shapes.items() if path in trained}
    frozen = {path: x for path, x in shapes.items() if path not in trained}

    def gradient(params, frozen, batch):
        def loss(params):
            return merge(graphdef, params | frozen).loss(batch, jax.random.key(0))[0]

        return jax.grad(loss)(params)

    return count_flops(gradient, params, frozen, batch)


def stage_norms(tree: Params) -> dict[str, Float[Array, ""]]:
    """Stage (the paths' first name) -> root of the sum of its squares.

    The many vectors of a stage count as one, not as a kernel each.
    """
    stages: dict[str, Params] = {}
    for path, x in tree.items():
        stages.setdefault(path.split("/")[0], {})[path] = x.astype(jnp.float32)
    return {stage: _norm(arrays) for stage, arrays in stages.items()}


def _norm(arrays: Params) -> Float[Array, ""]:
    vectors = [x.ravel() for path, x in arrays.items() if is_vector(path, x.shape)]
    others = [x for path, x in arrays.items() if not is_vector(path, x.shape)]
    joined = [jnp.concatenate(vectors)] if vectors else []
    return jnp.sqrt(sum((jnp.sum(x * x) for x in [*joined, *others]), jnp.zeros(())))


def accumulate(
    grad_fn: Callable, params: Params, batch: AnyBatch, parts: int
) -> tuple[Any, Params]:
    """``grad_fn(params, batch, rows)`` over ``parts`` of the batch, one after the other, averaged.

    A part takes every ``parts``-th row, so that each device keeps working on rows it has.
    """
    count = jax.tree.leaves(batch)[0].shape[0]
    rows = jnp.arange(count)
    if parts == 1:
        return grad_fn(params, batch, rows)

    def cut(x):
        return x.reshape(count // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        part = jax.tree.map(lambda x: constrain(x, "batch"), part)
        return jax.tree.map(jnp.add, total, grad_fn(params, *part)), None

    cut_up = jax.tree.map(cut, (batch, rows))
    shapes = jax.eval_shape(grad_fn, params, *jax.tree.map(lambda x: x[0], cut_up))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, cut_up)
    return jax.tree.map(lambda x: x / parts, total)


def eval_step(
    graphdef: nnx.GraphDef, config: Config, state: TrainState, batch: AnyBatch, rng: Array
) -> Metrics:
    """Loss and terms of the running average of the parameters."""
    loss, terms = ema_model(graphdef, config, state).loss(batch, rng)
    return terms | {"loss": loss}


def sample_step(
    graphdef: nnx.GraphDef,
    config: Config,
    state: TrainState,
    batch: Batch | FeatureBatch,
    rng: Array,
) -> Float[Array, "B _ _ _"]:
    """Edited pictures in [-1, 1] (an autoencoder's reconstructions) of the running average.

    Of features their latents [B H W C].
    """
    model = ema_model(graphdef, config, state)
    if isinstance(batch, FeatureBatch):
        return model.sample_latents(batch, rng)
    if config.train.task == "autoencoder":
        return model.reconstruct(batch)
    return model.sample(batch, rng)


def ema_model(graphdef: nnx.GraphDef, config: Config, state: TrainState) -> Any:
    """The module with the running average of its parameters, in the compute dtype."""
    return merge(graphdef, cast_params(config, ema_params(state)))
