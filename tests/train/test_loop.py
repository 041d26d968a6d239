"""Runs of the loop on the fake model: stopping, continuing, refusing."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import types

import numpy as np
import pytest
from PIL import Image

from rb_jax.checkpoint import stored
from rb_jax.checkpoint.stored import load_weights
from rb_jax.config import ConfigError, ProfileConfig
from rb_jax.errors import InputError
from rb_jax.runtime.exits import EXIT_IO, RunError
from rb_jax.train import loop
from rb_jax.train.metrics import is_timing, read_lines
from rb_jax.train.run import Run
from tests.train import fake


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake.use(monkeypatch)


def final_hash(workdir, step):
    return stored.state_hash(stored.load_arrays(workdir / "checkpoints" / str(step)))


def rows(workdir):
    found = [row for row in read_lines(workdir) if row["kind"] != "start"]
    return [{k: v for k, v in row.items() if not is_timing(k)} for row in found]


def stop_at(step, number, monkeypatch):
    """Sends a signal to this process while the loop waits for the batch after ``step``."""
    original, calls = Run.next_batch, [0]

    def next_batch(run, batches):
        calls[0] += 1
        if calls[0] == step + 1:
            os.kill(os.getpid(), number)
        return original(run, batches)

    monkeypatch.setattr(Run, "next_batch", next_batch)


def test_stopped_and_continued_equals_uninterrupted(tmp_path, monkeypatch):
    config = fake.config(steps=7, log_every=3)
    assert loop.train(config, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_at(4, signal.SIGTERM, patch)
        assert loop.train(config, tmp_path / "parts") == 75
    assert not (tmp_path / "parts" / "weights").exists()
    assert loop.train(config, tmp_path / "parts") == 0
    assert final_hash(tmp_path / "whole", 7) == final_hash(tmp_path / "parts", 7)
    whole = rows(tmp_path / "whole")
    assert [(r["step"], r["kind"]) for r in whole if r["kind"] == "train"] == [
        (3, "train"),
        (6, "train"),
        (7, "train"),
    ]
    assert whole == rows(tmp_path / "parts")  # with the evaluation due at the step of the stop


def test_what_was_written_after_the_last_checkpoint_is_written_anew(tmp_path):
    config = fake.config(steps=6)
    loop.train(config, tmp_path)
    before = rows(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "weights")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "kind": "tra')
    assert loop.train(config, tmp_path) == 0
    assert rows(tmp_path) == before


def test_interrupt_ends_with_130(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    stop_at(2, signal.SIGINT, monkeypatch)
    assert loop.train(fake.config(), tmp_path) == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_finished_run_says_so_and_may_be_prolonged(tmp_path, capsys):
    config = fake.config(steps=3)
    assert loop.train(config, tmp_path) == 0
    assert loop.train(config, tmp_path) == 0
    assert "already finished" in capsys.readouterr().err
    assert loop.train(fake.config(steps=5, log_every=1, checkpoint_every=1), tmp_path) == 0
    assert rows(tmp_path)[-1]["step"] == 5


def test_another_configuration_is_refused(tmp_path):
    config = fake.config(steps=3)
    loop.train(config, tmp_path)
    other = fake.config(steps=3, seed=5, ema_decay=0.5)
    said = r"train.ema_decay is \S+ there, not 0.5; train.seed is 0 there, not 5;"
    with pytest.raises(InputError, match=said):
        loop.train(other, tmp_path)
    lower = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=0))
    with pytest.raises(
        InputError,
        match=r"train.steps is 3 there, not 0 \(train.steps may be raised, not lowered\)",
    ):
        loop.train(lower, tmp_path)


def test_outputs(tmp_path, capsys):
    config = fake.config()
    loop.train(config, tmp_path)
    picture = np.asarray(Image.open(tmp_path / "samples" / "step_4.png"))
    side = config.data.image_size + 4
    assert picture.shape == (3 * side, 3 * side, 3)
    stored, params = load_weights(tmp_path / "weights")
    assert stored == config
    _, of_checkpoint = load_weights(tmp_path)
    assert params.keys() == of_checkpoint.keys()
    assert all(np.array_equal(params[path], of_checkpoint[path]) for path in params)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 6
    assert list((tmp_path / "tensorboard").iterdir())
    lines = capsys.readouterr().err
    assert "step 4/6  loss 0." in lines and "compiled the step in" in lines
    train_rows = [row for row in read_lines(tmp_path) if row["kind"] == "train"]
    assert all(row["steps_per_second"] > 0 and 0 <= row["input_wait"] <= 1 for row in train_rows)
    spent = {k: v for k, v in train_rows[-1].items() if k.startswith("goodput/")}
    assert len(spent) == 5 and min(spent.values()) > 0
    shares = [row["goodput"] for row in train_rows]
    assert shares[-1] == pytest.approx(spent["goodput/step_seconds"] / sum(spent.values()))


def test_goodput_counts_earlier_starts_too(tmp_path, monkeypatch):
    config = fake.config(steps=7, log_every=2)
    with monkeypatch.context() as patch:
        stop_at(4, signal.SIGTERM, patch)
        assert loop.train(config, tmp_path) == 75
    before = [row for row in read_lines(tmp_path) if row["kind"] == "train"][-1]
    assert loop.train(config, tmp_path) == 0
    after = [row for row in read_lines(tmp_path) if row["kind"] == "train"][-1]
    for phase in ("compile", "input", "checkpoint"):
        assert after[f"goodput/{phase}_seconds"] > before[f"goodput/{phase}_seconds"]


def test_traces_the_steps_that_are_asked_for(tmp_path):
    config = dataclasses.replace(fake.config(), profile=ProfileConfig("2:4"))
    assert loop.train(config, tmp_path) == 0
    (trace,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
    late = dataclasses.replace(config, profile=ProfileConfig("6:9"))  # ends with the run
    shutil.rmtree(tmp_path)
    assert loop.train(late, tmp_path) == 0
    assert len(list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))) == 1


@pytest.mark.parametrize("steps", ["5", "7:7", "0:3", "a:b", "3:"])
def test_a_range_of_steps_to_trace_is_checked(steps):
    with pytest.raises(ConfigError, match="profile.steps"):
        dataclasses.replace(fake.config(), profile=ProfileConfig(steps))


def test_logs_go_to_weights_and_biases_too(tmp_path, monkeypatch):
    logged, ended = {}, []

    class Run:
        def log(self, values, step):
            logged.setdefault(step, {}).update(values)

        def finish(self):
            ended.append(True)

    wandb = types.SimpleNamespace(init=lambda **_: Run(), Image=lambda image: image.shape)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert loop.train(fake.config(wandb="rope"), tmp_path) == 0
    assert ended == [True]
    assert logged[4]["train/loss"] == read_lines(tmp_path)[2]["loss"]
    assert logged[4]["edits"][-1] == 3 and "val/loss" in logged[4]


def test_weights_and_biases_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        loop.train(fake.config(wandb="rope"), tmp_path)


@pytest.mark.parametrize("task", ["edit", "mmdit"])
def test_trains_on_noise_of_the_tasks_shapes(tmp_path, task):
    """Without preparing anything, and with pictures only where there are some."""
    pictures = 3 if task == "edit" else 0
    config = fake.config(eval_examples=pictures, frozen=(), checkpoint_every=4, steps=8)
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, task=task),
        data=dataclasses.replace(config.data, name="synthetic", prepare=True),
    )
    assert loop.train(config, tmp_path) == 0
    assert not (tmp_path / "prepared").exists()
    assert (tmp_path / "samples").exists() == (task == "edit")
    kept = rows(tmp_path)
    assert [row["step"] for row in kept if row["kind"] == "val"] == [4, 8]
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    assert loop.train(config, tmp_path) == 0
    assert rows(tmp_path) == kept


def test_runs_outside_the_main_thread(tmp_path):
    codes = []
    config = fake.config(steps=3, eval_examples=0)
    thread = threading.Thread(target=lambda: codes.append(loop.train(config, tmp_path)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert not (tmp_path / "samples").exists()


def test_an_evaluation_is_compiled_when_it_is_due_and_never_before_a_save(tmp_path, monkeypatch):
    events = []

    def watch(owner, name, note):
        original = getattr(owner, name)

        def noted(self, *args):
            events.append(note(*args))
            return original(self, *args)

        monkeypatch.setattr(owner, name, noted)

    def state_on_disk(state):
        return int(state.step), (tmp_path / "checkpoints" / str(int(state.step))).exists()

    watch(loop.Evaluator, "compile", state_on_disk)
    watch(loop.Signals, "hold", lambda: "hold")
    watch(loop.Signals, "release", lambda: "release")
    config = fake.config(steps=9)  # evaluated at 4, 8 and the end
    assert loop.train(config, tmp_path) == 0
    assert events == ["hold", "release", (4, True), "hold", "release"]
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "val"] == [4, 8, 9]


def test_a_signal_during_the_save_ahead_of_compiling_does_not_wait_for_it(tmp_path, monkeypatch):
    config = fake.config(steps=7)
    with monkeypatch.context() as patch:
        original, saves = Run.save, []

        def save(run, state):
            original(run, state)
            saves.append(int(state.step))
            if len(saves) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        def compile(self, state):
            raise AssertionError("compiled, though the run is to stop")

        patch.setattr(Run, "save", save)
        patch.setattr(loop.Evaluator, "compile", compile)
        assert loop.train(config, tmp_path / "parts") == 75
        patch.setattr(Run, "save", original)
        # Continued, where the evaluation comes first, and stopped in the middle of it.
        patch.setattr(loop.Evaluator, "compile", lambda self, state: None)
        patch.setattr(loop.Evaluator, "evaluate", stopped_by_a_signal)
        assert loop.train(config, tmp_path / "parts") == 75
    assert loop.train(config, tmp_path / "parts") == 0
    assert loop.train(config, tmp_path / "whole") == 0
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def stopped_by_a_signal(self, workdir, log, state, stops):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stops()
    return False


def test_weights_that_cannot_be_written_end_the_run_as_checkpoints_do(tmp_path):
    config = fake.config(steps=3)
    (tmp_path / "weights").write_text("in the way")
    with pytest.raises(RunError, match="weights: exists and is not a folder") as ended:
        loop.train(config, tmp_path)
    assert ended.value.status == EXIT_IO
    (tmp_path / "weights").unlink()
    assert loop.train(config, tmp_path) == 0
    assert load_weights(tmp_path / "weights")[0] == config
