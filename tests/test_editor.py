"""The Editor on random weights: what goes in, what comes out, what is refused."""

import dataclasses
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from rb_jax.data.formats.schema import EditExample
from rb_jax.data.inputs.images import to_source_size
from rb_jax.data.inputs.objects import extract_objects
from rb_jax.editor import MAX_STEPS, Editor, UnfamiliarPicture
from rb_jax.errors import InputError
from tests import tiny

WORDS = "What if the candle burned for two hours?"


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def edit(editor, image, words=WORDS, **settings):
    return editor.edit(image, words, **({"steps": 1} | settings))


def test_same_seed_same_bytes(editor):
    image = noise(32, 32)
    first, again, other = (edit(editor, image, seed=seed) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (48, 20), (31, 70), (1, 1), (2, 3), (3, 400), (900, 1300)]
)
def test_the_answer_has_the_sources_size(editor, height, width):
    image = noise(height, width)
    edited = edit(editor, image)
    assert edited.size == (width, height) and edited.mode == "RGB"
    assert np.any(np.asarray(edited) != image)


def test_a_large_picture_keeps_its_detail_where_nothing_is_edited():
    source = np.random.default_rng(0).integers(0, 256, (90, 130, 3)).astype(np.uint8)
    codec = noise(32, 32)
    edited = codec.copy()
    edited[:, 20:] = 255 - edited[:, 20:]
    out = to_source_size(edited, codec, source)
    np.testing.assert_array_equal(out[:, :65], source[:, :65])
    assert np.any(out[:, 100:] != source[:, 100:])
    np.testing.assert_array_equal(to_source_size(codec, codec, source), source)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F", "path", "str"])
def test_kinds_of_pictures(editor, tmp_path, mode):
    """Each gives what the same picture gives as an array."""
    grey = noise(20, 24)[..., 0]
    rgb = np.repeat(grey[..., None], 3, -1)
    tolerance = 0
    if mode in ("path", "str"):
        Image.fromarray(rgb).save(tmp_path / "a.png")
        image = tmp_path / "a.png" if mode == "path" else str(tmp_path / "a.png")
    elif mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32))
    elif mode == "1":
        image = Image.fromarray(np.where(grey > 99, 255, 0).astype(np.uint8)).convert("1")
        rgb = np.where(rgb > 99, 255, 0).astype(np.uint8)
    elif mode == "RGBA":  # what is see-through is white, whatever colour is under it
        alpha = np.full_like(grey, 255)
        alpha[:, :9] = 0
        image = Image.fromarray(np.dstack([rgb, alpha]))
        rgb = rgb.copy()
        rgb[:, :9] = 255
    else:
        image, tolerance = Image.fromarray(rgb).convert(mode), 12 if mode == "P" else 0
    expected, made = (np.asarray(edit(editor, x), np.int32) for x in (rgb, image))
    assert np.abs(expected - made).mean() <= tolerance


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_pictures(editor, array):
    with pytest.raises(InputError, match="uint8"):
        edit(editor, array)


def test_missing_file(editor, tmp_path):
    with pytest.raises(InputError, match="nothing.png: no such file"):
        edit(editor, tmp_path / "nothing.png")


@pytest.mark.parametrize("words", ["", "  \n ", "why " * 200])
def test_instructions_that_are_refused(editor, words):
    with pytest.raises(InputError, match="empty" if not words.strip() else "the limit is 34"):
        edit(editor, noise(32, 32), words)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", -1),
        ("steps", MAX_STEPS + 1),
        ("guidance", -0.5),
        ("guidance", 101.0),
        ("guidance", float("nan")),
        ("true_cfg", -1.0),
        ("true_cfg", float("inf")),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_settings_that_are_refused(editor, name, value):
    with pytest.raises(InputError, match=f"{name} must be between"):
        edit(editor, noise(32, 32), **{name: value})


def test_settings_that_change_the_answer(editor):
    image = noise(32, 32)
    base = edit(editor, image).tobytes()
    assert edit(editor, image, seed=2**32 - 1).tobytes() != base
    assert edit(editor, image, guidance=1.0).tobytes() != base
    assert edit(editor, image, "What if it rained?").tobytes() != base
    assert edit(editor, image, objects=("wax",)).tobytes() != base
    # Left out, the objects are those that the instruction names; too many are cut.
    assert edit(editor, image, objects=extract_objects(WORDS, 3)).tobytes() == base
    assert edit(editor, image, objects=("candle",) * 9).size == (32, 32)


def test_rows_of_a_batch_do_not_see_each_other(editor):
    """The same row alone and in company; only its noise depends on its place."""
    examples = [
        EditExample("", "", words, (), noise(32, 32, seed), None, None)
        for seed, words in enumerate([WORDS, "What if winter came?"])
    ]
    both = editor.edit_batch(examples, seed=5, steps=1)
    alone = editor.edit_batch(examples[:1], seed=5, steps=1)
    assert both.shape == (2, 32, 32, 3) and both.dtype == np.uint8
    assert np.abs(both[:1].astype(int) - alone).max() <= 1  # another program may round otherwise
    twins = editor.edit_batch(examples[:1] * 2, seed=5, steps=1)
    assert np.any(twins[0] != twins[1])


def test_unfamiliar_pictures_are_warned_of_by_the_shipped_model_only(editor, monkeypatch):
    image = noise(32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit(editor, image)
    monkeypatch.setattr(editor, "reasonworld_only", True)
    with pytest.warns(UnfamiliarPicture, match="unlike"):
        edit(editor, image)
    monkeypatch.setattr(editor, "reconstruct", lambda images: images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit(editor, image)


def test_what_is_no_editing_model(tmp_path):
    config = dataclasses.replace(
        tiny.CONFIG, train=dataclasses.replace(tiny.CONFIG.train, task="autoencoder")
    )
    with pytest.raises(InputError, match="autoencoder"):
        Editor(config, {})
    with pytest.raises(InputError, match="no model.safetensors and no checkpoint"):
        Editor.from_pretrained(tmp_path)


def test_what_is_neither_picture_nor_text():
    """In a process without the tests' own checks of types, as users have it."""
    code = """
from rb_jax.editor import Editor
from rb_jax.errors import InputError
editor = Editor.__new__(Editor)  # it does not come to the model
for image, words in [(None, "a"), (5, "a"), ([[1]], "a"), (b"x", "a"), ("x.png", 5), ("x", None)]:
    try:
        editor.edit(image, words)
    except InputError as error:
        print(error)
"""
    command = [sys.executable, "-c", code]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "an image is a path, a PIL image or an array, not NoneType"
    assert [line.split()[-1] for line in lines[1:4]] == ["int", "list", "bytes"]
    assert lines[4:] == [
        "the instruction must be a text, got int: 5",
        "the instruction must be a text, got NoneType: None",
    ]
