"""The model that comes with the package: it is there, it fits, and it still paints the same.

``python -m tests.test_shipped`` stores new pictures after new weights were shipped.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from rb_jax import Editor
from rb_jax.data.inputs.images import open_image, save_image
from rb_jax.data.pipeline.loader import from_world
from rb_jax.data.reasonworld import ReasonWorld
from rb_jax.editor import UnfamiliarPicture
from rb_jax.eval.reasonworld import score_edit
from rb_jax.weights.folder import SHIPPED, resolve
from tests import photographs

STORED = Path(__file__).parent / "expected" / "shipped_edits.png"
COUNT, STEPS = 6, 6


def examples():
    world = ReasonWorld("test", 0, 64)
    return [world[i] for i in range(COUNT)]


def edits(editor: Editor) -> np.ndarray:
    """The edited scenes side by side, uint8 [64, 64 COUNT, 3]."""
    made = editor.edit_batch([from_world(e) for e in examples()], seed=5, steps=STEPS)
    return np.concatenate(list(made), axis=1)


@pytest.fixture(scope="module")
def shipped():
    return Editor.from_pretrained()


def test_edits_match_the_stored_pictures(shipped):
    error = edits(shipped).astype(np.float64) - open_image(STORED)
    # Not bit for bit: the order of additions differs between processors.
    assert 10 * np.log10(255.0**2 / max(float(np.mean(error**2)), 1e-9)) > 40


def test_edits_are_better_than_the_source(shipped):
    made = np.split(edits(shipped), COUNT, axis=1)
    gains = [
        score_edit(e, np.ascontiguousarray(picture)).edited_psnr
        - score_edit(e, e.source).edited_psnr
        for e, picture in zip(examples(), made, strict=True)
    ]
    assert np.mean(gains) > 3


def test_says_when_a_picture_is_unlike_reasonworld(shipped):
    photograph = photographs.pictures()["rotated.jpg"]
    with pytest.warns(UnfamiliarPicture, match="only seen ReasonWorld"):
        edited = shipped.edit(photograph, "What if the cup fell?", steps=1)
    assert edited.size == photograph.size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shipped.edit(examples()[0].source, examples()[0].instruction, steps=1)


@pytest.mark.parametrize("name", SHIPPED.values())
def test_comes_with_a_card(name):
    folder = Path(resolve("shipped", name))
    card = json.loads((folder / "card.json").read_text())
    assert card["command"].startswith("rb-jax train") and card["steps"] > 0
    assert (folder / "model.safetensors").stat().st_size < 30e6


if __name__ == "__main__":
    save_image(STORED, edits(Editor.from_pretrained()))
