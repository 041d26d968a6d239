"""Real photographs, any size, mode and file: training on a folder of them, and editing them."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from rb_jax.checkpoint.opening import open_checkpoints
from rb_jax.data.inputs.images import open_image
from rb_jax.data.pipeline import loader
from rb_jax.sharding.mesh import make_mesh, replicated
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import abstract_state, init_state
from rb_jax.train.step import train_step
from rb_jax.weights.params import definition
from tests import photographs, tiny

UPRIGHT = {
    "rotated.jpg": (600, 400),
    "cmyk.jpg": (640, 427),
    "grey.png": (512, 300),
    "deep.png": (512, 512),
    "alpha.png": (512, 512),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photographs.dataset(tmp_path_factory.mktemp("photographs"))


@pytest.mark.parametrize("name", UPRIGHT)
def test_edits_come_back_at_the_source_size_and_upright(folder, editor, name):
    path = folder / "images" / name
    source = open_image(path)
    edited = editor.edit(path, "What if the lights went out?", seed=3, steps=1)
    assert isinstance(edited, Image.Image) and edited.mode == "RGB"
    assert edited.size == UPRIGHT[name] == (source.shape[1], source.shape[0])


@pytest.mark.exhaustive  # compiling takes long; tests/train does the same with a fake model
def test_training_on_a_folder_continues_bit_for_bit(folder, tmp_path):
    """The real model, two interrupted halves against one whole, through a checkpoint on disk."""
    config = tiny.config(data__name="folder", data__path=str(folder), train__batch_size=3)
    graphdef, tx, mesh = definition(config)[0], make_optimizer(config), make_mesh()
    start = init_state(config, tx, mesh=mesh)
    layouts = jax.tree.map(lambda x: x.sharding, start), replicated(mesh)
    step = jax.jit(functools.partial(train_step, graphdef, config, tx), out_shardings=layouts)

    def run(state, first, last):
        batches = loader.batches(config, "train", start_step=first)
        for _ in range(first, last):
            state, metrics = step(state, next(batches))
            assert np.isfinite(metrics["loss"])
        return state

    whole = run(start, 0, 4)
    with open_checkpoints(tmp_path) as manager:
        manager.save(run(start, 0, 2), config, {})
        manager.wait()
        found = manager.restore_newest(
            config, lambda: abstract_state(config, tx, mesh), lambda there: None
        )
        assert found is not None
        restored = found[0]
    parts = run(restored, 2, 4)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start.params, whole.params)
    assert np.mean(list(moved.values())) > 0.9
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
