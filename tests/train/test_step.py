"""The training step: parts of a batch, small precisions, adapters."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import reason50k_flux
from rb_jax.checkpoint import layout
from rb_jax.data.pipeline import synthetic
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import ema_params, init_state, trainable_paths
from rb_jax.train.step import train_step
from tests import tiny

FLOW = dict(
    train__task="mmdit",
    train__frozen=(),
    train__eval_examples=0,
    data__name="synthetic",
    train__batch_size=8,
    optimizer__eps=1e-5,
    flow__drop_condition=0.3,
)


def flow_config(**changes):
    """The flow model alone, on noise."""
    return tiny.config(**FLOW | changes)


def stepped(config, batch, steps=1, weights=None):
    """The state before and after some steps, and their metrics."""
    tx, graphdef = make_optimizer(config), tiny.definition(config)[0]
    first = init_state(config, tx, tiny.params(config) if weights is None else weights)
    step = jax.jit(functools.partial(train_step, graphdef, config, tx))
    state, metrics = first, []
    for _ in range(steps):
        state, made = step(state, batch)
        metrics.append(jax.device_get(made))
    return first, state, metrics


def flow_batch(config):
    return jax.tree.map(jnp.asarray, next(synthetic.batches(config)))


def check_parts(config, batch, counts):
    """One step on the whole batch and on parts of it."""
    _, whole, metrics = stepped(config, batch)
    for parts in counts:
        train = dataclasses.replace(config.train, accumulation=parts)
        first, state, others = stepped(dataclasses.replace(config, train=train), batch)
        for name in ("loss", "grad_norm", "loss_flow"):
            np.testing.assert_allclose(others[0][name], metrics[0][name], 1e-5, err_msg=name)
        for path, value in whole.params.items():
            assert np.any(value != first.params[path])
            np.testing.assert_allclose(state.params[path], value, atol=1e-6, err_msg=path)


def test_parts_of_a_batch_make_the_same_update():
    config = flow_config()
    check_parts(config, flow_batch(config), (2, 4))


@pytest.mark.exhaustive
def test_parts_of_a_batch_make_the_same_update_of_the_whole_model():
    config = tiny.config(train__batch_size=8, optimizer__eps=1e-5, flow__drop_condition=0.3)
    check_parts(config, jax.tree.map(jnp.asarray, tiny.batch(config, 8)), (1, 2, 4))


def test_losses_of_parts_average_to_the_whole_models_loss():
    config = tiny.config(flow__drop_condition=0.3)
    batch, key = tiny.batch(config, 4), jax.random.key(2)
    run = tiny.jit(lambda model, b, rows: model.loss(b, key, rows)[1], config)
    whole = run(tiny.params(config), batch, jnp.arange(4))
    parts = []
    for rows in (np.array([0, 2]), np.array([1, 3])):
        part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        parts.append(run(tiny.params(config), part, jnp.asarray(rows)))
    for name, value in whole.items():
        added = parts[0][name] + parts[1][name]
        if value.ndim:  # [sum, count]
            np.testing.assert_allclose(added, value, rtol=1e-4)
            continue
        assert abs(parts[0][name] - parts[1][name]) > 1e-3
        np.testing.assert_allclose(added / 2, value, rtol=1e-4)


@pytest.mark.parametrize(("params", "moments"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_small_precisions_train(params, moments):
    config = flow_config(
        train__param_dtype=params,
        optimizer__moment_dtype=moments,
        train__ema_decay=0.5,
        model__dtype="bfloat16",
        train__steps=40,
        optimizer__learning_rate=3e-3,
        flow__drop_condition=0.0,
        optimizer__b2=0.9,
    )
    first, last, metrics = stepped(config, flow_batch(config), 40, weights={})
    dtypes = jax.tree.map(lambda x: x.dtype, first)
    assert dtypes == jax.tree.map(lambda x: x.dtype, last)
    assert {x.dtype for x in last.params.values()} == {jnp.dtype(params)}
    assert {x.dtype for x in last.ema.values()} == {jnp.dtype("float32")}
    arrays = layout.flat(last)
    assert {x.dtype for n, x in arrays.items() if "/mu/" in n} == {jnp.dtype(moments)}
    assert int(last.skipped) == 0 and metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]
    still = {path for path in first.params if np.all(last.params[path] == first.params[path])}
    # Beside 1, bfloat16 has nothing within a step's reach.
    ones = {path for path in first.params if path.endswith("scale")}
    assert still <= (ones if params == "bfloat16" else set())


def test_without_a_running_average_the_parameters_are_what_is_evaluated():
    config = flow_config(train__ema_decay=0.0)
    _, state, _ = stepped(config, flow_batch(config))
    assert state.ema == {}
    for path, value in ema_params(state).items():
        np.testing.assert_array_equal(value, (dict(state.params) | state.frozen)[path])


def test_adapters_alone_change():
    """With the patterns of the preset, of which the flow model alone has one."""
    preset: Any = reason50k_flux.get_config("lora")
    pattern = preset.train.trainable[1]
    config = flow_config(
        train__trainable=(pattern,), model__mmdit__lora_rank=3, model__mmdit__lora_alpha=6.0
    )
    paths = tiny.definition(config)[2]
    assert trainable_paths(config, paths) == {p for p in paths if "/lora_" in p}
    assert len(trainable_paths(config, paths)) == 2 * (2 * 4 + 2)
    first, last, _ = stepped(config, flow_batch(config), 2)
    for path in first.params:
        assert np.any(last.params[path] != first.params[path]), path
    jax.tree.map(np.testing.assert_array_equal, last.frozen, first.frozen)
