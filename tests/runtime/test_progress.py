"""On a terminal a bar; elsewhere lines, few and never redrawn."""

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from rb_jax.runtime import progress
from rb_jax.runtime.progress import progress_bar, working


@pytest.fixture
def said(caplog):
    """What was logged so far, when it is called."""
    caplog.set_level(logging.INFO, "rb_jax")
    return lambda: caplog.messages


def test_quick_work_says_nothing(said, capsys):
    with progress_bar(3, "writing", "example") as bar:
        for _ in range(3):
            bar.update(1)
    assert said() == [] and capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is(said, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress_bar(4, "writing", "example", done=1) as bar:
        bar.update(1)
        bar.update(2)
    assert said()[0].startswith("writing: 2 of 4 examples, ") and said()[0].endswith(" left")
    assert said()[-1].startswith("writing: 4 of 4 examples, ") and len(said()) == 2
    assert "\r" not in capsys.readouterr().err
    with progress_bar(3_000_000, "copying", "B") as bar:
        bar.update(1_500_000)
    assert said()[-1].startswith("copying: 1.50M of 3.00MB, ")


def test_silent_where_it_is_not_wanted(said, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress_bar(2, "writing", "example", enabled=False) as bar:
        bar.update(2)
    assert said() == []


def test_a_wait_is_announced_and_remembered(said, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.05)
    with working("compiling the step", 81.4):
        time.sleep(0.3)
    assert said()[0] == "compiling the step, about 81 s where nothing else runs"
    assert said()[1].startswith("still compiling the step, ")
    count = len(said())
    time.sleep(0.2)
    assert len(said()) == count


def test_a_bar_on_a_terminal():
    """A real one, of a pseudo-terminal."""
    code = """
import time
from rb_jax.runtime.logging import LOG, setup
from rb_jax.runtime.progress import progress_bar
setup()
with progress_bar(5, "painting", "edit") as bar:
    for _ in range(5):
        bar.update(1)
        time.sleep(0.15)
    LOG.info("in between")
"""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=child)
    os.close(child)
    shown = b""
    while chunk := _read(parent):
        shown += chunk
    os.close(parent)
    assert process.wait(60) == 0
    assert b"\rpainting: " in shown and b"] in between\r\n" in shown


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how Linux says that nobody has the other end any more
        return b""
