"""The stream: determinism, balance, splits, arguments."""

import collections
import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rb_jax.data.reasonworld import CATEGORIES, FAMILIES, SPLITS, ReasonWorld
from rb_jax.data.reasonworld.world import compositions

_DIGEST = """
import hashlib
from rb_jax.data.reasonworld import ReasonWorld
sha = hashlib.sha256()
world = ReasonWorld("val", 3, 48)
for i in range(24):
    ex = world[i]
    sha.update(ex.source.tobytes() + ex.target.tobytes() + ex.alternatives[0].tobytes())
    sha.update(repr((ex.id, ex.instruction, ex.objects, ex.target_caption)).encode())
digest = sha.hexdigest()
print(digest)
"""


def test_same_bytes_in_another_process():
    path = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", _DIGEST], env=env, text=True, capture_output=True, check=True
    )
    here: dict = {}
    assert ReasonWorld("val", 3, 48)[99].source.any()  # earlier access must not matter
    exec(_DIGEST, here)
    assert run.stdout.strip() == here["digest"]
    assert here["digest"] != hashlib.sha256().hexdigest()


def test_seed_split_and_index_each_change_the_example():
    base = ReasonWorld("train", 0)[5].scene
    assert ReasonWorld("train", 1)[5].scene != base
    assert ReasonWorld("val", 0)[5].scene != base
    assert ReasonWorld("train", 0)[6].scene != base


@pytest.mark.parametrize("start", [0, 7, 1001])
def test_windows_are_balanced_over_categories_and_families(start):
    world = ReasonWorld(seed=4)
    window = [world[i] for i in range(start, start + 16)]
    count = collections.Counter(example.category for example in window)
    assert count == dict.fromkeys(CATEGORIES, 4)
    lap = [world[i].family for i in range(len(FAMILIES))]
    assert sorted(lap) == sorted(FAMILIES)


def test_there_are_enough_families():
    world = ReasonWorld()
    kinds = {(world[i].category, world[i].family) for i in range(len(FAMILIES))}
    count = collections.Counter(category for category, _ in kinds)
    assert set(count) == set(CATEGORIES)
    assert min(count.values()) == max(count.values()) >= 4


def test_a_subset_of_families_and_only_that():
    world = ReasonWorld(families=("rope", "giant"))
    assert {world[i].family for i in range(10)} == {"rope", "giant"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "dev"}, "split must be one of train, val"),
        ({"size": 16}, "size must be from 32 to 512"),
        ({"size": 1024}, "size must be from 32 to 512"),
        ({"families": ("seesaw", "volcano")}, "no family called 'volcano'"),
        ({"families": ()}, "families is empty"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        ReasonWorld(**arguments)


def test_negative_index():
    with pytest.raises(IndexError, match="from 0"):
        ReasonWorld()[-1]


def test_unseen_split_shares_no_composition_and_no_sentence():
    combos: dict = {split: collections.defaultdict(set) for split in SPLITS}
    phrases: dict = {split: collections.defaultdict(set) for split in SPLITS}
    for split in SPLITS:
        world = ReasonWorld(split)
        for i in range(40 * len(FAMILIES)):
            example = world[i]
            combos[split][example.family].add((example.scene.backdrop, example.scene.hue))
            phrases[split][example.family].add(example.instruction)
    for family in FAMILIES:
        for seen in ("train", "val", "test"):
            assert not combos[seen][family] & combos["test_unseen"][family]
            assert not phrases[seen][family] & phrases["test_unseen"][family]
            assert len(phrases[seen][family]) >= 8
        assert len(phrases["test_unseen"][family]) >= 3
        assert combos["test_unseen"][family] <= set(compositions(family, True))
        # what is held out is only the combination: each part alone is in train
        for part in (0, 1):
            known = {combo[part] for combo in compositions(family, False)}
            assert {combo[part] for combo in compositions(family, True)} <= known


def test_size_changes_the_pixels_but_not_the_scene():
    for i in range(len(FAMILIES)):
        small, large = ReasonWorld(size=64)[i], ReasonWorld(size=192)[i]
        assert small.scene == large.scene
        assert small.instruction == large.instruction
        shrunk = np.asarray(Image.fromarray(large.target).reduce(3)).astype(int)
        assert np.abs(shrunk - small.target).mean() < 4


@pytest.mark.parametrize("size", [32, 100, 512])
def test_sizes(size):
    example = ReasonWorld(size=size)[3]
    pictures = (example.source, example.target, *example.alternatives)
    assert {p.shape for p in pictures} == {(size, size, 3)}
    assert {p.dtype for p in pictures} == {np.dtype(np.uint8)}
    assert example.mask.shape == (size, size)
    assert example.mask.dtype == bool


def test_examples_are_frozen_and_travel_between_processes():
    example = ReasonWorld()[11]
    with pytest.raises(AttributeError):
        example.instruction = "something else"  # pyright: ignore[reportAttributeAccessIssue]
    copy = pickle.loads(pickle.dumps(example))
    assert copy == example
    assert (copy.target == example.target).all()
