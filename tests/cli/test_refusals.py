"""Bad input is one line and a status, in this process, with nothing half-written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rb_jax.cli import main

EDIT = ["edit", "--image=in.png", "--instruction=What if it rained?", "--out=out.png"]
TRAIN = ["train", "--config=reasonworld", "--workdir=run"]
DATA = ["data", "reasonworld", "--out=set"]


def contents(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


BAD = {
    "a verb that is none": (["paint"], "no such verb: paint; "),
    "a mistyped verb": (["trian"], "no such verb: trian; did you mean train?"),
    "a mistyped verb of data": (["data", "cahce"], "did you mean data cache?"),
    "train without config": (["train", "--workdir=run"], "needs --config"),
    "train without workdir": (TRAIN[:2], "needs --workdir"),
    "a URL to train in": (
        [*TRAIN[:2], "--workdir=hdfs://b/run"],
        "--workdir=hdfs://b/run: must be",
    ),
    "a URL's weights": ([*EDIT, "--checkpoint", "https://b/run"], "nothing is downloaded"),
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
    "a bucket with one slash": (
        ["train", "--config=reasonworld", "--workdir=S3:/x"],
        "a bucket is written s3://BUCKET/FOLDER",
    ),
    "a cache without a name": (
        ["edit", "--image=photo.png", "--instruction=x", "--out=o.png", "--compilation_cache="],
        "--compilation_cache: name a folder or a bucket, or off",
    ),
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
        ["train", "--config=gs://b/c.py", "--workdir=w"],
        "--config=gs://b/c.py: must be a path",
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
