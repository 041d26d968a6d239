"""One training step and one evaluation, as pure functions of the state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.config import Config
from rb_jax.train.optimizer import make_schedule
from rb_jax.train.state import TrainState, cast_params, ema_params, merge, replace
from rb_jax.types import Batch

Metrics = dict[str, Array]


def train_step(
    graphdef: nnx.GraphDef,
    config: Config,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """Next state and the step's metrics: the loss and its terms, norms, learning rate.

    Randomness depends on (config.train.seed, state.step) only. A step whose loss or gradient is
    not finite changes no parameter: it only counts, in ``step`` and in ``skipped``.
    """
    rng = jax.random.fold_in(jax.random.key(config.train.seed), state.step)

    def loss_fn(params):
        return merge(graphdef, cast_params(config, params) | state.frozen).loss(batch, rng)

    (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, params)

    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    old = (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, opt_state, ema), old
    )
    metrics = terms | {
        "loss": loss,
        "grad_norm": grad_norm,
        "param_norm": optax.tree.norm(params),
        "learning_rate": make_schedule(config)(state.step - state.skipped),
    }
    skipped = state.skipped + jnp.where(finite, 0, 1)
    state = replace(
        state, step=state.step + 1, skipped=skipped, params=params, opt_state=opt_state, ema=ema
    )
    return state, metrics | {"skipped": skipped}


def eval_step(
    graphdef: nnx.GraphDef, config: Config, state: TrainState, batch: Batch, rng: Array
) -> Metrics:
    """Loss and terms of the running average of the parameters."""
    loss, terms = ema_model(graphdef, config, state).loss(batch, rng)
    return terms | {"loss": loss}


def sample_step(
    graphdef: nnx.GraphDef, config: Config, state: TrainState, batch: Batch, rng: Array
) -> Float[Array, "B S S 3"]:
    """Edited pictures in [-1, 1] (an autoencoder's reconstructions) of the running average."""
    model = ema_model(graphdef, config, state)
    if config.train.task == "autoencoder":
        return model.reconstruct(batch)
    return model.sample(batch, rng)


def ema_model(graphdef: nnx.GraphDef, config: Config, state: TrainState) -> Any:
    """The module with the running average of its parameters, in the compute dtype."""
    return merge(graphdef, cast_params(config, ema_params(state)))
