"""Every family: the picture decides, the edit is the right size, the wording is in bounds."""

import collections
import dataclasses

import numpy as np
import pytest

from rb_jax.data.reasonworld import FAMILIES, ReasonWorld
from rb_jax.data.reasonworld.render import render
from rb_jax.data.reasonworld.scene import Scene, Thing


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_sentence_has_different_outcomes(family):
    """Reading only the instruction fails: no sentence that is common fixes the outcome."""
    world = ReasonWorld(families=[family])
    outcomes = collections.defaultdict(collections.Counter)
    for i in range(400):
        example = world[i]
        outcomes[example.instruction][example.outcome] += 1
    common = [seen for seen in outcomes.values() if seen.total() >= 8]
    assert common
    assert all(len(seen) >= 2 for seen in common)
    assert all(max(seen.values()) <= 0.85 * seen.total() for seen in common if seen.total() >= 25)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures(family):
    """Edits cover a learnable area, and every candidate is visibly another picture."""
    world = ReasonWorld(families=[family], size=64)
    areas = []
    for i in range(25):
        example = world[i]
        areas.append(example.mask.mean())
        candidates = (example.source, *example.alternatives)
        assert len(candidates) >= 2
        for other in candidates:
            apart = np.abs(example.target.astype(int) - other).max(axis=-1) > 24
            assert apart.sum() >= 24, f"example {i} is ambiguous"
        changed = np.abs(example.target.astype(int) - example.source).max(axis=-1) > 12
        assert not (changed & ~example.mask).any()
        assert 0.02 < areas[-1] < 0.5
    assert 0.03 <= np.mean(areas) <= 0.45


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["train", "test_unseen"])
def test_words(family, split):
    world = ReasonWorld(split, families=[family])
    for i in range(80):
        example = world[i]
        assert example.instruction.isascii()
        assert "{" not in example.instruction
        assert len(example.instruction.split()) <= 20
        assert example.instruction[0].isupper() and example.instruction[-1] in ".?"
        assert 1 <= len(example.objects) <= 4
        assert all(1 <= len(name.split()) <= 3 for name in example.objects)
        assert example.source_caption != example.target_caption


def test_outcome_follows_from_the_scene():
    """Moving the deciding cue, and nothing else, changes what happens."""
    from rb_jax.data.reasonworld import causal, physical

    seesaw, slope = physical.FAMILIES[0], physical.FAMILIES[1]
    scene = ReasonWorld(families=["seesaw"])[0].scene
    swapped = scene.swap("left", *(t.but(w=t.w * 3, h=t.h * 3) for t in scene.all("left"))).swap(
        "right", *(t.but(w=t.w / 3, h=t.h / 3) for t in scene.all("right"))
    )
    assert seesaw.decide(swapped) == "left"
    scene = ReasonWorld(families=["slope"])[0].scene
    turned = scene.change("plank", level=-scene.one("plank").level)
    assert slope.decide(turned) != slope.decide(scene)
    dominoes = next(f for f in causal.FAMILIES if f.name == "dominoes")
    tiles = [Thing("domino", 0.1 * k, 0.8, 0.05, 0.2, role="tile") for k in (2, 3, 4, 7, 8)]
    row = Scene("mint", "red", (*tiles, Thing("ball", 0.1, 0.8, role="ball")))
    assert dominoes.decide(row) == ("right", 3)
    assert dominoes.decide(row.change("ball", x=0.95)) == ("left", 2)
    tall = row.swap("tile", *(t.but(h=0.3) for t in tiles))
    assert dominoes.decide(tall) == ("right", 5)


def test_water_is_conserved():
    from rb_jax.data.reasonworld import causal

    dam = causal.FAMILIES[0]
    world = ReasonWorld(families=["dam"])
    for i in range(10):
        scene = world[i].scene
        after = dam.effect(scene, dam.decide(scene))
        volumes = [
            sum(t.w * t.h for role in ("left", "middle", "right") for t in s.all(role))
            for s in (scene, after)
        ]
        assert volumes[1] == pytest.approx(volumes[0])


def test_unknown_kind_raises():
    with pytest.raises(KeyError):
        render(Scene("mint", "red", (Thing("volcano", 0.5, 0.5),)), 32)


def test_scene_swap_removes_replaces_and_adds():
    a, b = Thing("ball", 0.1, 0.5, role="x"), Thing("crate", 0.2, 0.5)
    scene = Scene("mint", "red", (a, b))
    assert scene.swap("x").things == (b,)
    moved = dataclasses.replace(a, x=0.7)
    assert scene.swap("x", moved).things == (moved, b)
    assert scene.swap("x", moved, a).things == (moved, b, a)
    with pytest.raises(ValueError):
        scene.one("nothing")
