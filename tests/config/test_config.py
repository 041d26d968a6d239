"""The configuration: what is wrong is named by its key."""

import dataclasses
import json

import ml_collections
import pytest

from rb_jax.config import (
    Config,
    ConfigError,
    check_key,
    differing_keys,
    from_config_dict,
    to_config_dict,
)
from rb_jax.errors import InputError
from tests import tiny


def changed(key, value):
    """The default as nested dicts, with one value replaced."""
    values = json.loads(json.dumps(dataclasses.asdict(Config())))
    *groups, name = key.split(".")
    place = values
    for group in groups:
        place = place[group]
    place[name] = value
    return values


@pytest.mark.parametrize("config", [Config(), tiny.CONFIG])
def test_round_trip(config):
    assert from_config_dict(to_config_dict(config)) == config
    assert from_config_dict(to_config_dict(config).to_dict()) == config
    assert from_config_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert from_config_dict(ml_collections.FrozenConfigDict(to_config_dict(config))) == config
    assert hash(from_config_dict(to_config_dict(config))) == hash(config)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("nose", "config.nose: no such key"),
        ("train.stepps", "config.train.stepps: no such key; did you mean train.steps"),
        ("model.mmdit.widht", "config.model.mmdit.widht: no such key; did you mean model.mmdit.w"),
        ("train.steps.more", "config.train.steps.more: no such key"),
    ],
)
def test_unknown_keys(key, message):
    with pytest.raises(ConfigError, match=message):
        check_key(key)
    if not key.endswith("more"):
        with pytest.raises(ConfigError, match=message):
            from_config_dict(changed(key, 1))


def test_known_keys():
    for key in ("train.steps", "model.mmdit.axes_dim", "model.vision"):
        check_key(key)


@pytest.mark.parametrize("key", ["flow", "train.steps", "model.mmdit", "model.mmdit.heads"])
def test_missing_keys(key):
    values = changed(key, None)
    *groups, name = key.split(".")
    place = values
    for group in groups:
        place = place[group]
    del place[name]
    with pytest.raises(ConfigError, match=f"config.{key}: missing"):
        from_config_dict(values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 1.5),
        ("train.steps", "many"),
        ("train.steps", True),
        ("train.steps", None),
        ("optimizer.learning_rate", "fast"),
        ("optimizer.learning_rate", True),
        ("flow.shift", 1),
        ("data.path", 3),
        ("data.name", "coco"),
        ("model.mmdit.source", "rows"),
        ("model.dtype", "float64"),
        ("model", 3),
        ("train.frozen", "autoencoder/**"),
        ("flow.guidance_range", [1.0]),
        ("model.mmdit.axes_dim", [8, 16, 8, 8]),
    ],
)
def test_mistyped_values(key, value):
    with pytest.raises(ConfigError, match=f"config.{key}"):
        from_config_dict(changed(key, value))


def test_paths_are_no_urls():
    with pytest.raises(InputError, match="config.data.prepared_dir=gs://b/made: must be a path"):
        from_config_dict(changed("data.prepared_dir", "gs://b/made"))


def test_mistyped_element_of_a_tuple():
    with pytest.raises(ConfigError, match=r"config.model.mmdit.axes_dim\[1\]: expected int"):
        from_config_dict(changed("model.mmdit.axes_dim", [8, "16", 16]))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.vision.patch_size", 15, ""),
        ("data.image_size", 60, ""),
        ("model.regions.stride", 5, ""),
        ("model.autoencoder.norm_groups", 3, ""),
        ("model.frce.enabled", False, "model.cme.enabled"),
        ("model.mmdit.axes_dim", (8, 16, 15), ""),
        ("model.mmdit.axes_dim", (8, 17, 15), ""),
        ("model.mmdit.heads", 3, "model.mmdit.axes_dim"),
        ("model.mllm.kv_heads", 3, ""),
        ("model.mllm.heads", 128, ""),
        ("model.vision.heads", 5, ""),
        ("model.text.heads", 3, ""),
        ("model.frce.heads", 3, ""),
        ("model.qformer.heads", 5, ""),
        ("model.cme.heads", 3, ""),
        ("model.vision.feature_layer", 3, ""),
        ("model.vision.feature_layer", -4, ""),
        ("flow.drop_condition", 1.0, ""),
        ("flow.drop_source", -0.1, ""),
        ("flow.logit_std", 0, ""),
        ("flow.guidance_range", (5.0, 1.0), ""),
        ("flow.max_tokens", 256, ""),
        ("flow.steps", 0, ""),
        ("data.name", "folder", "data.path"),
        ("train.ema_decay", 1.0, ""),
        ("train.batch_size", 0, ""),
        ("train.log_every", 0, ""),
        ("optimizer.warmup_steps", 100_000, ""),
        ("train.accumulation", 0, ""),
        ("train.accumulation", 5, ""),
        ("train.task", "mmdit", "data.name"),
        ("data.inputs", "features", ""),
        ("model.mmdit.source", "none", ""),
        ("remat.mllm", "attention,nose", ""),
    ],
)
def test_inconsistent_values(key, value, named):
    with pytest.raises(ConfigError, match=f"config.{named or key}: "):
        from_config_dict(changed(key, value))


@pytest.mark.parametrize(
    "key",
    [
        "model.vision.patch_size",
        "model.vision.width",
        "model.regions.stride",
        "model.regions.max_regions",
        "model.frce.max_objects",
        "model.autoencoder.norm_groups",
        "model.autoencoder.scale_factor",
        "model.mmdit.patch_size",
        "model.mmdit.heads",
        "model.mllm.heads",
        "model.mllm.kv_heads",
        "model.mllm.image_tokens",
        "model.cme.heads",
        "model.qformer.queries",
        "model.text.max_length",
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(key, value):
    with pytest.raises(ConfigError, match=f"config.{key}: must be positive, got {value}"):
        from_config_dict(changed(key, value))


def test_numbers_of_layers_may_be_zero_but_not_less():
    from_config_dict(changed("model.mmdit.single_blocks", 0))
    from_config_dict(changed("model.mllm.lora_rank", 0))
    with pytest.raises(ConfigError, match="config.model.mmdit.single_blocks: must be positive"):
        from_config_dict(changed("model.mmdit.single_blocks", -1))


def test_frce_needs_a_branch_only_when_it_is_on():
    values = changed("model.frce.patch_branch", False)
    values["model"]["frce"]["region_branch"] = False
    with pytest.raises(InputError, match="config.model.frce.patch_branch: "):
        from_config_dict(values)
    values["model"]["frce"]["enabled"] = values["model"]["cme"]["enabled"] = False
    from_config_dict(values)


def test_checks_hold_for_configs_made_in_python():
    with pytest.raises(ConfigError, match="config.flow.logit_std"):
        dataclasses.replace(Config(), flow=dataclasses.replace(Config().flow, logit_std=0.0))


def noise(**train):
    """The flow model on noise, as nested values."""
    values = changed("data.name", "synthetic")
    values["train"].update(dict(task="mmdit", eval_examples=0) | train)
    return values


def test_what_has_no_pictures_shows_none():
    assert from_config_dict(noise()).train.task == "mmdit"
    with pytest.raises(ConfigError, match="config.train.eval_examples: must be 0"):
        from_config_dict(noise(eval_examples=2))
    values = noise(task="edit", eval_examples=2, init_from="")
    assert from_config_dict(values)
    values["data"]["inputs"] = "features"
    with pytest.raises(ConfigError, match="config.train.eval_examples: must be 0"):
        from_config_dict(values)


def test_an_autoencoder_learns_from_pixels():
    values = noise(task="autoencoder")
    assert from_config_dict(values)
    values["data"]["inputs"] = "features"
    with pytest.raises(ConfigError, match="config.data.inputs: "):
        from_config_dict(values)


def test_a_second_moment_that_bfloat16_cannot_follow_is_refused():
    values = noise(param_dtype="bfloat16")
    values["optimizer"]["b2"] = 0.999
    with pytest.raises(ConfigError, match="config.optimizer.b2: 0.999"):
        from_config_dict(values)
    values["train"]["param_dtype"] = "float32"
    assert from_config_dict(values)


def test_integers_serve_as_floats():
    made = from_config_dict(changed("optimizer.learning_rate", 1))
    assert type(made.optimizer.learning_rate) is float


def test_differing_keys():
    base = dataclasses.asdict(Config())
    assert differing_keys(base, json.loads(json.dumps(base))) == []  # tuples and lists are alike
    nested = changed("optimizer.rates", (("mllm/**", 0.1),))
    assert differing_keys(nested, json.loads(json.dumps(nested))) == []
    assert differing_keys(base, changed("model.mmdit.width", 1)) == ["model.mmdit.width"]
    other = changed("train.seed", 5)
    del other["flow"]["steps"]
    assert differing_keys(base, other, "x.") == ["x.flow.steps", "x.train.seed"]
