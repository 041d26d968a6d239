"""What a comparison says, and the families that have no file of their own here."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

from transformers import SamModel  # noqa: E402

from rb_jax.errors import InputError  # noqa: E402
from rb_jax.port.exporting import export_checkpoint  # noqa: E402
from rb_jax.port.parity import compare  # noqa: E402
from rb_jax.port.parity.report import measure, measured, picture_psnr  # noqa: E402
from tests.port.parity import check, stock  # noqa: E402

EXPECTED = """
stage             max error    relative   tolerance
V                   1.0e-05     1.0e-06     1.0e-05  PASS
a longer name       3.0e-03     1.5e-03     1.0e-05  FAIL
final edit                      61.4 dB       50 dB  PASS
FAIL: 1 of 3 differ: a longer name
"""


def test_text():
    stages = {
        "V": (np.array([0.0, 10.00001]), np.array([0.0, 10.0])),
        "a longer name": (np.array([[2.003]]), np.array([[2.0]])),
    }
    assert measured(stages, 61.4).text() == EXPECTED.strip()
    assert measured({"V": stages["V"]}).text().endswith("PASS: 1 of 1 agree")
    assert measured({"V": stages["V"]}, 49.9).failed == ["final edit"]


def test_nothing_undefined_passes():
    nan, inf, one = (np.array([x]) for x in (np.nan, np.inf, 1.0))
    assert not any(measure("", *pair).passed for pair in [(nan, nan), (nan, one), (one, nan)])
    assert not any(measure("", *pair).passed for pair in [(inf, inf), (one, inf), (one, 0 * one)])
    assert measure("", 0 * one, 0 * one).passed
    assert not measured({"V": (one, one)}, picture_psnr(nan, nan)).passed
    with pytest.raises(ValueError, match=r"V: our shape is \(1,\), PyTorch's \(\)"):
        measure("V", one, 1.0)


def test_psnr():
    grey = np.zeros((1, 2, 2, 3))
    assert picture_psnr(grey, grey) == np.inf
    assert picture_psnr(grey, grey + 0.02) == pytest.approx(40)
    assert picture_psnr(grey + 9, grey + 0.98) == pytest.approx(40)  # 1 is white


def test_sam(tmp_path):
    checkpoint, reference = check.imported(stock.sam(), tmp_path)
    made = compare(checkpoint, reference, seed=2)
    assert made.passed, made.text()
    assert [stage.name for stage in made.stages] == ["features", "masks", "iou"]
    export_checkpoint(checkpoint, "hf", tmp_path / "hf")
    check.check_loads(SamModel, tmp_path / "hf", reference)


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="no model.safetensors and no checkpoint"):
        compare(tmp_path, tmp_path)
    with pytest.raises(InputError, match="seed must be between"):
        compare(tmp_path, tmp_path, seed=-1)
