"""SIGTERM and ctrl-C at awkward moments: one line, a status, and nothing left behind."""

import signal
import subprocess
import sys
import time

import pytest


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
