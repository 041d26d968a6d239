"""Features computed once: the same as those computed in training, whole shards, one fingerprint."""

import dataclasses
import shutil
from contextlib import closing
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from rb_jax.config import Config, ConfigError
from rb_jax.data.cache.encode import cache_features
from rb_jax.data.cache.features import FeatureCache, flatten
from rb_jax.data.formats.reason50k import write_dataset
from rb_jax.data.pipeline import loader
from rb_jax.data.reasonworld import ReasonWorld
from rb_jax.errors import InputError
from rb_jax.models.pixels import to_uint8
from rb_jax.sharding.mesh import make_mesh
from rb_jax.train import feed
from rb_jax.train.evaluation import Evaluator
from rb_jax.train.initial import initial_weights, whole_model
from rb_jax.train.metrics import RunLog, image_grid
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import init_state, trainable_paths
from rb_jax.weights.folder import save_weights
from tests import tiny

COUNT = 11


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, a model and its features of the data set."""
    folder = tmp_path_factory.mktemp("cache")
    write_dataset(ReasonWorld("train", 5, 48), COUNT, folder / "data", "train", progress=False)
    save_weights(folder / "model", tiny.CONFIG, tiny.params(tiny.CONFIG))
    run(folder, "cache")
    return folder


def run(folder, out, model="model", **changes):
    given: Any = dict(batch_size=3, shard_examples=4, progress=False) | changes
    return cache_features(folder / "data", folder / model, folder / out, **given)


def pixels_config(folder, **changes) -> Config:
    given = dict(data__name="folder", data__path=str(folder / "data"), train__batch_size=5)
    return tiny.config(**given | changes)


def cached_config(folder, **changes) -> Config:
    given = dict(data__name="cache", data__inputs="features", data__path=str(folder / "cache"))
    given |= dict(
        train__batch_size=5, train__eval_examples=0, train__init_from=str(folder / "model")
    )
    return tiny.config(**given | changes)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_loss_and_gradient_are_those_of_pixels(place):
    pixels, cached = pixels_config(place), cached_config(place)
    params = tiny.params(pixels)
    kept = {path: params[path] for path in tiny.definition(cached)[1]}
    step, rng = 3, jax.random.key(7)  # its examples cross the end of an epoch

    def value(brain, batch):
        loss, terms = brain.loss(batch, rng)
        return loss, terms

    batch = next(loader.batches(pixels, "train", step))
    features: Any = next(feed.streamed(cached, "train", step))
    assert features.features.image.shape[0] == 5
    np.testing.assert_array_equal(features.category, batch.category)
    want, terms = tiny.jit(value, pixels)(params, batch)
    have, others = tiny.jit(value, cached)(kept, features)
    np.testing.assert_allclose(have, want, rtol=1e-5)
    assert terms.keys() == others.keys()
    for name, term in terms.items():
        np.testing.assert_allclose(others[name], term, rtol=1e-4, atol=1e-6, err_msg=name)


def test_edits_of_features_are_shown(place, tmp_path):
    """Their latents, decoded by the autoencoder of the model that training starts from."""
    config = cached_config(place, train__eval_examples=3, data__val_split="train")
    mesh = make_mesh(config.mesh)
    state = init_state(config, make_optimizer(config), initial_weights(config), mesh)
    evaluator = Evaluator(config, tiny.definition(config)[0], mesh)
    evaluator.compile(state)
    with closing(RunLog(tmp_path, 0)) as log:
        assert evaluator.evaluate(tmp_path, log, state, lambda: False)
    shown = np.asarray(Image.open(tmp_path / "samples" / "step_0.png"))

    pixels = pixels_config(place)
    batch = next(loader.batches(pixels, "train", rows=np.arange(3)))

    def decoded(brain, batch):
        return (
            brain.autoencoder.decode(brain.encode_latents(batch.source)),
            brain.autoencoder.decode(brain.encode_latents(batch.target)),
        )

    source, target = tiny.jit(decoded, pixels)(tiny.params(pixels), batch)
    wanted = image_grid([to_uint8(np.asarray(x)) for x in (source, target)])
    width = shown.shape[1] // 3
    edit, beside = shown[:, width:-width], np.delete(shown, np.s_[width:-width], axis=1)
    assert beside.shape == wanted.shape and len(np.unique(wanted)) > 20
    assert np.abs(beside.astype(int) - wanted).max() <= 2
    assert len(np.unique(edit)) > 20 and np.abs(edit.astype(int) - beside[:, :width]).max() > 20


def test_what_is_missing_is_made_again_and_nothing_else(place, tmp_path):
    before = files(place / "cache")
    shards = [name for name in before if name.endswith(".features")]
    assert len(shards) == 3 and len(before) == 4
    shutil.copytree(place / "cache", tmp_path / "cache")
    shutil.copytree(place / "data", tmp_path / "data")
    shutil.copytree(place / "model", tmp_path / "model")
    # As it is after a kill: two shards with their reports, one half written.
    assert run(tmp_path, "parts", process_index=1, process_count=2) is None
    (tmp_path / "parts" / ".0123.partial").write_bytes(b"half")
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("*.features")}
    assert list(times) == shards[1:2]
    made = run(tmp_path, "parts")
    assert made is not None and made.examples == COUNT
    for name, time in times.items():
        assert (tmp_path / "parts" / name).stat().st_mtime_ns == time
    after = files(tmp_path / "parts")
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}
    assert run(tmp_path, "parts") == made  # and a finished cache is left alone


def test_other_ingredients_are_refused(place, tmp_path):
    other = tiny.weights(tiny.definition(tiny.CONFIG)[1], seed=1)
    save_weights(tmp_path / "other", tiny.CONFIG, other)
    with pytest.raises(InputError, match="encoders differ"):
        cache_features(place / "data", tmp_path / "other", place / "cache", progress=False)
    with pytest.raises(InputError, match="other encoders"):
        feed.check_encoders(cached_config(place, train__init_from=str(tmp_path / "other")))
    feed.check_encoders(cached_config(place))
    cache = FeatureCache(place / "cache", "train")
    with pytest.raises(InputError, match="image_size differ"):
        cache.check(cached_config(place, data__image_size=64))
    with pytest.raises(InputError, match="model.text.layers"):
        cache.check(cached_config(place, model__text__layers=1))
    with pytest.raises(InputError, match="no such manifest; splits in this folder: train"):
        FeatureCache(place / "cache", "val")


@pytest.mark.parametrize("where", ["byte", "end", "swapped"])
def test_damage_is_named(place, tmp_path, where):
    shutil.copytree(place / "cache", tmp_path / "cache")
    first, second = sorted((tmp_path / "cache").glob("*.features"))[:2]
    data = bytearray(first.read_bytes())
    if where == "byte":
        data[len(data) // 2] ^= 4
        first.write_bytes(data)
    elif where == "end":
        first.write_bytes(data[:-1000])
    else:
        first.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match=first.name):
        cache = FeatureCache(tmp_path / "cache", "train")
        cache[np.arange(4)]


def test_no_changed_byte_or_moved_block_passes(place, tmp_path):
    shutil.copytree(place / "cache", tmp_path / "cache")
    path = sorted((tmp_path / "cache").glob("*.features"))[0]
    whole, rng = path.read_bytes(), np.random.default_rng(5)
    cache, four = FeatureCache(tmp_path / "cache", "train"), np.arange(4)
    good = flatten(cache[four])

    def write(data):
        with path.open("r+b") as file:  # the cache keeps it open
            file.write(data)

    for position in rng.integers(0, len(whole), 150):
        data = bytearray(whole)
        data[position] ^= 1 << rng.integers(8)
        write(data)
        with pytest.raises(InputError, match=f"{path.name}: example [0-3] is damaged"):
            cache[four]
    write(whole[4096:8192] + whole[:4096] + whole[8192:])
    with pytest.raises(InputError, match=f"{path.name}: example 0 is damaged"):
        cache[four]
    write(whole)
    for name, value in flatten(cache[four]).items():
        np.testing.assert_array_equal(value, good[name])
    with path.open("r+b") as file:
        file.truncate(len(whole) - 1)
    with pytest.raises(InputError, match="ends within example 3"):
        cache[four]


def test_a_model_of_features_starts_without_encoders_and_ends_with_them(place):
    config = cached_config(place)
    weights = initial_weights(config)
    assert not {path.split("/")[0] for path in weights} & {"vision", "text", "autoencoder"}
    assert "autoencoder/**" in config.train.frozen  # which a model without one may name
    assert trainable_paths(config, weights) == set(weights)
    with pytest.raises(ConfigError, match="matches no parameter"):
        trainable_paths(dataclasses.replace(tiny.CONFIG), weights)
    made, whole = whole_model(config, weights)
    assert made.data.inputs == "pixels"
    for path, value in tiny.params(tiny.CONFIG).items():
        np.testing.assert_array_equal(whole[path], value)
