"""Noise in the place of data: shapes are those of the real thing, rows belong to their numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.data.pipeline import loader, synthetic
from rb_jax.models.types import FeatureBatch, FlowBatch
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import abstract_state
from rb_jax.train.step import eval_step, train_step
from tests import tiny

# What a configuration may train on noise.
KINDS = {
    "pixels": dict(train__task="edit"),
    "features": dict(
        train__task="edit", data__inputs="features", train__frozen=(), train__eval_examples=0
    ),
    "latents": dict(train__task="mmdit", train__frozen=(), train__eval_examples=0),
    "no cme": dict(
        train__task="mmdit", train__frozen=(), train__eval_examples=0, model__cme__enabled=False
    ),
    "autoencoder": dict(train__task="autoencoder", train__frozen=()),
}


def config(kind, **changes):
    return tiny.config(data__name="synthetic", **KINDS[kind] | changes)


def shapes(tree):
    return jax.tree.map(lambda x: (tuple(x.shape), str(x.dtype)), tree)


def test_pixels_are_as_the_loader_makes_them():
    real = next(loader.batches(tiny.CONFIG, "train"))
    assert shapes(synthetic.batch_shapes(config("pixels"), 4)) == shapes(real)


@pytest.mark.parametrize("changes", [{}, dict(model__dtype="bfloat16", model__cme__enabled=False)])
def test_features_and_conditioning_are_as_the_model_makes_them(changes):
    pixels, made, latents = (config(k, **changes) for k in ("pixels", "features", "latents"))

    def run(params, batch):
        model = tiny.merged(params, pixels)
        features = model.encode(batch)
        return features, model.condition(features)[0]

    dtype = pixels.model.dtype
    cast = {p: jax.ShapeDtypeStruct(x.shape, dtype) for p, x in tiny.params(pixels).items()}
    real = jax.eval_shape(run, cast, synthetic.batch_shapes(pixels, 3))
    of_features, of_latents = (synthetic.batch_shapes(c, 3) for c in (made, latents))
    assert isinstance(of_features, FeatureBatch) and isinstance(of_latents, FlowBatch)
    features, noise = of_features.features, (of_features.features, of_latents.conditioning)
    sizes = [jax.tree.map(lambda x: x.shape, tree) for tree in (real, noise)]
    assert sizes[0] == sizes[1]
    assert real[1].tokens.dtype == noise[1].tokens.dtype == features.image.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_trains_on_it(kind):
    made = config(kind)
    batch, tx = next(synthetic.batches(made)), make_optimizer(made)
    mesh = jax.make_mesh((1, 1, 1, 1), ("data", "fsdp", "tensor", "context"))
    state = abstract_state(made, tx, mesh)
    graphdef = tiny.definition(made)[0]
    key = jax.eval_shape(lambda: jax.random.key(0))
    after, metrics = jax.eval_shape(functools.partial(train_step, graphdef, made, tx), state, batch)
    assert shapes(after) == shapes(state)
    of_eval = jax.eval_shape(functools.partial(eval_step, graphdef, made), state, batch, key)
    assert set(of_eval) <= set(metrics) and of_eval["loss"].dtype == jnp.float32


@pytest.mark.parametrize("kind", ["pixels", "features", "latents"])
def test_a_row_depends_on_its_number_alone(kind):
    made = config(kind, train__batch_size=6)
    whole = next(synthetic.batches(made))
    assert shapes(whole) == shapes(synthetic.batch_shapes(made, 6))
    part = next(synthetic.batches(made, np.array([4, 1])))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[[4, 1]], b), whole, part)
    other = next(synthetic.batches(config(kind, train__batch_size=6, data__seed=1)))
    pairs = list(zip(*map(jax.tree.leaves, (whole, other)), strict=True))
    assert all(np.any(a != b) for a, b in pairs if a.dtype != bool)
    for leaf in jax.tree.leaves(whole):
        if leaf.dtype == bool:
            assert leaf.any(axis=-1).all() and not leaf.all()
        else:
            assert np.isfinite(leaf.astype(np.float32)).all() and np.ptp(leaf) > 0
