"""Training on batches of several shapes: a program each, the same losses after a restart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.data.pipeline import loader
from rb_jax.train import loop
from rb_jax.train.metrics import read_lines
from rb_jax.weights.params import merge
from tests import tiny
from tests.data.inputs.test_buckets import SHAPES, SIZES, make
from tests.train import fake


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("buckets"), SIZES)


def configured(folder, base, **train):
    values = dict(name="records", path=str(folder), val_split="train", prepare=False)
    data = dataclasses.replace(base.data, **values, image_size=32, buckets=SHAPES)
    optimizer = dataclasses.replace(base.optimizer, schedule="constant")  # whatever train.steps is
    train = dataclasses.replace(base.train, **train)
    return dataclasses.replace(base, data=data, optimizer=optimizer, train=train)


def test_a_run_over_buckets(folder, tmp_path, monkeypatch):
    fake.use(monkeypatch)
    compiled, costs, compiling = [], set(), loop.Stepper.compile

    def watched(stepper, state, batch):
        compiled.append(batch.source.shape[1:3])
        compiling(stepper, state, batch)
        costs.add(round(stepper.flops(batch)))

    monkeypatch.setattr(loop.Stepper, "compile", watched)
    every = dict(log_every=1, eval_every=7, checkpoint_every=7)
    config = configured(folder, fake.config(steps=12, **every))
    assert loop.train(config, tmp_path / "whole") == 0
    assert sorted(compiled) == sorted(SHAPES)
    assert loop.train(configured(folder, fake.config(steps=7, **every)), tmp_path / "parts") == 0
    assert loop.train(config, tmp_path / "parts") == 0
    rows = read_lines(tmp_path / "whole")
    peak = rows[0]["peak_flops"]
    assert len(costs) > 1 and costs == {
        round(row["mfu"] / row["steps_per_second"] * peak) for row in rows if "mfu" in row
    }
    whole, parts = (
        {row["step"]: row["loss"] for row in read_lines(tmp_path / name) if row["kind"] == "train"}
        for name in ("whole", "parts")
    )
    assert sorted(whole) == list(range(1, 13)) and whole == parts
    assert np.isfinite(list(whole.values())).all()


def test_the_model_takes_any_shape(folder):
    """The whole loss of each shape, and the encoders' numbers of a picture that is not square."""
    config = configured(folder, tiny.CONFIG)
    stream, seen = loader.batches(config, "train"), {}
    while len(seen) < len(SHAPES):
        batch = next(stream)
        seen[batch.source.shape[1:3]] = batch
    graphdef, shapes, _ = tiny.definition(config)
    for (height, width), batch in seen.items():

        def run(params, batch):
            model = merge(graphdef, params)
            return model.loss(batch, jax.random.key(0))[0], model.sample(batch, jax.random.key(1))

        loss, picture = jax.eval_shape(run, shapes, batch)
        assert loss.shape == () and picture.shape == (4, height, width, 3)

    source, regions = jnp.asarray(seen[48, 24].source), jnp.asarray(seen[48, 24].regions)
    model = merge(graphdef, tiny.params(config))
    found = model.regions(source, regions)
    turned = model.regions(source[:, ::-1], regions[:, :, ::-1])
    assert np.isfinite(found).all() and not np.allclose(found, turned)
    latent = model.encode_latents(source)
    assert latent.shape[1:3] == (12, 6) and np.isfinite(latent).all()
