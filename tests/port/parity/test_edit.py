"""A whole model assembled from stock parts, beside ReasonBrainTorch and the stock classes."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import CLIPTextModel, LlavaForConditionalGeneration  # noqa: E402

from rb_jax import editor  # noqa: E402
from rb_jax.checkpoint import stored  # noqa: E402
from rb_jax.errors import InputError  # noqa: E402
from rb_jax.port import assemble, exporting  # noqa: E402
from rb_jax.port.component import open_component  # noqa: E402
from rb_jax.port.parity import compare, whole  # noqa: E402
from rb_jax.port.parity.pair import tensor  # noqa: E402
from rb_jax.port.parity.report import MIN_PSNR, TOLERANCE  # noqa: E402
from rb_jax.port.torch import ReasonBrainTorch, sampling  # noqa: E402
from rb_jax.weights import folder as weights  # noqa: E402
from rb_jax.weights.safetensors.reader import TensorFiles  # noqa: E402
from tests import tiny  # noqa: E402
from tests.port.parity import check, stock  # noqa: E402

# PEFT asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CONFIG = tiny.config(
    flow__steps=3, model__cme__heads=4, model__mllm__image_tokens=5, model__mllm__lora_rank=3
)


@pytest.fixture(scope="module", autouse=True)
def one_definition():
    """Tracing the model's definition anew takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (assemble, editor, stored, whole):
            patch.setattr(module, "definition", tiny.definition)
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Name of each part -> its import and its stock folder."""
    root = tmp_path_factory.mktemp("parts")
    models = {
        "flux": stock.flux(pooled_projection_dim=20),
        "flux_vae": stock.autoencoder(),
        "clip": stock.clip(vocab_size=1031, max_position_embeddings=36).text_model,
        "llava": stock.llava(vocab_size=1047, num_key_value_heads=2),
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
    folders = [imported for imported, _ in parts.values()]
    made = assemble.assemble(CONFIG, folders, out, allow_random_frozen=True)
    assert made.config.model.mmdit.source == "channel"
    return out


@pytest.fixture(scope="module")
def trained(assembled, tmp_path_factory):
    """The assembled model with a LoRA that does something, as after some training."""
    config, params = stored.load_weights(assembled)
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


@pytest.fixture(scope="module")
def tiny_pair(trained, exported):
    return trained, exported


def test_every_stage(trained, exported):
    report = compare(trained, exported)
    assert report.passed, report.text()
    assert len(report.stages) == 16


def test_another_model_is_refused(trained, parts):
    with pytest.raises(InputError, match="not a complete export of rb_jax"):
        compare(trained, parts["flux"][1])


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The package's model, exported."""
    folder = Path(weights.resolve("shipped", weights.SHIPPED["init_from"]))
    if weights.stored_config(folder).model.mmdit.mlp_ratio != 4:
        pytest.skip("diffusers' FLUX has an MLP of four times the width")
    out = tmp_path_factory.mktemp("shipped") / "torch"
    exporting.export_checkpoint(folder, "torch", out)
    return folder, out


@pytest.mark.parametrize("which", ["tiny_pair", "shipped"])
def test_edit_from_the_same_noise(which, request):
    """rb_jax.Editor and ReasonBrainTorch, from a picture of any size and a sentence."""
    folder, exported = request.getfixturevalue(which)
    ours, theirs = editor.Editor.from_pretrained(folder), ReasonBrainTorch.from_pretrained(exported)
    picture = np.random.default_rng(4).integers(0, 256, (40, 52, 3)).astype(np.uint8)
    question, seed = "What would happen if the red cup fell off the table?", 3
    side = whole.latent_side(ours.config)
    shape = (1, side, side, ours.config.model.autoencoder.latent_channels)
    noise = np.asarray(whole.sample_noise(jax.random.key(seed), shape))
    a = np.asarray(ours.edit(picture, question, seed=seed), np.float64)
    b = np.asarray(theirs.edit(picture, question, noise=noise), np.float64)
    other = np.asarray(theirs.edit(picture, question, noise=-noise), np.float64)
    assert psnr(a, b) >= MIN_PSNR > psnr(a, other)


def psnr(a, b):
    """Of pictures in 0 .. 255."""
    return 10 * np.log10(255**2 / max(np.mean((a - b) ** 2), 1e-9))


def test_old_words_stay(parts, assembled, tmp_path):
    """The [IMG] words are new rows: no bit of an old one changes, nor what the old ones say."""
    imported, reference = parts["llava"]
    before, after = open_component(imported).files, TensorFiles.open(assembled)
    for path in before:
        if path.startswith(("mllm/", "vision/")):
            assert before.read(path).tobytes() == after.read(path).tobytes(), path
    assert after["mllm/image_tokens/embedding"].shape == (5, 48)
    exporting.export_checkpoint(assembled, "hf", tmp_path / "hf")
    old, new = (
        LlavaForConditionalGeneration.from_pretrained(at).eval()
        for at in (reference, tmp_path / "hf" / "mllm")
    )
    assert len(new.lm_head.weight) == 1047 + 5
    words, pixels = torch.arange(3, 15)[None], torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        a, b = (
            m(
                input_ids=torch.cat([torch.full((1, 9), m.config.image_token_id), words], dim=1),
                pixel_values=pixels,
                output_hidden_states=True,
            )
            for m in (old, new)
        )
    assert torch.equal(a.hidden_states[-1], b.hidden_states[-1])
    torch.testing.assert_close(b.logits[..., :1047], a.logits, rtol=1e-5, atol=1e-6)


def test_widened_input_layer(parts, assembled):
    """A source in every token says nothing at first: the output is the base model's."""
    config, params = stored.load_weights(assembled)
    conditioning = tiny.conditioning(2, 7, config)
    z_t, t = (
        tiny.normal(*conditioning.source_latent.shape, seed=5),
        np.array([0.9, 0.2], np.float32),
    )
    velocity = tiny.jit(lambda model, *args: model.velocity(*args), config)
    ours = velocity(params, z_t, t, t, conditioning)
    base = stock.FluxTransformer2DModel.from_pretrained(parts["flux"][1])
    with torch.no_grad():
        tokens = base(
            hidden_states=sampling.pack(tensor(z_t), 2),
            timestep=tensor(t),
            guidance=tensor(t),
            encoder_hidden_states=tensor(conditioning.tokens),
            pooled_projections=tensor(conditioning.vector),
            img_ids=sampling.position_ids(8, 8, 2),
            txt_ids=torch.zeros(7, 3),
        ).sample
    assert relative(ours, sampling.unpack(tokens, 8, 8, 2).numpy()) <= TOLERANCE


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def test_adapter(trained, tmp_path):
    """Stock PEFT over a stock LLaVA says what our LoRA says."""
    for name in ("hf", "peft"):
        exporting.export_checkpoint(trained, name, tmp_path / name)
    config, params = stored.load_weights(trained)
    x, mask = tiny.normal(2, 7, 48), np.arange(7) < np.array([[7], [4]])
    model = tiny.jit(lambda model, *args: model.mllm.language_model(*args), config)
    ours = np.asarray(model(params, x, mask)) * mask[..., None]
    base = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf" / "mllm")

    def states():
        out = base.model.language_model(
            inputs_embeds=torch.from_numpy(x), attention_mask=torch.from_numpy(mask).long()
        )
        return out.last_hidden_state.detach().numpy() * mask[..., None]

    without = states()
    PeftModel.from_pretrained(base, tmp_path / "peft").eval()  # puts its layers into ``base``
    assert relative(states(), ours) <= TOLERANCE
    assert relative(without, ours) > 0.1


def test_stock_classes_load_every_export(trained, exported, tmp_path):
    export_to = functools.partial(exporting.export_checkpoint, trained)
    for name in ("diffusers", "hf", "official"):
        export_to(name, tmp_path / name)
    kinds = {
        "transformer": (stock.FluxTransformer2DModel, "diffusers"),
        "vae": (stock.AutoencoderKL, "diffusers"),
        "text_encoder": (CLIPTextModel, "hf"),
        "mllm": (LlavaForConditionalGeneration, "hf"),
    }
    for folder, (kind, name) in kinds.items():
        check.check_loads(kind, tmp_path / name / folder, exported / folder)
    state = load_file(tmp_path / "official" / "reasonbrain.safetensors")
    modules = stock.official()
    del modules["cond_proj"]  # of models without the CME
    modules.load_state_dict(state)  # strict
