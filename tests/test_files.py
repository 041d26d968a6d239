"""Whole or not at all, whatever fails; folders of writers are tested in weights/safetensors."""

import json
import math
import os
import stat
import subprocess
import sys

import pytest

from rb_jax import files
from rb_jax.errors import InputError


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyError), files.whole_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]
    with files.whole_file(path):
        pass  # nothing written: nothing replaced
    assert path.read_text() == "old"


def test_others_may_read_what_is_written(tmp_path):
    """As files of any other program: the umask decides, not the place where it was made."""
    before = os.umask(0o022)
    try:
        files.write_text(tmp_path / "x", "text")
        with files.new_folder(tmp_path / "folder") as folder:
            (folder / "y").write_text("text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_a_failing_disk_is_bad_input(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(InputError, match="x: cannot be written .No space left"):
        files.write_text(tmp_path / "x", "text")
    assert os.listdir(tmp_path) == []


def test_json_is_strict(tmp_path):
    text = files.to_json({"a": [1.0, math.nan, (math.inf, 2)], "b": {"c": -math.inf}})
    assert json.loads(text) == {"a": [1.0, None, [None, 2]], "b": {"c": None}}
    with pytest.raises(TypeError):
        files.to_json({"a": object()})


def test_what_cannot_be_made_is_known_before(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for folder in (file / "below", file / "below" / "it"):
        with pytest.raises(InputError, match="file: is not a folder"):
            files.check_writable(folder)
        with pytest.raises(InputError, match="file: is not a folder"):
            files.check_new_folder(folder)
    with pytest.raises(InputError, match="exists and is not a folder"):
        files.check_new_folder(file)
    with pytest.raises(InputError, match="exists and is not empty"):
        files.check_new_folder(tmp_path)
    files.check_new_folder(tmp_path, replace=True)
    files.check_new_folder(tmp_path / "a" / "b")


def test_a_lock_goes_with_its_process(tmp_path):
    code = f"""
import sys
from pathlib import Path
from rb_jax.files import locked
with locked(Path({str(tmp_path / "lock")!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), files.locked(tmp_path / "lock", wait=False):
            pass
        child.kill()
    with files.locked(tmp_path / "lock", wait=False):
        pass
    with pytest.raises(FileNotFoundError), files.locked(tmp_path / "none", create=False):
        pass
