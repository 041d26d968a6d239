"""FLUX's transformer against diffusers."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from rb_jax.errors import InputError  # noqa: E402
from rb_jax.port.exporting import export_checkpoint  # noqa: E402
from rb_jax.port.importing import import_checkpoint  # noqa: E402
from rb_jax.port.parity import compare  # noqa: E402
from tests.port.parity import check, stock  # noqa: E402


def test_gradients(tmp_path):
    """With guidance, and a source in every token."""
    model = stock.flux(in_channels=24)
    check.check_gradients(*check.imported(model, tmp_path), tmp_path)


@pytest.mark.parametrize("changes", [{}, dict(in_channels=31)], ids=["kontext", "wider"])
def test_source_as_a_sequence(changes, tmp_path):
    """The source's tokens follow with image id 1; schnell's form, which is told no guidance."""
    model = stock.flux(guidance_embeds=False, **changes)
    report = compare(*check.imported(model, tmp_path))
    assert report.passed, report.text()


def test_bfl_layout(tmp_path):
    """Out in BFL's layout and back in; out again in diffusers'."""
    checkpoint, reference = check.imported(stock.flux(), tmp_path)
    export_checkpoint(checkpoint, "bfl", tmp_path / "bfl")
    import_checkpoint(tmp_path / "bfl", tmp_path / "back")
    report = compare(tmp_path / "back", reference)
    assert report.passed, report.text()
    export_checkpoint(tmp_path / "back", "diffusers", tmp_path / "diffusers")
    check.check_loads(stock.FluxTransformer2DModel, tmp_path / "diffusers", reference)
    with pytest.raises(InputError, match="rb-jax export --format=diffusers"):
        compare(checkpoint, tmp_path / "bfl")
    with pytest.raises(InputError, match="rb-jax export --format=diffusers"):
        compare(checkpoint, tmp_path / "bfl" / "flux1.safetensors")
