"""FLUX's autoencoder against diffusers."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from rb_jax.port.exporting import export_checkpoint  # noqa: E402
from rb_jax.port.importing import import_checkpoint  # noqa: E402
from tests.port.parity import check, stock  # noqa: E402


def test_gradients(tmp_path):
    model = stock.autoencoder()
    check.check_gradients(*check.imported(model, tmp_path), tmp_path)


def test_bfl_layout(tmp_path):
    """Out in BFL's layout and back in; out again in diffusers'."""
    fixed = dict(norm_num_groups=32, scaling_factor=0.3611, shift_factor=0.1159)
    model = stock.autoencoder(block_out_channels=(32, 32, 64), **fixed)
    checkpoint, reference = check.imported(model, tmp_path)
    export_checkpoint(checkpoint, "bfl", tmp_path / "bfl")
    import_checkpoint(tmp_path / "bfl", tmp_path / "back")
    export_checkpoint(tmp_path / "back", "diffusers", tmp_path / "diffusers")
    check.check_loads(stock.AutoencoderKL, tmp_path / "diffusers", reference)
