"""Checkpoints and weight files: exact, and refused when they do not fit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rb_jax.checkpoint import manager as checkpoint
from rb_jax.checkpoint import stored
from rb_jax.config import ModelConfig
from rb_jax.errors import InputError
from rb_jax.sharding.mesh import make_mesh
from rb_jax.train.initial import initial_weights
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import abstract_state, ema_params, init_state
from rb_jax.weights import folder as weights
from tests.train import fake


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake.use(monkeypatch)


def mixed(config):
    """The configuration with frozen parameters in another dtype than the trained."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))


def saved(folder, config):
    state = init_state(config, make_optimizer(config))
    with checkpoint.open_checkpoints(folder) as manager:
        manager.save(state, config, {"window": {"loss": [0.1 + 0.2, 3]}})
    return state


def restore(folder, config):
    with checkpoint.open_checkpoints(folder) as manager:
        like = abstract_state(config, make_optimizer(config), make_mesh())
        step = manager.newest_good()
        return (None, {}) if step is None else manager.restore(step, config, like)


def test_state_comes_back_exactly(tmp_path):
    config = mixed(fake.config())
    state = saved(tmp_path, config)
    back, progress = restore(tmp_path, config)
    assert progress == {"window": {"loss": [0.1 + 0.2, 3]}}
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.dtype, x.shape), back) == jax.tree.map(
        lambda x: (x.dtype, x.shape), state
    )
    jax.tree.map(np.testing.assert_array_equal, back, state)
    found, params = stored.load_ema(tmp_path)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, params, ema_params(state))


def test_what_is_saved_is_the_state_at_the_time_of_saving(tmp_path):
    """The buffers are donated to the next step while the write goes on in the background."""
    config = fake.config()
    state = init_state(config, make_optimizer(config))
    before = jax.device_get(state)
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        manager.save(state, config, {})
        for _ in range(3):
            state = change(state)
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path, config)[0], before)


def test_another_model_is_refused_by_its_keys(tmp_path):
    saved(tmp_path, fake.config())
    with pytest.raises(InputError, match="another model: model.dtype differ"):
        restore(tmp_path, mixed(fake.config()))


def test_other_arrays_are_refused_by_name(tmp_path):
    saved(tmp_path, fake.config())
    with pytest.raises(InputError, match="missing frozen/text/embedding.*unexpected ema/text"):
        restore(tmp_path, fake.config(frozen=("autoencoder/**", "text/**")))


def test_nothing_there_is_said(tmp_path):
    assert restore(tmp_path / "new", fake.config()) == (None, {})
    for folder in (tmp_path / "absent", tmp_path / "new"):
        with pytest.raises(InputError, match="no model.safetensors and no checkpoint"):
            stored.load_weights(folder)
        with pytest.raises(InputError, match="no checkpoint"):
            stored.load_ema(folder)


def test_damaged_checkpoint_is_refused(tmp_path):
    config = fake.config()
    saved(tmp_path, config)
    data = [p for p in (tmp_path / "checkpoints" / "0" / "state").rglob("d/*") if p.is_file()]
    largest = max(data, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(bytes(content))
    with pytest.raises(InputError, match="damaged|cannot be read"):
        restore(tmp_path, config)


def test_checksums_see_one_flipped_bit():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_):
        x = np.arange(7).astype(dtype)
        y = x.copy()
        y.view(np.uint8)[-1] ^= 1
        sums = [int(checkpoint.checksums({"x": jnp.asarray(v)})["x"]) for v in (x, y)]
        assert sums[0] != sums[1], dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_round_trip(tmp_path, dtype):
    config = fake.config()
    params = ema_params(init_state(config, make_optimizer(config)))
    for _ in range(2):  # the second time over an existing folder
        weights.save_weights(tmp_path / "w", config, params, dtype)
    found, back = stored.load_weights(tmp_path / "w")
    assert found == config
    for path, value in params.items():
        np.testing.assert_array_equal(back[path], np.asarray(value.astype(dtype)))
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_values_too_large_for_the_dtype_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mmdit/bias: some values are too large for float16"):
        weights.save_weights(tmp_path, fake.config(), {"mmdit/bias": np.full(3, 1e9)}, "float16")


def rewrite(folder, change):
    """Applies ``change`` to the dict of arrays of a weights folder."""
    arrays = safetensors.numpy.load_file(folder / f"{weights.STEM}.safetensors")
    change(arrays)
    safetensors.numpy.save_file(arrays, folder / f"{weights.STEM}.safetensors")


def test_weights_that_do_not_fit_are_named(tmp_path):
    config = fake.config()
    params = ema_params(init_state(config, make_optimizer(config)))
    changes = {
        "missing mllm/1/bias": lambda a: a.pop("mllm/1/bias"),
        "unexpected nose": lambda a: a.update(nose=np.zeros(2)),
        r"mmdit/bias has shape \(4,\), the model needs \(3,\)": lambda a: a.update(
            {"mmdit/bias": np.zeros(4)}
        ),
    }
    for message, change in changes.items():
        weights.save_weights(tmp_path / "w", config, params)
        rewrite(tmp_path / "w", change)
        with pytest.raises(InputError, match=message):
            stored.load_weights(tmp_path / "w")


def test_damaged_weight_files_are_named(tmp_path):
    config = fake.config()
    params = ema_params(init_state(config, make_optimizer(config)))
    weights.save_weights(tmp_path, config, params)
    file = tmp_path / f"{weights.STEM}.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match="damaged, the checksum of"):
        stored.load_weights(tmp_path)
    file.write_bytes(bytes(content[:-40]))
    with pytest.raises(InputError, match="model.safetensors: .*data_offsets"):
        stored.load_weights(tmp_path)
    weights.save_weights(tmp_path, config, params)
    (tmp_path / weights.CONFIG).write_text(json.dumps({"model": {"nose": 1}}))
    with pytest.raises(InputError, match="config.json: config.model.nose: no such key"):
        stored.load_weights(tmp_path)


def test_initial_weights(tmp_path):
    config = fake.config()
    params = ema_params(init_state(config, make_optimizer(config)))
    weights.save_weights(tmp_path / "whole", config, params)
    whole = initial_weights(fake.config(init_from=str(tmp_path / "whole")))
    assert whole.keys() == params.keys()
    part = initial_weights(fake.config(autoencoder_from=str(tmp_path / "whole")))
    assert set(part) == {"autoencoder/encoder/bias", "autoencoder/encoder/kernel"}
    assert initial_weights(config) == {}
    other = dataclasses.replace(ModelConfig(), dtype="bfloat16")
    other = dataclasses.replace(other, frce=dataclasses.replace(other.frce, patch_layers=2))
    other = dataclasses.replace(fake.config(init_from=str(tmp_path / "whole")), model=other)
    with pytest.raises(InputError, match="model: model.frce.patch_layers differ"):
        initial_weights(other)
