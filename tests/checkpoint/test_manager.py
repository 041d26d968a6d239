"""Checkpoints and weight files: exact, and refused when they do not fit."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from rb_jax import storage
from rb_jax.checkpoint import layout, seal, stored
from rb_jax.checkpoint.opening import open_checkpoints
from rb_jax.config import ModelConfig
from rb_jax.errors import InputError
from rb_jax.sharding.mesh import make_mesh
from rb_jax.train.initial import initial_weights
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import abstract_state, ema_params, init_state, replace
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
    save(folder, config, state)
    return state


def save(folder, config, *states):
    with open_checkpoints(folder) as manager:
        for state in states:
            manager.save(state, config, {"window": {"loss": [0.1 + 0.2, 3]}})


def restore(folder, config):
    with open_checkpoints(folder) as manager:

        def like():
            return abstract_state(config, make_optimizer(config), make_mesh())

        return manager.restore_newest(config, like, lambda there: None) or (None, {})


@pytest.fixture(params=["disk", "gs", "s3"])
def place_of_runs(request, tmp_path):
    """A folder on a disk or in a bucket that is not there yet."""
    if request.param == "disk":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('buckets')[request.param]}/{tmp_path.name}"


def test_state_comes_back_exactly(place_of_runs):
    tmp_path = place_of_runs
    config = mixed(fake.config(frozen=("autoencoder/**", "text/**")))
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
    with open_checkpoints(tmp_path) as manager:
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
    data = [p for p in (tmp_path / "checkpoints" / "0" / "params").rglob("d/*") if p.is_file()]
    largest = max(data, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(bytes(content))
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        restore(tmp_path, config)


def test_values_of_large_files_are_checked_as_they_are_read(place_of_runs, monkeypatch, caplog):
    """As if every file were too large for a hash of its own: only the arrays' fingerprints see."""
    monkeypatch.setattr(seal, "SMALL_BYTES", 0)
    caplog.set_level("INFO", "rb_jax")
    config = fake.config(frozen=("autoencoder/**", "text/**"))
    state = init_state(config, make_optimizer(config))
    save(place_of_runs, config, state, replace(state, step=jnp.int32(4)))
    root = storage.place(place_of_runs)
    damaged = root / "checkpoints" / "4"
    # The same bytes, sealed as other values: what a flip that decodes would look like.
    content = json.loads((damaged / seal.NAME).read_text())
    del content["sha256"]
    name = next(iter(content["arrays"]["ema"]))
    content["arrays"]["ema"][name] = "0" * 16
    (damaged / seal.NAME).write_text(seal._text(content))
    assert layout.problems(damaged) == []
    with pytest.warns(UserWarning, match=f"ema/{name}: its values are not those that were saved"):
        assert stored.load_arrays(place_of_runs)["step"] == 0
    back, _ = restore(place_of_runs, config)
    assert back is not None and int(back.step) == 0
    said = caplog.text
    assert f"4 is damaged: ema/{name}: its values are not those that were saved" in said
    assert "step 4 cannot be used: continuing from step 0 instead" in said
    assert layout.steps(root / "checkpoints") == [0]
    kept = "4" if storage.is_bucket(root) else "4.damaged"
    assert (root / "checkpoints" / kept / seal.NAME).exists()
    save(place_of_runs, config, replace(state, step=jnp.int32(4)))  # in its place, when it comes
    assert layout.steps(root / "checkpoints") == [0, 4]


def test_frozen_parameters_are_written_once(tmp_path):
    config = fake.config(frozen=("autoencoder/**", "text/**"))
    state = init_state(config, make_optimizer(config))
    save(tmp_path, config, state)
    (folder,) = (tmp_path / "frozen").iterdir()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with open_checkpoints(tmp_path) as manager:
        assert manager.restore_newest(config, lambda: state, lambda there: None) is not None
        for step in (3, 6):
            manager.save(replace(state, step=jnp.int32(step)), config, {})
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    for step in ("0", "3", "6"):
        each = tmp_path / "checkpoints" / step
        assert not (each / "frozen").exists()
        record = json.loads((each / "loop" / "metadata").read_text())
        assert record["frozen"] == folder.name
    (folder / "_METADATA").unlink()
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        restore(tmp_path, config)
    with (
        pytest.warns(UserWarning, match=f"frozen/{folder.name}/_METADATA: missing"),
        pytest.raises(InputError, match="every checkpoint is damaged"),
    ):
        stored.load_weights(tmp_path)


def test_stock_orbax_restores_the_parameters_alone(tmp_path):
    """The lines of docs/reliability.md."""
    config = fake.config()
    state = saved(tmp_path, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it takes the layout from the checkpoint
        params = ocp.PyTreeCheckpointer().restore(tmp_path / "checkpoints" / "0" / "params")
    assert params.keys() == state.params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(value, state.params[path])


@pytest.mark.parametrize("made", ["metadata.json", "manifest.sha256"])
def test_checkpoints_of_the_first_version_are_refused(tmp_path, made):
    old = tmp_path / "checkpoints" / "12"
    (old / "state").mkdir(parents=True)
    (old / made).write_text("{}")
    config = fake.config()
    for read in (lambda: restore(tmp_path, config), lambda: stored.load_weights(tmp_path)):
        with pytest.raises(InputError, match="12: a checkpoint of rb_jax 0.1.*start a new workdir"):
            read()
    with pytest.raises(InputError, match="a checkpoint of rb_jax 0.1"):
        stored.load_weights(old)


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
