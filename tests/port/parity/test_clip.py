"""CLIP against transformers."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import torch  # noqa: E402
from transformers import CLIPModel, CLIPTextModel  # noqa: E402

from rb_jax import cli  # noqa: E402
from rb_jax.errors import InputError  # noqa: E402
from rb_jax.port.component import open_component  # noqa: E402
from rb_jax.port.exporting import export_checkpoint  # noqa: E402
from rb_jax.port.importing import import_checkpoint  # noqa: E402
from rb_jax.port.parity import compare  # noqa: E402
from tests.port.parity import check, stock  # noqa: E402


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The import of a CLIPModel, its stock folder, and the model."""
    model = stock.clip()
    return *check.imported(model, tmp_path_factory.mktemp("clip")), model


def test_gradients(clip, tmp_path):
    check.check_gradients(clip[0], clip[1], tmp_path)


def test_gelu_in_bfloat16(tmp_path):
    """Stored in half the bits, computed in float32 on both sides."""
    checkpoint, reference = check.imported(stock.clip("gelu").bfloat16(), tmp_path)
    report = compare(checkpoint, reference)
    assert report.passed, report.text()
    assert [stage.name for stage in report.stages] == ["image", "patches", "text", "pooled"]


def test_command_line(clip, tmp_path, capsys):
    """One tower of the two as the reference, with one wrong weight."""
    tower = clip[2].text_model
    with torch.no_grad():
        tower.final_layer_norm.weight[3] += 0.1
    tower.save_pretrained(tmp_path / "wrong")
    argv = ["parity", f"--checkpoint={clip[0]}", f"--reference={tmp_path / 'wrong'}"]
    assert cli.main(argv) == 1
    *rows, verdict = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["stage", "text", "pooled"]
    assert verdict == "FAIL: 2 of 2 differ: text, pooled"


def test_stock_classes_load_exports(clip, tmp_path):
    export_checkpoint(clip[0], "hf", tmp_path / "both")
    check.check_loads(CLIPModel, tmp_path / "both", clip[1])
    tower = stock.clip().text_model
    checkpoint, reference = check.imported(tower, tmp_path)
    export_checkpoint(checkpoint, "hf", tmp_path / "text")
    check.check_loads(CLIPTextModel, tmp_path / "text", reference)


@pytest.mark.parametrize(("left_out", "heads"), [("config", 1), ("heads", 8)])
def test_heads_that_are_not_said(left_out, heads, tmp_path):
    """A configuration leaves out its class's default; a bare file is OpenAI's, 64 a head."""
    model = stock.clip(hidden_size=64, num_attention_heads=8).text_model
    folder = check.save(model, tmp_path / "stock")
    config = json.loads((folder / "config.json").read_text())
    if left_out == "config":
        (folder / "config.json").unlink()
    else:
        del config["num_attention_heads"], config["num_hidden_layers"]
        (folder / "config.json").write_text(json.dumps(config))
    import_checkpoint(folder, tmp_path / "imported")
    text = open_component(tmp_path / "imported").part.model.text
    assert (text.heads, text.layers) == (heads, 2)


def test_another_model_is_refused(clip, tmp_path):
    other = check.save(stock.clip(intermediate_size=40), tmp_path / "other")
    with pytest.raises(InputError, match=r"layers/mlp/fc1/bias has shape \(2, 36\) and \(2, 40\)"):
        compare(clip[0], other)
    check.save(stock.flux(num_layers=1, num_single_layers=1), tmp_path / "flux")
    with pytest.raises(InputError, match="not the names of clip"):
        compare(clip[0], tmp_path / "flux")
