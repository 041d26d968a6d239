"""The command line, in this process: exit codes, one line for bad input, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb_jax import editor as editor_module
from rb_jax.cli import main
from rb_jax.data.reason50k import Reason50K
from tests import tiny

# ml_collections loads the file of --config in a way that Python no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = Path(__file__).parents[1] / "configs" / "reasonworld.py"
FLAGS = {
    "train": ["config", "workdir"],
    "edit": ["image", "instruction", "out", "checkpoint", "steps", "guidance", "true_cfg", "seed"],
    "evaluate": ["checkpoint", "data", "split", "count", "out", "steps", "guidance", "seed"],
    "data reasonworld": ["out", "split", "count", "seed", "size"],
}
EDIT = ["edit", "--image=in.png", "--instruction=What if it rained?", "--out=out.png"]
TRAIN = ["train", f"--config={CONFIG}", "--workdir=run"]
DATA = ["data", "reasonworld", "--out=set"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a picture and a few obstacles in it."""
    pixels = np.arange(40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "in.png").read_bytes()[:90])
    (tmp_path / "file").write_text("x")
    (tmp_path / "config.py").write_text("raise KeyError('what')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def weights(weights_folder, monkeypatch):
    """Random weights as the --checkpoint flag; their editor is the shared one."""

    def from_pretrained(folder):
        assert folder == str(weights_folder)
        return shared

    shared = None

    def use(editor):
        nonlocal shared
        shared = editor
        monkeypatch.setattr(editor_module.Editor, "from_pretrained", from_pretrained)
        return f"--checkpoint={weights_folder}"

    return use


def contents(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


BAD = {
    "a verb that is none": (["paint"], "no such verb: paint; choose train, edit"),
    "train without config": (["train", "--workdir=run"], "needs --config"),
    "train without workdir": (TRAIN[:2], "needs --workdir"),
    "a bucket to train in": ([*TRAIN[:2], "--workdir=gs://b/run"], "--workdir=gs://b/run: must be"),
    "a bucket's weights": ([*EDIT, "--checkpoint", "s3://b/run"], "mount the bucket"),
    "a bucket's data": ([*TRAIN, "--config.data.path=gs://b/set"], "data.path=gs://b/set: must be"),
    "a config that is not there": (["train", "--config=no.py", "--workdir=run"], "no.py: no such"),
    "a config that breaks": (["train", "--config=config.py", "--workdir=run"], "--config"),
    "an unknown key": ([*TRAIN, "--config.train.stepz=3"], "config.train.stepz: no such key"),
    "an unknown group": ([*TRAIN, "--config.nose.x=3"], "config.nose: no such key"),
    "a key below a value": ([*TRAIN, "--config.train.steps.x=3"], "config.train.steps.x: no such"),
    "a mistyped value": ([*TRAIN, "--config.train.steps=many"], "train.steps"),
    "a fraction of a step": ([*TRAIN, "--config.train.steps=1.5"], "train.steps"),
    "a group as a value": ([*TRAIN, "--config.train=3"], "config.train"),
    "an inconsistent value": ([*TRAIN, "--config.model.mmdit.heads=7"], "config.model.mmdit.axes"),
    "a size of zero": ([*TRAIN, "--config.model.mllm.heads=0"], "config.model.mllm.heads: must be"),
    "edit without picture": ([EDIT[0], *EDIT[2:]], "needs --image"),
    "edit without instruction": ([*EDIT[:2], EDIT[3]], "needs --instruction"),
    "edit without out": (EDIT[:3], "needs --out"),
    "an unknown flag": ([*EDIT, "--sed=3"], "sed"),
    "a word too many": ([*EDIT, "quickly"], "unexpected argument 'quickly'"),
    "steps that are no number": ([*EDIT, "--steps=few"], "steps"),
    "a missing picture": ([*EDIT, "--image=no.png"], "no.png: no such file"),
    "a broken picture": ([*EDIT, "--image=broken.png"], "broken.png: damaged"),
    "a text for a picture": ([*EDIT, "--image=file"], "file: not a picture"),
    "an output of no known kind": ([*EDIT, "--out=out.xyz"], "unknown picture suffix '.xyz'"),
    "an output nowhere": ([*EDIT, "--out=no/out.png"], "does not exist"),
    "no weights": ([*EDIT, "--checkpoint=."], "no model.safetensors"),
    "evaluate without out": (["evaluate"], "needs --out"),
    "evaluate into a file": (["evaluate", "--out=file"], "file: is not a folder"),
    "evaluate below a file": (["evaluate", "--out=file/x"], "file: is not a folder"),
    "evaluate other data": (["evaluate", "--out=o", "--data=coco"], "coco"),
    "evaluate no weights": (["evaluate", "--out=o", "--checkpoint=no"], "no model.safetensors"),
    "data without a name": (["data"], "needs one of: reasonworld"),
    "data of another name": (["data", "coco"], "needs one of: reasonworld"),
    "data without out": (DATA[:2], "rb-jax data reasonworld needs --out"),
    "data of no split": ([*DATA, "--split=nose"], "nose"),
    "no data": ([*DATA, "--count=0"], "--count must be at least 1"),
    "data of no size": ([*DATA, "--size=-3", "--count=2"], "-3"),
    "data into a file": ([*DATA, "--out=file", "--count=2"], "file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(name, folder, capsys):
    argv, expected = BAD[name]
    before = contents(folder)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rb-jax: ") and err.count("\n") == 1
    assert expected in err
    assert contents(folder) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has it")
def test_the_status_comes_through_when_the_message_cannot():
    command = [sys.executable, "-m", "rb_jax.entry", "train", "--config=nothing.py"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stderr=full).returncode == 2


def test_usage(capsys):
    assert main([]) == 2
    bare = capsys.readouterr().out
    assert all(f"rb-jax {verb}" in bare for verb in FLAGS)
    for word in ("--help", "-h", "help"):
        assert main([word]) == 0
        assert capsys.readouterr().out == bare
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rb_jax ")


@pytest.mark.parametrize("verb", FLAGS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_of_a_verb_lists_its_flags(verb, word, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*verb.split(), word])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"rb-jax {verb}, flags:")
    assert [flag for flag in FLAGS[verb] if f"--{flag}" not in out] == []


def test_edit(weights, editor, folder, capsys):
    assert main([*EDIT, weights(editor), "--steps=1", "--seed=7"]) == 0
    assert capsys.readouterr().out == "out.png: 30 x 40 pixels\n"
    expected = editor.edit("in.png", "What if it rained?", steps=1, seed=7)
    np.testing.assert_array_equal(Image.open("out.png"), expected)
    assert {p.name for p in folder.iterdir()} == {
        "in.png", "broken.png", "file", "config.py", "out.png"}  # fmt: skip


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
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
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
        assert capsys.readouterr().err.count("\n") == 1
    assert not (folder / "other").exists()


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

    def train(config, workdir, signals):
        seen.update(config=config, workdir=workdir)
        return 75

    monkeypatch.setattr("rb_jax.train.loop.train", train)
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
