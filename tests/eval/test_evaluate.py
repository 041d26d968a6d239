"""Editing and scoring a split, with random weights."""

import json

import numpy as np
import pytest

from rb_jax.data.inputs.images import open_image
from rb_jax.errors import InputError
from rb_jax.eval import evaluate as E
from rb_jax.eval.reasonworld import score_edit


@pytest.fixture(scope="module")
def evaluation(editor):
    return E.evaluate(editor, "test", 3, seed=1, steps=1)


def test_report(evaluation, editor):
    report, edits = evaluation
    assert (report["split"], report["count"], report["seed"]) == ("test", 3, 1)
    assert report["scores"].keys() == {"model", "copy", "codec"}
    assert all(groups["overall"]["count"] == 3 for groups in report["scores"].values())
    copy = report["scores"]["copy"]["overall"]
    assert copy["ins_align"] == 0.0 and copy["preservation_psnr"] == 60.0
    families = {s.example.family for s in edits}
    assert report["families"].keys() == families
    assert len(edits) == 3 and all(s.edited.shape == (32, 32, 3) for s in edits)
    for scored, example in zip(edits, E.open_world("test", 3, 32), strict=True):
        assert scored.example.id == example.id
        assert score_edit(example, scored.edited) == scored.score
    # The oracle is the target through the autoencoder.
    codec = E.edit_all([s.example for s in edits], E.through_codec(editor), "codec")
    expected = editor.reconstruct(
        np.stack([s.example.target for s in edits] + 13 * [edits[0].example.target])
    )
    np.testing.assert_array_equal([s.edited for s in codec], expected[:3])


def test_seed_decides(evaluation, editor):
    again, _ = E.evaluate(editor, "test", 3, seed=1, steps=1)
    other, edits = E.evaluate(editor, "test", 3, seed=2, steps=1)
    assert json.dumps(again) == json.dumps(evaluation[0])
    assert np.any(edits[0].edited != evaluation[1][0].edited)


def test_batches_draw_noise_of_their_own(editor):
    example = E.open_world("test", 1, 32)[0]
    edit = E.with_editor(editor, seed=1, steps=1)
    first, second = (edit([example] * E.BATCH, start) for start in (0, E.BATCH))
    assert np.any(first != second)


def test_objects_that_the_world_does_not_tell_are_found(editor, monkeypatch):
    examples, given = E.open_world("test", E.BATCH, 32), []

    def edit_batch(batch, **_):
        given.append(batch)
        return np.stack([e.source for e in batch])

    monkeypatch.setattr(editor, "edit_batch", edit_batch)
    for find in (False, True):
        E.with_editor(editor, find_objects=find)(examples, 0)
    assert [e.objects for e in given[0]] == [tuple(e.objects) for e in examples]
    assert all(e.objects == () for e in given[1])


def test_more_examples_than_a_batch_keep_their_order():
    examples = E.open_world("val", E.BATCH + 2, 32)
    sizes = []

    def edit(chunk, start):
        sizes.append((len(chunk), start))
        return np.stack([e.target for e in chunk])

    scored = E.edit_all(examples, edit, "targets")
    assert sizes == [(E.BATCH, 0), (E.BATCH, E.BATCH)]
    assert [s.example.id for s in scored] == [e.id for e in examples]
    assert all(s.score.aligned for s in scored)
    assert E.summary(scored)["overall"]["ins_align"] == 1.0
    assert set(E.by_family(scored).values()) == {1.0}


def test_files(evaluation, tmp_path):
    report, edits = evaluation
    out = tmp_path / "a" / "b"
    E.write_evaluation(out, report, edits)
    E.write_evaluation(out, report, edits)  # over an earlier one
    assert sorted(p.name for p in out.iterdir()) == ["edits", "grid.png", "scores.json"]
    stored = json.loads((out / "scores.json").read_text())
    assert stored["scores"]["copy"]["overall"]["ins_align"] == 0.0
    assert min(open_image(out / "grid.png").shape[:2]) > 32
    for made, scored in zip(E.read_edits(out, 3), edits, strict=True):
        np.testing.assert_array_equal(made, scored.edited)
    table = E.score_table(report)
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["model", "copy", "codec"]


def test_grid_shows_different_families_of_each_category(evaluation):
    examples = E.open_world("test", 40, 32)
    scored = [E.Scored(e, e.target, score_edit(e, e.target)) for e in examples]
    rows = E.grid_rows(E.choose(scored, 2))
    categories = [row.category for row in rows]
    assert categories == sorted(categories, key=categories.index)
    assert all(categories.count(c) <= 2 for c in categories)


def test_refusals(editor, tmp_path, evaluation):
    with pytest.raises(InputError, match="count must be at least 1"):
        E.evaluate(editor, "test", 0)
    with pytest.raises(InputError, match="nose"):
        E.evaluate(editor, "nose", 3)
    with pytest.raises(InputError, match="seed must be between"):
        E.evaluate(editor, "test", 3, seed=-1)
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below" / "it"):
        with pytest.raises(InputError, match="cannot be written"):
            E.write_evaluation(out, *evaluation)
