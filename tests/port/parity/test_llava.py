"""LLaVA against transformers."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from transformers import LlavaForConditionalGeneration  # noqa: E402

from rb_jax.port.exporting import export_checkpoint  # noqa: E402
from rb_jax.port.importing import import_checkpoint  # noqa: E402
from rb_jax.port.parity import compare  # noqa: E402
from tests.port.parity import check, stock  # noqa: E402


def test_gradients(tmp_path):
    """v1.5's projector, and fewer heads of keys than of queries."""
    model = stock.llava(num_key_value_heads=2)
    check.check_gradients(*check.imported(model, tmp_path), tmp_path)


@pytest.mark.parametrize(("projector", "layer"), [("linear", -2), ("gelu", 1)])
def test_original_layout(projector, layer, tmp_path):
    """Both projectors, out in the original layout and back in; out again in transformers'."""
    model = stock.llava(projector, layer)
    # Nothing reads this norm: between layouts it is not kept but made anew, without effect.
    torch.nn.init.ones_(model.model.vision_tower.post_layernorm.weight)
    torch.nn.init.zeros_(model.model.vision_tower.post_layernorm.bias)
    checkpoint, reference = check.imported(model, tmp_path)
    export_checkpoint(checkpoint, "official", tmp_path / "original")
    import_checkpoint(tmp_path / "original", tmp_path / "back", settings=["vision.heads=7"])
    report = compare(tmp_path / "back", reference)
    assert report.passed, report.text()
    assert [s.name for s in report.stages] == ["patches", "projector", "states", "logits"]
    export_checkpoint(tmp_path / "back", "hf", tmp_path / "hf")
    loaded = check.check_loads(LlavaForConditionalGeneration, tmp_path / "hf", reference)
    for key in ("vision_feature_layer", "projector_hidden_act", "image_seq_length"):
        assert getattr(loaded.config, key) == getattr(model.config, key)
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    assert config["mm_projector_type"] == {"linear": "linear", "gelu": "mlp2x_gelu"}[projector]
