"""The folder that the command line's tests work in."""

import numpy as np
import pytest
from PIL import Image

from rb_jax import editor as editor_module


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
