"""Prepared sets hold what the stream would give, are reused exactly when they may be, and whole."""

import dataclasses
import fcntl
import hashlib
import itertools
import json
import os

import jax
import numpy as np
import pytest

from rb_jax.config import Config, DataConfig
from rb_jax.data.cache import prepared
from rb_jax.data.cache.prepared import Prepared, dataset_fingerprint, prepare
from rb_jax.data.pipeline import loader
from rb_jax.errors import InputError
from tests.data.fakes import SIZE, folder_config


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture
def config(tmp_path):
    return folder_config(tmp_path / "set", 7)


def quick(config, folder, **more):
    return prepare(config, "train", folder, progress=False, **more)


def encode(pictures):
    assert pictures.shape == (prepared.CHUNK, SIZE, SIZE, 3)
    return pictures[:, ::8, ::8].astype(np.float32) / 64


def test_batches_equal_the_streamed_ones(config, tmp_path):
    ready = quick(config, tmp_path / "p")
    assert len(ready) == 7
    streamed = loader.batches(config, "train", 3)
    stored = ready.batches(config.train.batch_size, config.data.seed, 3)
    for a, b in itertools.islice(zip(streamed, stored, strict=False), 5):
        assert same(a, b)
    halves = [next(ready.batches(4, 0, 3, np.arange(2 * i, 2 * i + 2))) for i in range(2)]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
    assert same(joined, next(loader.batches(config, "train", 3)))


def test_latents(config, tmp_path):
    ready = quick(config, tmp_path / "p", encode_latents=encode, fingerprint="e1")
    batch = ready[np.arange(7)]
    assert batch.source_latent is not None and batch.target_latent is not None
    assert batch.source_latent.dtype == np.float16
    assert batch.target is not None
    assert np.array_equal(batch.target_latent, (batch.target[:, ::8, ::8] / 64).astype(np.float16))


def test_latents_need_a_fingerprint_and_must_fit(config, tmp_path):
    with pytest.raises(ValueError, match="go together"):
        quick(config, tmp_path / "p", encode_latents=encode)
    with pytest.raises(ValueError, match="beyond float16"), np.errstate(over="ignore"):
        quick(config, tmp_path / "p", encode_latents=lambda p: encode(p) * 1e6, fingerprint="e")
    assert not (tmp_path / "p").exists()


def stamp(ready):
    return os.stat(ready.folder / "meta.json").st_ino


def test_reused_when_nothing_changed(config, tmp_path):
    first = stamp(quick(config, tmp_path / "p"))
    assert stamp(quick(config, tmp_path / "p")) == first
    steps = dataclasses.replace(config.train, steps=123, batch_size=2)
    assert stamp(quick(dataclasses.replace(config, train=steps), tmp_path / "p")) == first


def test_rebuilt_when_something_that_matters_changed(config, tmp_path):
    seen = {quick(config, tmp_path / "p").fingerprint}
    model = config.model
    for change in (
        {"data": dataclasses.replace(config.data, seed=9)},
        {"data": dataclasses.replace(config.data, image_size=64)},
        {"model": dataclasses.replace(model, frce=dataclasses.replace(model.frce, max_objects=2))},
        {"model": dataclasses.replace(model, text=dataclasses.replace(model.text, max_length=40))},
    ):
        ready = quick(dataclasses.replace(config, **change), tmp_path / "p")
        assert ready.fingerprint not in seen
        seen.add(ready.fingerprint)
    assert dataset_fingerprint(config, "train", "other encoder") not in seen
    image = tmp_path / "set/images/src/train/000000.png"
    os.utime(image, (1, 1))
    assert quick(config, tmp_path / "p").fingerprint not in seen


def test_pool_and_single_process_agree(tmp_path, monkeypatch):
    config = dataclasses.replace(Config(), data=DataConfig(count=130))
    alone = prepare(config, "train", tmp_path / "a", progress=False)
    monkeypatch.setattr(prepared, "POOL_FROM", 100)
    pooled = prepare(config, "train", tmp_path / "b", progress=False)
    assert same(alone[:], pooled[:])


def test_a_failure_leaves_nothing(config, tmp_path):
    good = stamp(quick(config, tmp_path / "p"))
    (tmp_path / "set/images/src/train/000003.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"000003\.png"):
        quick(config, tmp_path / "p")
    assert stamp(Prepared(tmp_path / "p")) == good
    assert sorted(os.listdir(tmp_path)) == ["p", "set"]


def test_what_a_kill_left_is_removed_and_work_in_progress_is_not(config, tmp_path):
    left, busy, others = (tmp_path / name for name in (".ready.a1", ".ready.b2", ".ready.notes"))
    for folder in (left, busy, others):
        folder.mkdir()
        (folder / "source.npy").write_bytes(b"half")
    for folder in (left, busy):
        (folder / "lock").touch()
    with (busy / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare(config, "train", tmp_path / "ready", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".ready.b2",
        ".ready.notes",
        "ready",
        "set",
    ]
    assert not (tmp_path / "ready" / "lock").exists()


def test_other_folders_are_not_touched(config, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not a prepared data set"):
        quick(config, tmp_path / "p")
    assert (tmp_path / "p/thesis.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert len(quick(config, tmp_path / "empty")) == 7


def test_damaged_folders_say_so(config, tmp_path):
    with pytest.raises(InputError, match="not a prepared data set"):
        Prepared(tmp_path / "none")
    folder = quick(config, tmp_path / "p").folder
    (folder / "source.npy").write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        Prepared(folder)
    for text in ("", "[]", json.dumps({"fingerprint": 1})):
        (folder / "meta.json").write_text(text)
        with pytest.raises(InputError, match="not a prepared data set"):
            Prepared(folder)


# VERSION -> the values of ReasonWorld scenes and of a folder, tokenised and segmented.
PINNED = {3: "c65bc2e94be63ee4"}


def test_a_change_of_the_values_needs_a_new_version(tmp_path):
    """A folder made by older code is reused by its version, so the version must tell the truth."""
    world = dataclasses.replace(Config(), data=DataConfig(count=5, image_size=SIZE))
    digest = hashlib.sha256()
    for number, each in enumerate((world, folder_config(tmp_path / "set", 3))):
        ready = quick(each, tmp_path / f"p{number}")
        for leaf in jax.tree.leaves(ready[np.arange(len(ready))]):
            digest.update(repr((leaf.dtype, leaf.shape)).encode() + leaf.tobytes())
    assert digest.hexdigest()[:16] == PINNED[prepared.VERSION], "raise prepared.VERSION, pin this"


def test_a_comment_more_in_the_code_keeps_the_data(config, tmp_path):
    """Only what is configured and what is in the data set counts."""
    wanted = dataset_fingerprint(config, "train")
    lines = (tmp_path / "set" / "train.jsonl").read_text().splitlines()
    (tmp_path / "set" / "train.jsonl").write_text("\n\n".join(lines) + "\n")
    assert dataset_fingerprint(config, "train") == wanted
