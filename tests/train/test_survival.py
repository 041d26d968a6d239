"""What ends a run, and what it leaves: failed saves, damage, values that are not finite, hangs."""

import json
import os
import re
import signal
import time
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax import storage
from rb_jax.checkpoint import layout, seal, stored
from rb_jax.checkpoint import manager as checkpoint
from rb_jax.checkpoint.opening import open_checkpoints
from rb_jax.errors import InputError
from rb_jax.files import check_writable
from rb_jax.runtime import logging
from rb_jax.runtime.exits import EXIT_DIVERGED, EXIT_IO, EXIT_PREEMPTED, RunError
from rb_jax.train import loop
from rb_jax.train.guard import Guard
from rb_jax.train.metrics import RunLog, read_lines
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.run import Run
from rb_jax.train.state import init_state, replace
from tests.children import child
from tests.torture.child import write_config
from tests.train import fake

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake.use(monkeypatch)


@pytest.fixture(scope="module")
def made():
    """A configuration and a state of it."""
    with pytest.MonkeyPatch.context() as patch:
        fake.use(patch)
        config = fake.config()
        return config, init_state(config, make_optimizer(config))


def at(state, step):
    return replace(state, step=jnp.int32(step))


def save(folder, made, steps, **kept):
    config, state = made
    with open_checkpoints(folder, **kept) as manager:
        for step in steps:
            manager.save(at(state, step), config, {"step": step})
    return folder / "checkpoints"


def restore(manager, made):
    config, state = made
    found = manager.restore_newest(config, lambda: state, lambda there: None)
    assert found is not None
    return found


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def test_a_workdir_of_another_scheme_is_refused():
    for workdir, message in {
        "hdfs://b/run": "workdir=hdfs://b/run: must be a path, or begin with gs:// or s3://",
        "gs:///run": "workdir=gs:///run: a bucket is missing; write gs://BUCKET/FOLDER",
        "s3://abc/../c": "workdir=s3://abc/../c: '..' means nothing in a bucket",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            loop.train(fake.config(), workdir)


def test_a_workdir_in_a_checkpoint_or_of_weights_is_refused(tmp_path):
    """A run in it would make the checkpoint one that is damaged."""
    config = fake.config(steps=3, checkpoint_every=3)
    assert loop.train(config, tmp_path) == 0
    before = storage.files(tmp_path)
    inside = ("checkpoints/3", "checkpoints/3/params", "checkpoints/3/deep/in/it")
    for where in inside:
        for refuse in (lambda p: loop.train(config, p), check_writable):
            with pytest.raises(InputError, match=r"lies in a checkpoint \(.*/checkpoints/3\)"):
                refuse(tmp_path / where)
    with pytest.raises(InputError, match="is a weights folder; choose another workdir"):
        loop.train(config, tmp_path / "weights")
    assert storage.files(tmp_path) == before


def test_a_workdir_that_can_never_be_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("x")
    for where in ("/proc/run", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            loop.train(fake.config(), where)


def test_lines_are_in_a_closed_file_before_a_checkpoint(tmp_path):
    log = RunLog(tmp_path, 0)
    log.write("train", 1, {"loss": 0.5})
    first = log.file
    log.sync()
    assert first is not None and first.closed
    log.write("train", 2, {"loss": 0.25})
    log.close()
    assert [row["loss"] for row in read_lines(tmp_path)] == [0.5, 0.25]


def test_newest_and_permanent_checkpoints_stay(tmp_path, made):
    folder = save(tmp_path, made, [2, 5, 10, 11, 13], keep=2, keep_every=5)
    assert layout.steps(folder) == [5, 10, 11, 13]
    assert sorted(p.name for p in (folder / "13").iterdir()) == [
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
        "ema",
        "loop",
        "optimizer",
        "params",
        "seal.json",
    ]
    listed = json.loads((folder / "13" / seal.NAME).read_text())["files"]
    assert {*listed, seal.NAME, *seal.LATER} == set(storage.files(folder / "13"))


def test_any_change_of_a_file_is_seen(tmp_path, made):
    folder = save(tmp_path, made, [1]) / "1"
    assert layout.problems(folder) == []
    for name in sorted(set(storage.files(folder)) - set(seal.LATER)):
        before = (folder / name).read_bytes()
        for content in (before[:-1], before + b"\n", before[1:], b""):
            (folder / name).write_bytes(content)
            assert layout.problems(folder), (name, content[:9])
        (folder / name).unlink()
        assert layout.problems(folder), name
        (folder / name).write_bytes(before)
    for name in seal.LATER:  # Orbax writes these after the seal; nothing of ours reads them
        before = (folder / name).read_bytes()
        for content in (before[1:], b"\0" + before):
            (folder / name).write_bytes(content)
            assert layout.problems(folder) == [f"{name}: cannot be read"]
        (folder / name).write_bytes(before)
    (folder / "more").touch()
    assert layout.problems(folder) == [f"more: not in {seal.NAME}"]
    (folder / "more").unlink()
    folder = folder.rename(folder.with_name("7"))
    assert layout.problems(folder) == ["loop: it is of step 1"]


def test_falls_back_to_the_step_before_and_says_so(tmp_path, made, capsys):
    folder = save(tmp_path, made, [3, 6, 9])
    flip(folder / "9" / "loop" / "metadata")
    (folder / "6" / seal.NAME).unlink()
    with (
        pytest.warns(UserWarning, match="9 is damaged: loop/metadata: the SHA-256 is wrong"),
        pytest.warns(UserWarning, match="6 is damaged: seal.json: missing"),
    ):
        assert stored.load_arrays(tmp_path)["step"] == 3
    with pytest.raises(InputError, match="loop/metadata: the SHA-256 is wrong"):
        stored.load_arrays(folder / "9")
    logging.setup()
    with open_checkpoints(tmp_path) as manager:
        state, progress = restore(manager, made)
        assert (int(state.step), progress, manager.last) == (3, {"step": 3}, 3)
        manager.save(at(made[1], 9), made[0], {})
    said = capsys.readouterr().err
    assert "checkpoints/9 is damaged: loop/metadata: the SHA-256 is wrong" in said
    assert "checkpoints/6 is damaged: seal.json: missing" in said
    assert "step 9 cannot be used: continuing from step 3 instead" in said
    assert sorted(p.name for p in folder.iterdir()) == ["3", "6.damaged", "9", "9.damaged"]


def test_nothing_good_is_an_error_and_no_fresh_start(tmp_path, made):
    folder = save(tmp_path, made, [3, 6])
    for step in ("3", "6"):
        flip(folder / step / "params" / "_METADATA")
    for _ in range(2):  # the second start meets the same
        with pytest.raises(InputError, match="every checkpoint is damaged, or none of rb_jax; b"):
            loop.train(made[0], tmp_path)
        assert layout.steps(folder) == [3, 6]
    for step in ("3", "6"):
        (folder / step).rename(folder / f"{step}.damaged")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        loop.train(made[0], tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="no checkpoint"):
            stored.load_ema(tmp_path)


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path, made):
    folder = save(tmp_path, made, [3])
    saving = f"6{checkpoint.SAVING}"
    for name in (saving, "notes", "5.damaged", "x.saving"):
        (folder / name / "params").mkdir(parents=True)
    with open_checkpoints(tmp_path) as manager:
        assert int(restore(manager, made)[0].step) == 3
    assert sorted(p.name for p in folder.iterdir()) == ["3", "5.damaged", "notes", "x.saving"]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, made):
    config, state = made
    folder = save(tmp_path, made, [3])
    name = next(iter(state.ema))
    broken = replace(at(state, 6), ema=state.ema | {name: state.ema[name].at[0].set(jnp.nan)})
    manager = open_checkpoints(tmp_path)
    manager.save(broken, config, {})
    with pytest.raises(RunError, match="step 6 is not finite, and not saved.*of step 3") as error:
        manager.wait()
    assert error.value.status == EXIT_DIVERGED and manager.failed()
    assert [p.name for p in folder.iterdir()] == ["3"]


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path, made):
    config, state = made
    with open_checkpoints(tmp_path) as manager:
        manager.save(at(state, 3), config, {})
        manager.wait()
        other = json.loads((tmp_path / "run.lock").read_text()) | {
            "owner": "x",
            "host": "elsewhere",
        }
        (tmp_path / "run.lock").write_text(json.dumps(other))
        manager.save(at(state, 6), config, {})
        assert manager.failed()
        with pytest.raises(RunError, match="another run has taken over .*on elsewhere") as error:
            manager.wait()
        assert error.value.status == EXIT_IO
        manager._commit = None
    assert layout.steps(tmp_path / "checkpoints") == [3]
    assert (
        json.loads((tmp_path / "run.lock").read_text())["owner"] == "x"
    )  # it is not ours to remove


def test_a_failed_save_ends_the_run_within_a_step(tmp_path, monkeypatch):
    """The folder cannot take the checkpoint of step 4 once its write has begun."""
    original, failed, seen = seal.write, [], []

    def write(folder, prints):
        if folder.name.startswith("4."):
            failed.append(True)
            raise OSError(28, "No space left on device")
        original(folder, prints)

    def next_batch(run, batches, original=Run.next_batch):
        if failed and run.manager.failed():
            seen.append(run.manager.failed())
        time.sleep(0.05)
        return original(run, batches)

    monkeypatch.setattr(seal, "write", write)
    monkeypatch.setattr(Run, "next_batch", next_batch)
    config = fake.config(steps=90, checkpoint_every=2, eval_every=100, keep_checkpoints=2)
    with pytest.raises(
        RunError, match="of step 4 could not be .*No space left.*of step 2"
    ) as error:
        loop.train(config, tmp_path)
    assert error.value.status == EXIT_IO
    assert len(seen) <= 2  # the step in which it happened, and the next
    folder = tmp_path / "checkpoints"
    assert layout.steps(folder) == [2] and layout.problems(folder / "2") == []


def test_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path, monkeypatch):
    def loss(self, batch, rng, rows=None):
        error = jnp.mean(self.predict(batch) ** 2)
        return jnp.where(error >= 0, jnp.nan, error), {"loss_flow": error}

    monkeypatch.setattr(fake.FakeBrain, "loss", loss)
    config = fake.config(steps=20, checkpoint_every=2, max_skipped=5, eval_every=50)
    for first in (0, 4):  # the count goes on where the checkpoint left it
        with pytest.raises(RunError, match="of 5 steps in a row was not finite") as error:
            loop.train(config, tmp_path)
        assert error.value.status == EXIT_DIVERGED
        assert layout.steps(tmp_path / "checkpoints")[-1] == 4, first
    arrays = stored.load_arrays(tmp_path)
    assert all(np.isfinite(x).all() for x in arrays.values()) and arrays["skipped"] == 4


def test_guard_counts_in_a_row_only():
    guard = Guard(3)
    for total in (1, 2, 2, 3, 4, 4):
        guard.add({"skipped": total})
    guard.add({"skipped": 5})
    guard.add({"skipped": 6})
    with pytest.raises(RunError, match="3 steps in a row"):
        guard.add({"skipped": 7})
    guard = Guard(0)
    for total in range(1000):
        guard.add({"skipped": total})


def test_state_hash_sees_every_bit(made):
    arrays = {name: np.asarray(x) for name, x in layout.flat(made[1]).items()}
    before = stored.state_hash(arrays)
    assert before == stored.state_hash(dict(reversed(arrays.items())))
    name = max(arrays, key=lambda n: arrays[n].size)
    other = arrays[name].copy()
    other.view(np.uint8).reshape(-1)[-1] ^= 1
    others = [
        arrays | {name: other},
        arrays | {name: arrays[name].reshape(-1)},
        arrays | {name: arrays[name].view(np.int32)},
        {f"{n}x" if n == name else n: x for n, x in arrays.items()},
    ]
    assert len({before, *map(stored.state_hash, others)}) == 5


HUNG_INPUT = """
import sys, time
from rb_jax import cli
from rb_jax.train import feed
from rb_jax.weights import params
from tests.train import fake
params.MODELS = fake.MODELS
original = feed.train_batches
def train_batches(*args):
    for number, batch in enumerate(original(*args)):
        if number == {good}:
            print("hangs", file=sys.stderr, flush=True)
            time.sleep(3600)
        yield batch
feed.train_batches = train_batches
sys.argv = ["rb-jax", "train", "--config={config}", "--workdir={workdir}"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("good", [0, 3])
def test_stopped_while_it_waits_for_input(tmp_path, good):
    config = write_config(tmp_path, steps=9, eval_every=50, checkpoint_every=50)
    code = HUNG_INPUT.format(good=good, config=config, workdir=tmp_path / "run")
    process = child(code, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert process.stderr is not None
    said = iter(process.stderr.readline, "")
    assert any(line == "hangs\n" for line in said)
    process.send_signal(signal.SIGTERM)
    assert process.wait(50) == EXIT_PREEMPTED
    process.stderr.close()
    assert layout.steps(tmp_path / "run" / "checkpoints") == [good] * (good > 0)


def test_files_that_may_not_grow_leave_the_last_checkpoint(tmp_path):
    """As a full disk: no file of a checkpoint may have more than a few bytes after the first."""
    config = fake.config(steps=9, checkpoint_every=2, eval_examples=0)
    code = f"""
import resource, signal, sys
import jax
jax.config.update("jax_platforms", "cpu")
from rb_jax.train import loop
from rb_jax.train.run import Run
from rb_jax.weights import params
from rb_jax.runtime.exits import RunError
from tests.train import fake
params.MODELS = fake.MODELS
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
original = Run.save
def save(run, state):
    original(run, state)
    if int(state.step) == 2:
        run.manager.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
Run.save = save
try:
    loop.train(fake.config(steps=9, checkpoint_every=2, eval_examples=0), {str(tmp_path)!r})
except RunError as error:
    print(f"status {{error.status}}: {{error}}", file=sys.stderr)
"""
    process = child(code)
    said = process.communicate(timeout=120)[1]
    assert f"status {EXIT_IO}: the checkpoint of step 4 could not be written" in said, said
    assert "the last good one is of step 2" in said
    folder = tmp_path / "checkpoints"
    assert layout.steps(folder) == [2] and layout.problems(folder / "2") == []
    assert loop.train(config, tmp_path) == 0
