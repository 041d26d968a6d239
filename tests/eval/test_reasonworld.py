"""Scores on edits whose quality is known."""

import math

import numpy as np
import pytest

from rb_jax.data.reasonworld import FAMILIES, ReasonWorld
from rb_jax.eval.reasonworld import PSNR_CAP, EditScore, score_edit, summarize, wilson


@pytest.mark.parametrize("split", ["train", "test_unseen"])
def test_right_wrong_and_unchanged_on_every_family(split):
    world = ReasonWorld(split, size=48)
    for i in range(3 * len(FAMILIES)):
        example = world[i]
        right = score_edit(example, example.target)
        assert right.aligned and right.nearest == "right"
        assert right.edited_psnr == PSNR_CAP
        assert right.preservation_psnr > 35
        copy = score_edit(example, example.source)
        assert not copy.aligned and copy.nearest == "unchanged"
        assert copy.preservation_psnr == PSNR_CAP
        assert copy.edited_psnr < 25
        for k, wrong in enumerate(example.alternatives):
            score = score_edit(example, wrong)
            assert not score.aligned and score.nearest == f"wrong:{k}"


def test_alignment_survives_blur_and_noise_and_ignores_the_rest():
    example = ReasonWorld(size=64)[2]
    rng = np.random.default_rng(0)
    noisy = np.clip(example.target + rng.normal(0, 20, example.target.shape), 0, 255)
    noisy = noisy.astype(np.uint8)
    score = score_edit(example, noisy)
    assert score.aligned
    assert 20 < score.edited_psnr < 25
    assert 20 < score.preservation_psnr < 25
    half = (example.source.astype(float) * 0.7 + example.target * 0.3).astype(np.uint8)
    assert score_edit(example, half).nearest == "unchanged"


def test_psnr_is_in_decibels_inside_and_outside_the_mask():
    example = ReasonWorld(size=64)[0]
    shifted = np.where(example.target < 128, example.target + 10, example.target - 10)
    score = score_edit(example, shifted.astype(np.uint8))
    assert score.edited_psnr == pytest.approx(20 * math.log10(255 / 10), abs=1e-6)
    moved = np.where(example.source < 128, example.source + 20, example.source - 20)
    picture = np.where(example.mask[..., None], example.target, moved).astype(np.uint8)
    score = score_edit(example, picture)
    assert score.edited_psnr == PSNR_CAP
    assert score.preservation_psnr == pytest.approx(20 * math.log10(255 / 20), abs=1e-6)


def test_pictures_of_another_kind_are_refused():
    example = ReasonWorld(size=64)[0]
    with pytest.raises(ValueError, match="uint8"):
        score_edit(example, example.target.astype(np.float32))
    with pytest.raises(ValueError, match="64"):
        score_edit(example, example.target[:32])


def test_summary_overall_and_per_category():
    good, bad = EditScore(True, "right", 30.0, 40.0), EditScore(False, "wrong:0", 10.0, 20.0)
    table = summarize([("story", good), ("physical", good), ("physical", bad), ("physical", good)])
    assert list(table) == ["overall", "physical", "story"]
    assert table["overall"]["count"] == 4
    assert table["overall"]["ins_align"] == 0.75
    assert table["physical"]["ins_align"] == pytest.approx(2 / 3)
    assert table["physical"]["edited_psnr"] == pytest.approx(70 / 3)
    spread = np.std([30, 10, 30], ddof=1) / math.sqrt(3)
    assert table["physical"]["edited_psnr_ci"] == pytest.approx(1.96 * spread, rel=1e-3)
    assert math.isnan(table["story"]["preservation_psnr_ci"])
    with pytest.raises(ValueError, match="no scores"):
        summarize([])


def test_wilson_interval_against_published_values():
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    low, high = wilson(0, 20)  # the same table: 0 to 0.1611
    assert (low, high) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.1611, abs=1e-4))
    assert wilson(0, 0) == (0.0, 1.0)
