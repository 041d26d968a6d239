"""The command line, in this process: what each verb does and says."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rb_jax.cli import VERBS, main, train
from rb_jax.cli.completion import flags_of
from rb_jax.cli.flags import Flags
from rb_jax.config import files
from rb_jax.data.formats.reason50k import Reason50K
from tests import tiny
from tests.cli.test_refusals import contents

EDIT = ["edit", "--image=in.png", "--instruction=What if it rained?", "--out=out.png"]
TRAIN = ["train", "--config=reasonworld", "--workdir=run"]
DATA = ["data", "reasonworld", "--out=set"]


def test_usage(capsys):
    assert main([]) == 2
    bare = capsys.readouterr().out
    assert all(f"rb-jax {verb}" in bare for verb in VERBS)
    for word in ("--help", "-h", "help"):
        assert main([word]) == 0
        assert capsys.readouterr().out == bare
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rb_jax ")
    for words in (["data", "--help"], ["help", "data"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert "rb-jax data cache" in out and "rb-jax train" not in out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_lists_its_flags(verb, capsys):
    shown = set()
    for words in ([*verb.split(), "--help"], [*verb.split(), "-h"], ["help", *verb.split()]):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert err == "" and out.startswith(f"rb-jax {verb}: ")
        shown.add(out)
    assert len(shown) == 1
    missing = [name for name in flags_of(verb).names() if f"--{name}\n" not in out]
    assert missing == [] and "--verbosity\n" in out


def test_the_module_is_the_command():
    command = [sys.executable, "-X", "importtime", "-m", "rb_jax", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "rb-jax train" in done.stdout
    assert not any(f" {name}\n" in done.stderr for name in ("jax", "numpy", "absl"))


def test_edit(weights, editor, folder, capsys):
    before = {p.name for p in folder.iterdir()}
    assert main([*EDIT, weights(editor), "--steps=1", "--seed=7"]) == 0
    assert capsys.readouterr().out == "out.png: 30 x 40 pixels\n"
    expected = editor.edit("in.png", "What if it rained?", steps=1, seed=7)
    np.testing.assert_array_equal(Image.open("out.png"), expected)
    assert {p.name for p in folder.iterdir()} == before | {"out.png"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--instruction="], "the instruction is empty"),
        (["--instruction=" + "why " * 99], "the limit is 34"),
        (["--steps=0"], "steps must be between"),
        (["--seed=-1"], "seed must be between"),
        (["--seed=99999999999999999999"], "seed must be between"),
        (["--guidance=nan"], "guidance must be between"),
    ],
)
def test_edits_that_the_model_refuses(weights, editor, folder, capsys, flags, message):
    before = contents(folder)
    assert main([*EDIT, weights(editor), *flags]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rb-jax: ") and message in last
    assert contents(folder) == before


def test_evaluate(weights, editor, folder, capsys):
    flag = weights(editor)
    assert main(["evaluate", flag, "--out=o", "--split=val", "--count=3", "--steps=1"]) == 0
    out = capsys.readouterr().out
    assert "Ins-Align" in out and "o/scores.json, o/grid.png" in out
    stored = json.loads((folder / "o" / "scores.json").read_text())
    assert (stored["split"], stored["count"]) == ("val", 3)
    assert (folder / "o" / "grid.png").stat().st_size > 1000
    for flags in (["--split=nose"], ["--count=0"], ["--seed=-1"]):
        assert main(["evaluate", flag, "--out=other", *flags]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("rb-jax: ")
    assert not (folder / "other").exists()


def test_a_tilde_is_the_home_folder(folder, monkeypatch, capsys):
    """Which no shell puts behind an equals sign."""
    monkeypatch.setenv("HOME", str(folder / "home"))
    command = ["data", "reasonworld", "--out=~/w", "--split=val", "--count=1", "--size=32"]
    assert main(command) == 0
    assert (folder / "home" / "w" / "val.jsonl").exists() and not (folder / "~").exists()


def test_data(folder, capsys):
    assert main([*DATA, "--split=val", "--count=3", "--size=32"]) == 0
    assert "set: 3 examples of val" in capsys.readouterr().out
    written = Reason50K(folder / "set", "val", 32)
    assert len(written) == 3 and written[2].source.shape == (32, 32, 3)
    before = contents(folder)
    assert main([*DATA, "--split=val", "--count=2", "--size=32"]) == 2
    assert "rb-jax: " in capsys.readouterr().err
    assert contents(folder) == before


def test_overrides_reach_the_training(monkeypatch):
    seen = {}

    def fake_train(config, workdir, signals):
        seen.update(config=config, workdir=workdir)
        return 75

    monkeypatch.setattr("rb_jax.train.loop.train", fake_train)
    overrides = [
        "--config.train.steps=250",
        "--config.model.frce.region_branch=false",
        "--config.optimizer.learning_rate=1",
        "--config.model.mmdit.axes_dim=(16,8,16)",
    ]
    assert main([*TRAIN, *overrides]) == 75
    config = seen["config"]
    assert seen["workdir"] == "run" and config.train.steps == 250
    assert config.model.frce.region_branch is False and config.optimizer.learning_rate == 1.0
    assert config.model.mmdit.axes_dim == (16, 8, 16)
    assert config.model.vision == type(tiny.CONFIG)().model.vision


def test_dashes_in_flags_are_underscores(tmp_path, capsys):
    """Values keep theirs."""
    flags = [f"--source={tmp_path}/no-such", f"--out={tmp_path}/o", "--allow-pickle"]
    assert main(["import", *flags]) == 2
    assert "no-such" in capsys.readouterr().err


def test_no_weights(folder, capsys):
    for argv in ([*EDIT, "--checkpoint=."], ["evaluate", "--out=o", "--checkpoint=no"]):
        before = contents(folder)
        assert main(argv) == 2
        assert "no model.safetensors" in capsys.readouterr().err.splitlines()[-1]
        assert contents(folder) == before


@pytest.mark.parametrize(
    "words",
    [
        ["--config=flux", "--preset=small"],
        ["--config", "flux", "--preset", "small"],
        ["--config=flux:small"],
        [f"--config={files.folder() / 'flux.py'}:fast", "--preset=small"],
    ],
)
def test_presets(words):
    flags = Flags("train", [*words, "--workdir=run", "--config.train.steps=777"])
    train.define(flags)
    assert flags.parse()
    config = flags.checked_config()
    assert (config.remat.single_blocks, config.train.steps) == ("full", 777)


BASH = """
source <("$0" -m rb_jax completion --shell=bash)
complete_line() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _rb_jax; echo "${COMPREPLY[*]}"
}
complete_line rb-jax ev
complete_line rb-jax data ca
complete_line rb-jax data cache --sh
complete_line rb-jax train --config = reasonw
complete_line rb-jax export --format = p
complete_line rb-jax edit --image = in.p
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not on this machine")
def test_bash_completes(folder):
    command = ["bash", "-c", BASH, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "evaluate",
        "cache",
        "--shard_examples=",
        "reasonworld reasonworld_vae",
        "peft",
        "in.png",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_every_verb(shell, capsys):
    assert main(["completion", f"--shell={shell}"]) == 0
    out = capsys.readouterr().out
    assert all(verb.split()[-1] in out for verb in VERBS) and "workdir" in out
