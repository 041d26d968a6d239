"""What is trained, what is frozen, and what a step does to either."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.config import ConfigError
from rb_jax.errors import InputError
from rb_jax.runtime.compiling import fast_compile
from rb_jax.train import state as S
from rb_jax.train.optimizer import decayed, make_optimizer, make_schedule
from rb_jax.train.step import train_step
from rb_jax.weights.params import merge
from tests import tiny
from tests.train import fake

PATHS = ("mllm/embed", "mllm/blocks/0/q/lora_a", "mllm/blocks/0/q/kernel", "text/x", "mllm/lora_b")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**", PATHS),
        ("mllm/**", [p for p in PATHS if p.startswith("mllm/")]),
        ("mllm/**/lora_*", ["mllm/blocks/0/q/lora_a", "mllm/lora_b"]),
        ("**/lora_*", ["mllm/blocks/0/q/lora_a", "mllm/lora_b"]),
        ("mllm/*", ["mllm/embed", "mllm/lora_b"]),
        ("mllm/**/q/*", ["mllm/blocks/0/q/lora_a", "mllm/blocks/0/q/kernel"]),
        ("text", []),
        ("tex?/x", []),
    ],
)
def test_patterns(pattern, expected):
    assert sorted(p for p in PATHS if S.matches(pattern, p)) == sorted(expected)


def test_frozen_wins_and_unmatched_patterns_are_named():
    config = fake.config(trainable=("mllm/**",), frozen=("**/lora_a",))
    assert S.trainable_paths(config, PATHS) == {p for p in PATHS[:-2] if "lora_a" not in p} | {
        "mllm/lora_b"
    }
    for key in ("trainable", "frozen"):
        with pytest.raises(ConfigError, match=rf"config.train.{key}: pattern 'nose/\*\*'"):
            S.trainable_paths(fake.config(**{key: ("**", "nose/**")}), PATHS)
    with pytest.raises(ConfigError, match="nothing to train"):
        S.trainable_paths(fake.config(frozen=("**",)), PATHS)


def test_dtypes_of_master_and_frozen(monkeypatch):
    fake.use(monkeypatch)
    config = fake.config(frozen=("autoencoder/**", "text/**"))
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    state, step = stepper(half)
    assert {x.dtype for x in state.params.values()} == {jnp.dtype("float32")}
    assert {x.dtype for x in state.frozen.values()} == {jnp.dtype("bfloat16")}
    assert state.ema.keys() == state.params.keys()
    state, metrics = step(state, batch_of(half))
    assert {x.dtype for x in state.params.values()} == {jnp.dtype("float32")}
    assert np.isfinite(metrics["loss"])
    report = S.parameter_report(state)
    assert "mllm" in report and "total" in report and "frozen" in report


def batch_of(config, seed=0):
    return jax.tree.map(jnp.asarray, tiny.batch(config, 4, seed))


def stepper(config):
    tx = make_optimizer(config)
    step = functools.partial(train_step, S.definition(config)[0], config, tx)
    return S.init_state(config, tx), jax.jit(step)


def test_step_trains_the_trainable_and_averages_it(monkeypatch):
    fake.use(monkeypatch)
    config = fake.config(ema_decay=0.5)
    first, step = stepper(config)
    second, metrics = step(first, batch_of(config))
    for path in first.params:
        assert np.any(first.params[path] != second.params[path]), path
        average = 0.1 * first.params[path] + 0.9 * second.params[path]  # (1 + 0) / (10 + 0)
        np.testing.assert_allclose(second.ema[path], average, atol=1e-6)
    for path in first.frozen:
        np.testing.assert_array_equal(first.frozen[path], second.frozen[path])
    assert int(second.step) == 1 and int(second.skipped) == 0
    np.testing.assert_allclose(metrics["learning_rate"], 0.5e-2, rtol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(monkeypatch):
    fake.use(monkeypatch)
    config = fake.config()
    state, step = stepper(config)
    original = fake.FakeBrain.loss
    monkeypatch.setattr(
        fake.FakeBrain,
        "loss",
        lambda self, batch, rng, rows: jax.tree.map(
            lambda x: jnp.where(batch.source[0, 0, 0, 0] == 0, jnp.nan, 1.0) * x,
            original(self, batch, rng, rows),
        ),
    )
    good = batch_of(config)
    good = dataclasses.replace(good, source=jnp.maximum(good.source, 1))
    bad = dataclasses.replace(good, source=good.source.at[0, 0, 0, 0].set(0))
    first, _ = step(state, good)
    second, metrics = step(first, bad)
    assert (int(second.step), int(second.skipped)) == (2, 1)
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(first, name), getattr(second, name))
    assert np.isnan(metrics["loss"]) and int(metrics["skipped"]) == 1
    third, metrics = step(second, good)
    assert any(np.any(third.params[p] != second.params[p]) for p in third.params)
    np.testing.assert_allclose(metrics["learning_rate"], make_schedule(config)(1), rtol=1e-6)


def test_schedule():
    rate = make_schedule(fake.config(steps=101))
    np.testing.assert_allclose([rate(0), rate(1), rate(2)], [5e-3, 1e-2, 1e-2], rtol=1e-3)
    np.testing.assert_allclose(rate(100), 0.05 * 1e-2, rtol=1e-5)
    constant = fake.config()
    constant = dataclasses.replace(
        constant, optimizer=dataclasses.replace(constant.optimizer, schedule="constant")
    )
    np.testing.assert_allclose(make_schedule(constant)(5), 1e-2, rtol=1e-6)


def test_weight_decay_reaches_matrices_only():
    assert decayed({"a/kernel": 0, "a/bias": 0, "a/lora_a": 0, "a/scale": 0, "embedding": 0}) == {
        "a/kernel": True,
        "a/bias": False,
        "a/lora_a": True,
        "a/scale": False,
        "embedding": False,
    }


def test_given_weights_replace_the_random_ones(monkeypatch):
    fake.use(monkeypatch)
    config = fake.config()
    given = {"mmdit/bias": np.full(3, 7, np.float16)}
    state = S.init_state(config, make_optimizer(config), given)
    np.testing.assert_array_equal(state.params["mmdit/bias"], np.full(3, 7, np.float32))
    for wrong in ({"mmdit/bias": np.zeros(4)}, {"mmdit/nose": np.zeros(3)}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}"):
            S.init_state(config, make_optimizer(config), wrong)


def test_gradient_reaches_every_trainable_parameter_of_the_real_model():
    trainable = S.trainable_paths(tiny.CONFIG, tiny.definition(tiny.CONFIG)[2])
    graphdef, values = tiny.definition(tiny.CONFIG)[0], tiny.params()
    frozen = {path: x for path, x in values.items() if path not in trainable}

    def loss(params, batch):
        return merge(graphdef, params | frozen).loss(batch, jax.random.key(1))[0]

    gradient = jax.jit(jax.grad(loss), compiler_options=fast_compile())
    grads = gradient({path: values[path] for path in trainable}, tiny.batch())
    assert sorted(path for path, grad in grads.items() if not np.any(grad)) == []
