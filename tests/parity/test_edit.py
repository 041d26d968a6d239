"""A whole model assembled from stock parts, beside ReasonBrainTorch and the stock classes."""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

import torch  # noqa: E402
from diffusers import AutoencoderKL, FluxTransformer2DModel  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import CLIPTextModel, LlavaForConditionalGeneration  # noqa: E402

from rb_jax import editor  # noqa: E402
from rb_jax.errors import InputError  # noqa: E402
from rb_jax.port import assemble, exporting  # noqa: E402
from rb_jax.port.component import open_component  # noqa: E402
from rb_jax.port.parity import compare, whole  # noqa: E402
from rb_jax.port.parity.report import MIN_PSNR, TOLERANCE  # noqa: E402
from rb_jax.port.torch import ReasonBrainTorch  # noqa: E402
from rb_jax.port.torch.folder import UNUSED  # noqa: E402
from rb_jax.tensor_files import TensorFiles  # noqa: E402
from rb_jax.train import weights  # noqa: E402
from tests import tiny  # noqa: E402
from tests.parity import check, stock  # noqa: E402

WORDS = dict(vocab_size=1031, max_position_embeddings=36, bos_token_id=1, eos_token_id=2)
CONFIG = tiny.config(
    flow__steps=3, model__cme__heads=4, model__mllm__image_tokens=5, model__mllm__lora_rank=3
)


@pytest.fixture(scope="module", autouse=True)
def one_definition():
    """Tracing the model's definition anew takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (assemble, editor, weights, whole):
            patch.setattr(module, "definition", tiny.definition)
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Name of each part -> its import and its stock folder."""
    root = tmp_path_factory.mktemp("parts")
    models = {
        "flux": stock.flux(pooled_projection_dim=20),
        "flux_vae": stock.autoencoder(),
        "clip": stock.clip(**WORDS).text_model,
        "llava": stock.llava(decoder=dict(vocab_size=1047, num_key_value_heads=2)),
        "official": stock.official(),
    }
    settings = {"official": stock.HEADS}
    return {
        name: check.imported(model, root / name, settings=settings.get(name, []))
        for name, model in models.items()
    }


@pytest.fixture(scope="module")
def assembled(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("assembled") / "model"
    made = assemble.assemble(CONFIG, [imported for imported, _ in parts.values()], out)
    assert made.config.model.mmdit.source == "channel"
    return out


@pytest.fixture(scope="module")
def trained(assembled, tmp_path_factory):
    """The assembled model with a LoRA that does something, as after some training."""
    config, params = weights.load_weights(assembled)
    for i, path in enumerate(sorted(p for p in params if p.endswith("lora_b"))):
        params[path] = 0.2 * tiny.normal(*params[path].shape, seed=i)
    out = tmp_path_factory.mktemp("trained") / "model"
    weights.save_weights(out, config, params)
    return out


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "torch"
    exporting.export_checkpoint(trained, "torch", out)
    return out


def test_every_stage(trained, exported):
    report = compare(trained, exported)
    assert report.passed, report.text()
    assert len(report.stages) == 16
