"""The PyTorch model as a user meets it: folders, pictures and settings, without JAX."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

for library in ("torch", "transformers", "diffusers", "peft"):
    pytest.importorskip(library)

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from rb_jax.errors import InputError  # noqa: E402
from rb_jax.port.torch import ReasonBrainTorch  # noqa: E402
from rb_jax.port.torch.records import batch_of  # noqa: E402
from tests import tiny  # noqa: E402
from tests.port.parity import exported  # noqa: E402

# PEFT asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

torch.set_num_threads(1)  # tiny tensors: several threads would only wait for each other
WORDS = "What if the candle burned for two hours?"
CONFIG = tiny.config(model__mmdit__mlp_ratio=4.0)
WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("twin") / "export"
    return exported.export(made, tiny.params(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def model(folder):
    return ReasonBrainTorch.from_pretrained(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def picture(height, width):
    coarse = np.random.default_rng(5).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_whole_edit_without_jax(folder, model, tmp_path):
    code = WITHOUT.format(names=("jax", "jaxlib", "flax", "optax", "orbax", "grain")) + (
        "from rb_jax.port.torch import ReasonBrainTorch\n"
        "model = ReasonBrainTorch.from_pretrained(sys.argv[1])\n"
        f"model.edit(sys.argv[2], {WORDS!r}, seed=3, steps=1).save(sys.argv[3])\n"
    )
    source, target = tmp_path / "source.png", tmp_path / "target.png"
    Image.fromarray(picture(20, 30)).save(source)
    done = python(code, folder, source, target)
    assert done.returncode == 0, done.stderr
    made = np.asarray(Image.open(target), int)
    expected = np.asarray(model.edit(source, WORDS, seed=3, steps=1), int)
    assert np.abs(made - expected).max() <= 1


def test_without_torch():
    done = python(WITHOUT.format(names=("torch", "peft")) + "import rb_jax.port.torch")
    assert "InputError: torch, peft not installed; they are the extra [torch]" in done.stderr


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 20), (1, 1), (200, 130)])
def test_the_answer_has_the_sources_size(model, height, width):
    image = picture(height, width)
    edited = model.edit(image, WORDS, steps=1)
    assert edited.size == (width, height) and edited.mode == "RGB"
    assert np.any(np.asarray(edited) != image)


def test_settings_that_change_the_answer(model):
    def edit(words=WORDS, **settings):
        return model.edit(picture(32, 32), words, **({"steps": 1} | settings)).tobytes()

    base = edit()
    assert edit(seed=0) == edit(objects=("candle",)) == base
    changed = [
        edit(seed=1),
        edit(steps=2),
        edit(guidance=1.0),
        edit(true_cfg=3.0),
        edit("What if it rained?"),
        edit(objects=("wax",)),
        edit(noise=np.zeros((1, 8, 8, 3))),
    ]
    assert len({base, *changed}) == 1 + len(changed)
    assert changed[-1] == edit(noise=torch.zeros(1, 8, 8, 3), seed=9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be between 1 and 1000"),
        ({"steps": 1001}, "steps must be"),
        ({"seed": -1}, "seed must be between 0 and 4294967295"),
        ({"seed": 2**32}, "seed must be"),
        ({"guidance": float("nan")}, "guidance must be between 0 and 100"),
        ({"true_cfg": 101.0}, "true_cfg must be between 0 and 100"),
        ({"noise": np.zeros((1, 3, 8, 8))}, r"noise must be \(1, 8, 8, 3\)"),
        ({"instruction": " "}, "the instruction is empty"),
        ({"instruction": "why " * 200}, "the limit is 34"),
        ({"image": np.zeros((8, 8), np.uint8)}, "uint8"),
        ({"image": "nothing.png"}, "no such file"),
    ],
)
def test_what_is_refused(model, settings, message):
    with pytest.raises(InputError, match=message):
        model.edit(**({"image": picture(32, 32), "instruction": WORDS} | settings))


def test_rows_of_a_batch_do_not_see_each_other(model):
    both = batch_of(vars(tiny.batch(CONFIG, rows=2)))
    one = batch_of({k: _first(v) for k, v in vars(tiny.batch(CONFIG, rows=2)).items()})
    pictures = model.sample(both, steps=1)
    assert pictures.shape == (2, 32, 32, 3) and pictures.dtype == torch.float32
    torch.testing.assert_close(model.sample(one, steps=1), pictures[:1], rtol=1e-3, atol=1e-3)


def _first(value):
    if hasattr(value, "ids"):
        return type(value)(value.ids[:1], value.mask[:1])
    return None if value is None else value[:1]


def test_bfloat16(folder, model):
    small = ReasonBrainTorch.from_pretrained(folder, dtype=torch.bfloat16)
    assert {x.dtype for x in small.parameters()} == {torch.bfloat16}
    frequencies = [x for name, x in small.named_buffers() if "inv_freq" in name]
    assert {x.dtype for x in frequencies} == {torch.float32}
    batch = batch_of(vars(tiny.batch(CONFIG)))
    with torch.no_grad():
        rough, exact = small.condition(small.encode(batch)), model.condition(model.encode(batch))
    assert rough[0].source_latent.dtype == rough[1].dtype == torch.float32
    difference = (rough[0].tokens.float() - exact[0].tokens).abs().max()
    assert difference < 0.1 * exact[0].tokens.abs().max()
    assert small.sample(batch, steps=1).isfinite().all()


@pytest.mark.parametrize(
    "part",
    [
        "config.json",
        "vae",
        "mllm",
        "reasonbrain/model.safetensors",
        "prompt_tokenizer.json",
        "mllm_adapter/adapter_model.safetensors",
    ],
)
def test_missing_parts(copy, part):
    (shutil.rmtree if (copy / part).is_dir() else lambda p: p.unlink())(copy / part)
    with pytest.raises(InputError, match=f"no {part}; not a complete export"):
        ReasonBrainTorch.from_pretrained(copy)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("reasonbrain/model", "qformer.queries"),
        ("vae/diffusion_pytorch_model", "decoder.conv_in.weight"),
        ("transformer/diffusion_pytorch_model", "x_embedder.bias"),
        ("text_encoder/model", "final_layer_norm.weight"),
        ("mllm/model", "lm_head.weight"),
        ("mllm_adapter/adapter_model", "layers.1.self_attn.o_proj.lora_B.weight"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_damaged_tensors(copy, part, name, damage):
    """A stock library would only warn of the first two, and go on with random numbers."""
    path = copy / f"{part}.safetensors"
    tensors = load_file(path)
    stored = next(key for key in tensors if key.endswith(name))
    if damage == "missing":
        del tensors[stored]
    elif damage == "unexpected":
        tensors[f"{stored}2"] = torch.zeros(1)
    else:
        tensors[stored] = tensors[stored][..., :-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=str(path.parent)) as caught:
        ReasonBrainTorch.from_pretrained(copy)
    assert "\n" not in str(caught.value)
    assert name.removesuffix(".weight") in str(caught.value)
    assert {"misshapen": "shape"}.get(damage, damage) in str(caught.value)


def test_configurations_that_do_not_fit(copy, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        ReasonBrainTorch.from_pretrained(tmp_path / "nowhere")
    values = json.loads((copy / "config.json").read_text())
    for text, message in [
        ("{", "not readable as JSON"),
        ("[]", "not a configuration"),
        (json.dumps(values | {"train": values["train"] | {"task": "autoencoder"}}), "autoencoder"),
        (json.dumps(values | {"model": values["model"] | {"cme": {"width": 48}}}), "has shape"),
    ]:
        (copy / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            ReasonBrainTorch.from_pretrained(copy)
    values["model"]["mllm"]["image_tokens"] += 1
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="1052 words, expected 1047 and 6"):
        ReasonBrainTorch.from_pretrained(copy)
