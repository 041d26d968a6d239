"""What is trained, what is frozen, and what a step does to either."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.config import Config, ConfigError
from rb_jax.errors import InputError
from rb_jax.train import state as S
from rb_jax.train.optimizer import decayed, make_optimizer, make_schedule
from rb_jax.train.step import train_step
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
    state = S.init_state(half, make_optimizer(half))
    assert {x.dtype for x in state.params.values()} == {jnp.dtype("float32")}
    assert {x.dtype for x in state.frozen.values()} == {jnp.dtype("bfloat16")}
    assert state.ema.keys() == state.params.keys()
    graphdef = S.definition(half)[0]
    state, metrics = train_step(graphdef, half, make_optimizer(half), state, batch_of(half))
    assert {x.dtype for x in state.params.values()} == {jnp.dtype("float32")}
    assert np.isfinite(metrics["loss"])
    report = S.parameter_report(state)
    assert "mllm" in report and "total" in report and "frozen" in report


def batch_of(config, seed=0):
    return jax.tree.map(jnp.asarray, fake.random_batch(config, 4, seed))


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
        fake.FakeBrain, "loss",
        lambda self, batch, rng: jax.tree.map(
            lambda x: jnp.where(batch.source[0, 0, 0, 0] == 0, jnp.nan, 1.0) * x,
            original(self, batch, rng)),
    )  # fmt: skip
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
        "a/kernel": True, "a/bias": False, "a/lora_a": True, "a/scale": False, "embedding": False
    }  # fmt: skip


def test_given_weights_replace_the_random_ones(monkeypatch):
    fake.use(monkeypatch)
    config = fake.config()
    given = {"mmdit/bias": np.full(3, 7, np.float16)}
    state = S.init_state(config, make_optimizer(config), given)
    np.testing.assert_array_equal(state.params["mmdit/bias"], np.full(3, 7, np.float32))
    for wrong in ({"mmdit/bias": np.zeros(4)}, {"mmdit/nose": np.zeros(3)}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}"):
            S.init_state(config, make_optimizer(config), wrong)


def small_odd_config() -> Config:
    """The real model, tiny, with no two stages of the same width."""
    base = Config()
    model = dataclasses.replace(
        base.model,
        vision=dataclasses.replace(base.model.vision, image_size=16, patch_size=8, width=18,
                                   layers=1),
        text=dataclasses.replace(base.model.text, width=20, layers=1, max_length=7, vocab_size=310),
        regions=dataclasses.replace(base.model.regions, width=14, max_regions=3, stride=8),
        autoencoder=dataclasses.replace(base.model.autoencoder, channels=8, channel_mult=(1, 2),
                                        latent_channels=3, norm_groups=4),
        frce=dataclasses.replace(base.model.frce, width=28, max_objects=2),
        mllm=dataclasses.replace(base.model.mllm, width=24, mlp_width=26, layers=1, max_length=9,
                                 image_tokens=3, vocab_size=320, lora_rank=2),
        qformer=dataclasses.replace(base.model.qformer, width=30, layers=1, queries=5),
        cme=dataclasses.replace(base.model.cme, width=32, blocks=1, queries=4),
        mmdit=dataclasses.replace(base.model.mmdit, width=40, heads=2, double_blocks=1,
                                  single_blocks=1, context_width=22, axes_dim=(4, 8, 8)),
    )  # fmt: skip
    return dataclasses.replace(
        base, model=model, data=dataclasses.replace(base.data, image_size=16)
    )


def test_gradient_reaches_every_trainable_parameter_of_the_real_model():
    config = small_odd_config()
    graphdef, shapes, parameters = S.definition(config)
    trainable = S.trainable_paths(config, parameters)
    # Random everywhere: parameters that start at zero (LoRA's B) would hide those before them.
    rng = np.random.default_rng(0)
    values = {p: 0.3 * rng.normal(size=x.shape).astype(np.float32) for p, x in shapes.items()}
    frozen = {p: x for p, x in values.items() if p not in trainable}

    def loss(params, batch):
        return S.merge(graphdef, params | frozen).loss(batch, jax.random.key(1))[0]

    fast_to_compile = {"xla_backend_optimization_level": 0}
    gradient = jax.jit(jax.grad(loss), compiler_options=fast_to_compile)
    grads = gradient({p: values[p] for p in trainable}, fake.random_batch(config, 3))
    assert sorted(path for path, grad in grads.items() if not np.any(grad)) == []
