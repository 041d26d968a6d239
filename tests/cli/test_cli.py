"""The command line, in this process: exit codes, one line for bad input, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb_jax import editor as editor_module
from rb_jax.cli import VERBS, main, train
from rb_jax.cli.completion import flags_of
from rb_jax.cli.flags import Flags
from rb_jax.config import files
from rb_jax.data.formats.reason50k import Reason50K
from tests import tiny

EDIT = ["edit", "--image=in.png", "--instruction=What if it rained?", "--out=out.png"]
TRAIN = ["train", "--config=reasonworld", "--workdir=run"]
DATA = ["data", "reasonworld", "--out=set"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a picture and a few obstacles in it."""
    pixels = np.arange(40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "in.png").read_bytes()[:90])
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "config.py").write_text("raise KeyError('what')")
    (tmp_path / "cut.py").write_text("def get_config():\n    return (")
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")
    (tmp_path / "other.py").write_text("def get_config(): return {}")
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
    "a verb that is none": (["paint"], "no such verb: paint; "),
    "a mistyped verb": (["trian"], "no such verb: trian; did you mean train?"),
    "a mistyped verb of data": (["data", "cahce"], "did you mean data cache?"),
    "train without config": (["train", "--workdir=run"], "needs --config"),
    "train without workdir": (TRAIN[:2], "needs --workdir"),
    "a bucket to train in": ([*TRAIN[:2], "--workdir=gs://b/run"], "--workdir=gs://b/run: must be"),
    "a bucket's weights": ([*EDIT, "--checkpoint", "s3://b/run"], "mount the bucket"),
    "a bucket's data": ([*TRAIN, "--config.data.path=gs://b/set"], "data.path=gs://b/set: must be"),
    "a config that is not there": (["train", "--config=no.py", "--workdir=run"], "no.py: no such"),
    "a config's name, mistyped": (
        ["train", "--config=reasonwrold", "--workdir=run"],
        "did you mean reasonworld?",
    ),
    "a config that breaks": (
        ["train", "--config=config.py", "--workdir=run"],
        "config.py:1: KeyError: 'what'",
    ),
    "a config without end": (
        ["train", "--config=cut.py", "--workdir=run"],
        "cut.py:2: SyntaxError",
    ),
    "a config of another kind": (["train", "--config=other.py", "--workdir=run"], "no ConfigDict"),
    "a preset that is none": (
        ["plan", "--config=flux", "--preset", "fats", "--topology=v5p:2x2x1"],
        "'fats' is not a preset; choose fast or small",
    ),
    "a variant that is none": ([*TRAIN, "--preset=half"], "'half' is not a variant; choose base"),
    "a preset for a config without": (
        ["train", "--config=reasonworld_vae:x", "--workdir=run"],
        "get_config takes no argument",
    ),
    "a config that needs its argument": (
        ["train", "--config=from_checkpoint", "--workdir=run"],
        "get_config needs an argument",
    ),
    "an unknown key": ([*TRAIN, "--config.train.stepz=3"], "config.train.stepz: no such key"),
    "an unknown group": ([*TRAIN, "--config.nose.x=3"], "config.nose: no such key"),
    "a key below a value": ([*TRAIN, "--config.train.steps.x=3"], "config.train.steps.x: no such"),
    "a mistyped value": ([*TRAIN, "--config.train.steps=many"], "train.steps"),
    "a fraction of a step": ([*TRAIN, "--config.train.steps=1.5"], "train.steps"),
    "a group as a value": ([*TRAIN, "--config.train=3"], "config.train"),
    "an inconsistent value": ([*TRAIN, "--config.model.mmdit.heads=7"], "config.model.mmdit.axes"),
    "a size of zero": ([*TRAIN, "--config.model.mllm.heads=0"], "config.model.mllm.heads: must be"),
    "a workdir below a file": ([TRAIN[0], TRAIN[1], "--workdir=file/run"], "file: is not a folder"),
    "edit without picture": ([EDIT[0], *EDIT[2:]], "needs --image"),
    "edit without instruction": ([*EDIT[:2], EDIT[3]], "needs --instruction"),
    "edit without out": (EDIT[:3], "needs --out"),
    "an unknown flag": ([*EDIT, "--sed=3"], "did you mean --seed?"),
    "a word too many": ([*EDIT, "quickly"], "unexpected argument 'quickly'"),
    "steps that are no number": ([*EDIT, "--steps=few"], "steps"),
    "a missing picture": ([*EDIT, "--image=no.png"], "no.png: no such file"),
    "a picture elsewhere": ([*EDIT, "--image=http://x.org/a.png"], "nothing is downloaded"),
    "a broken picture": ([*EDIT, "--image=broken.png"], "broken.png: damaged"),
    "a text for a picture": ([*EDIT, "--image=file"], "file: not a picture"),
    "an output of no known kind": ([*EDIT, "--out=out.xyz"], "unknown picture suffix '.xyz'"),
    "a folder as output": ([*EDIT, "--out=folder"], "folder: is a folder; give the name of a file"),
    "an output without suffix": ([*EDIT, "--out=out"], "out: has no suffix"),
    "an output nowhere": ([*EDIT, "--out=no/out.png"], "does not exist"),
    "evaluate without out": (["evaluate"], "needs --out"),
    "evaluate into a file": (["evaluate", "--out=file"], "file: is not a folder"),
    "evaluate below a file": (["evaluate", "--out=file/x"], "file: is not a folder"),
    "evaluate no split": (["evaluate", "--out=o", "--split=nose"], "nose"),
    "data without a name": (["data"], "data needs one of its verbs; there are data reasonworld"),
    "data of another name": (["data", "coco"], "no such verb: data coco"),
    "data without out": (DATA[:2], "rb-jax data reasonworld needs --out"),
    "data of no split": ([*DATA, "--split=nose"], "nose"),
    "no data": ([*DATA, "--count=0"], "--count must be at least 1"),
    "data of no size": ([*DATA, "--size=-3", "--count=2"], "-3"),
    "data into a file": ([*DATA, "--out=file", "--count=2"], "file"),
    "import over a file": (["import", "--source=in.png", "--out=file"], "file: exists and is not"),
    "export over a file": (
        ["export", "--checkpoint=shipped", "--format=torch", "--out=file"],
        "file: exists and is not a folder",
    ),
    "a plan's file nowhere": (
        ["plan", "--config=flux", "--topology=v5p:2x2x1", "--report=no/plan.html"],
        "no/plan.html: no such folder",
    ),
    "an empty output": (["data", "reasonworld", "--out="], "needs --out"),
    "an empty workdir": ([*TRAIN[:2], "--workdir="], "needs --workdir"),
    "a name that is too long": ([*TRAIN[:2], f"--workdir={'a' * 300}"], "File name too long"),
    "bytes that are no text": ([*DATA[:2], "--out=d\udcff"], "is not UTF-8"),
    "no instruction": ([*EDIT, "--instruction= "], "the instruction is empty"),
    "no steps": ([*EDIT, "--steps=0"], "steps must be between 1 and"),
    "guidance that is no number": ([*EDIT, "--guidance=nan"], "guidance must be between"),
    "scoring without steps": (["evaluate", "--out=o", "--steps=0"], "steps must be between 1 and"),
    "a rate that is no number": (
        [*TRAIN, "--config.optimizer.learning_rate=nan"],
        "config.optimizer.learning_rate: must be a finite number",
    ),
    "more examples than a counter holds": (
        [*TRAIN, "--config.train.batch_size=1000000000000"],
        "config.train.batch_size: must be at most",
    ),
    "a demo of no scenes": (["demo", "--out=d", "--count=0"], "--count must be at least 1"),
    "a demo of another key": (["demo", "--out=d", "--set=nosuch=1"], "config.nosuch: no such key"),
    "a bucket as configuration": (
        ["train", "--config=from_checkpoint:gs://b/c", "--workdir=w"],
        "--config=gs://b/c: must be a path",
    ),
    "a configuration that ends Python": (["train", "--config=ends.py", "--workdir=w"], "ends.py:1"),
    "training on nothing": (
        [*TRAIN, "--config.data.name=folder", "--config.data.path=nosuch"],
        "nosuch: no such folder",
    ),
    "training from nothing": ([*TRAIN, "--config.train.init_from=nosuch"], "no such folder"),
    "assembling nothing": (
        ["assemble", "--config=reasonworld", "--parts=", "--out=o"],
        "needs --parts",
    ),
    "a plan's rows in a folder": (
        ["plan", "--config=flux", "--topology=v5p:2x2x1", "--json=folder"],
        "--json=folder: is a folder",
    ),
    "no such verbosity": ([*EDIT, "--verbosity=loud"], "verbosity"),
    "a completion for no shell": (["completion", "--shell=tcsh"], "tcsh"),
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
    command = [sys.executable, "-m", "rb_jax", "train", "--config=nothing.py"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stderr=full).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has it")
def test_a_full_disk_under_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "rb_jax", "--help"]
        done = subprocess.run(command, stdout=full, stderr=-1, text=True)
    assert done.returncode == 2 and done.stderr == "rb-jax: No space left on device\n"


def test_letters_that_a_terminal_lacks_do_not_end_the_work():
    command = [sys.executable, "-m", "rb_jax", "data", "reasonworld", "--out=\u00e9", "--count=1"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0 and "\\xe9" in done.stdout


def test_terminated_verbs_leave_nothing(folder):
    """As ctrl-C, which cleans up; only training has more to do."""
    command = [
        sys.executable,
        "-m",
        "rb_jax",
        "data",
        "reasonworld",
        "--out=set",
        "--count=9999999",
    ]
    with subprocess.Popen(command, stderr=-1, text=True) as child:
        deadline = time.monotonic() + 60
        while not list(folder.glob("set/.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        child.terminate()
        assert child.stderr is not None and "rb-jax: terminated\n" in child.stderr.read()
    assert child.returncode == 143
    assert not [path for path in folder.rglob(".*")]


def test_a_stopped_demo_takes_its_training_along(folder):
    command = [sys.executable, "-m", "rb_jax", "demo", "--out=d", "--set=data.count=64"]
    with subprocess.Popen(command, stdout=-1, stderr=-2, text=True) as child:
        assert child.stdout is not None
        lines = iter(child.stdout.readline, "")
        assert any(", workdir" in line for line in lines)  # the training says so
        child.terminate()
        rest = "".join(lines)
    assert child.returncode == 143 and "Traceback" not in rest
    assert "stopped by SIGTERM" in rest and rest.endswith("rb-jax: terminated\n")


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


@pytest.mark.parametrize(
    "busy", ["hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", "time.sleep(60)"]
)
def test_interrupted_while_the_main_thread_is_busy_elsewhere(busy):
    """As in a compiler, which hears no signal: ctrl-C is one line and 130 all the same."""
    code = """
import hashlib, signal, sys, time
# What a shell starts in the background ignores SIGINT, and so does its child.
signal.signal(signal.SIGINT, signal.default_int_handler)
from rb_jax.runtime import exits
original = exits.interruptible
exits.interruptible = lambda: original(grace=0.2)
from rb_jax import cli
cli.VERBS["wait"] = ("edit", "")
from rb_jax.cli import edit
def run(flags):
    print("busy", flush=True)
    BUSY
edit.run = run
edit.define = lambda flags: None
sys.argv = ["rb-jax", "wait"]
sys.exit(cli.main())
"""
    command = [sys.executable, "-c", code.replace("BUSY", busy)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "busy\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 130 and err == "rb-jax: interrupted\n"


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
