"""Optimizers by name, schedules, groups of rates, and spikes of the gradient."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rb_jax.config import Config, ConfigError, from_config_dict, to_config_dict
from rb_jax.sharding.mesh import make_mesh
from rb_jax.train.optimizer import OPTIMIZERS, hidden_matrices, make_optimizer, make_schedule
from rb_jax.train.state import abstract_state
from rb_jax.train.step import SPIKES_FROM, watch_norm
from tests import tiny

PARAMS = {
    "mmdit/double_blocks/img/qkv/kernel": (3, 136, 144),
    "mmdit/double_blocks/img/qkv/bias": (3, 144),
    "mllm/layers/q_proj/lora_a": (2, 5, 4),
    "cme/out/kernel": (7, 9),
    "cme/out/bias": (9,),
}


def config(steps=40, **optimizer) -> Config:
    base = Config()
    return dataclasses.replace(
        base,
        optimizer=dataclasses.replace(base.optimizer, **{"warmup_steps": 4} | optimizer),
        train=dataclasses.replace(base.train, steps=steps),
    )


def arrays(seed, scale=1.0) -> Any:
    rng = np.random.default_rng(seed)
    return {
        path: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
        for path, shape in PARAMS.items()
    }


def updated(made: Config, seed=0) -> tuple[dict, dict, Any]:
    """The first update of random gradients for random parameters."""
    tx, params, grads = make_optimizer(made), arrays(seed), arrays(seed + 1, 0.1)
    norm = optax.tree.norm(grads)
    return params, grads, tx.update(grads, tx.init(params), params, grad_norm=norm)[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_walks_down_a_bowl(name):
    made = config(name=name, learning_rate=0.05, schedule="constant", weight_decay=0.0)
    tx, target = make_optimizer(made), arrays(1)

    def loss(params):
        return sum(jnp.sum((x - target[path]) ** 2) for path, x in params.items())

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, grad_norm=optax.tree.norm(grads))
        return optax.apply_updates(params, updates), state

    params = arrays(2)
    first, state = loss(params), tx.init(params)
    for _ in range(60):
        params, state = step(params, state)
    assert loss(params) < 0.6 * first
    assert all(x.dtype == jnp.float32 for x in params.values())


def test_the_first_adamw_update_is_a_step_of_the_rate_and_decays_matrices_alone():
    rate = 1e-2
    made = config(
        learning_rate=rate,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.5,
        clip_norm=0.0,
        eps=1e-15,
    )
    params, grads, updates = updated(made)
    for path, update in updates.items():
        decay = 0.5 * params[path] if path.endswith(("kernel", "lora_a")) else 0.0
        np.testing.assert_allclose(update, -rate * (jnp.sign(grads[path]) + decay), atol=1e-5)


def test_lion_moves_by_signs():
    made = config(
        name="lion", learning_rate=1e-3, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    _, grads, updates = updated(made)
    for path, update in updates.items():
        np.testing.assert_allclose(update, -1e-3 * np.sign(grads[path]), rtol=1e-6)


def test_muon_orthogonalises_each_layer_of_the_blocks_and_nothing_else():
    chosen = [path for path, spec in hidden_matrices(arrays(0)).items() if spec is not None]
    assert chosen == ["mmdit/double_blocks/img/qkv/kernel"]
    made = config(
        name="muon", learning_rate=1.0, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    _, _, updates = updated(made)
    for layer in updates[chosen[0]]:
        values = np.linalg.svd(layer, compute_uv=False) / (0.2 * np.sqrt(144))
        assert values.min() > 0.3 and values.max() < 1.5  # five steps of Newton and Schulz


def test_adafactor_keeps_rows_and_columns():
    state = make_optimizer(config(name="adafactor")).init(arrays(0))
    kept = sum(x.size for x in jax.tree.leaves(state))
    assert kept < 0.1 * sum(int(np.prod(shape)) for shape in PARAMS.values())


def test_a_group_has_its_own_rate():
    plain = updated(config(schedule="constant"))[2]
    rates = (("mllm/**/lora_*", 0.25), ("mllm/**", 9.0), ("cme/**", 0.0))
    grouped = updated(config(schedule="constant", rates=rates))[2]
    for path, update in plain.items():
        factor = {"mllm": 0.25, "cme": 0.0}.get(path.split("/")[0], 1.0)
        np.testing.assert_array_equal(grouped[path], factor * update)


def test_a_group_that_matches_nothing_is_refused():
    tx = make_optimizer(config(rates=(("vision/**", 0.1),)))
    with pytest.raises(ConfigError, match=r"config.optimizer.rates.*vision/\*\*"):
        tx.init(arrays(0))


def test_rates_come_through_a_config_dict():
    values = to_config_dict(Config())
    values.update_from_flattened_dict({"optimizer.rates": (("mllm/**", 1),)})
    assert from_config_dict(values).optimizer.rates == (("mllm/**", 1.0),)
    values.update_from_flattened_dict({"optimizer.rates": (("mllm/**", "fast"),)})
    with pytest.raises(ConfigError, match="optimizer.rates"):
        from_config_dict(values)


def test_wsd_is_flat_and_then_falls_in_a_line():
    rate = make_schedule(
        config(50, schedule="wsd", learning_rate=2.0, decay_fraction=0.2, final_fraction=0.1)
    )
    values = np.array([rate(i) for i in range(50)])
    np.testing.assert_allclose(values[:4], [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(values[4:40], 2.0)
    np.testing.assert_allclose(np.diff(values[40:]), (0.2 - 2.0) / 9, rtol=1e-4)
    np.testing.assert_allclose(values[-1], 0.2, rtol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_state_of_every_optimizer_lies_on_a_mesh(name):
    made = tiny.config(optimizer__name=name)
    state = abstract_state(made, make_optimizer(made), make_mesh(made.mesh, jax.devices()[:1]))
    assert all(leaf.sharding is not None for leaf in jax.tree.leaves(state))


def watched(norms, factor=3.0, start=SPIKES_FROM):
    """Whether each of some norms, one after the other, is a spike; and the last average."""
    average, spikes = jnp.ones(()), []
    for norm in norms:
        spike, average = watch_norm(factor, jnp.array(start), average, jnp.float32(norm))
        spikes.append(bool(spike))
    return spikes, float(average)


def test_spikes_are_many_times_the_average():
    assert watched([1.0, 2.9, 3.5, 1.0])[0] == [False, False, True, False]
    assert watched([100.0], factor=0.0)[0] == [False]
    assert watched([100.0], start=SPIKES_FROM - 1)[0] == [False]
    spikes, average = watched([float("nan"), float("inf")])
    assert spikes == [False, False] and average == 1.0


def test_the_average_follows_a_norm_that_has_grown_for_good():
    spikes, average = watched([20.0] * 200)
    assert spikes[0] and not spikes[-1] and average > 10
