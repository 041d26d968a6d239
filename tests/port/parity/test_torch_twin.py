"""The PyTorch side against ours: stage by stage and over whole edits, from the same weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

for library in ("torch", "transformers", "diffusers", "peft"):
    pytest.importorskip(library)

import torch  # noqa: E402

from rb_jax import editor  # noqa: E402
from rb_jax.config import Config  # noqa: E402
from rb_jax.models.cme import CME  # noqa: E402
from rb_jax.models.encoders.clip import preprocess  # noqa: E402
from rb_jax.models.frce import FRCE  # noqa: E402
from rb_jax.models.qformer import QFormer  # noqa: E402
from rb_jax.models.reasonbrain import ReasonBrain  # noqa: E402
from rb_jax.port.torch import ReasonBrainTorch, encoders, modules, records  # noqa: E402
from tests import tiny  # noqa: E402
from tests.port.parity import exported  # noqa: E402

# PEFT asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

torch.set_num_threads(1)  # tiny tensors: several threads would only wait for each other
WORDS = "What if the candle burned for two hours?"
STOCK = {"model__mmdit__mlp_ratio": 4.0}  # the one that diffusers has
CONFIG = tiny.config(**STOCK)
REGIONS_ONLY = {
    "frce__patch_branch": False,
    "frce__width": 44,
    "frce__heads": 4,
    "mmdit__in_width": 31,
}
EDITS = {
    "channel, velocity": {},
    "sequence, data, without ID Controller": {
        "mmdit__source": "sequence",
        "mmdit__prediction": "data",
        "frce__id_controller": False,
    },
    "without CME, without guidance, LLaVA v1.5": {
        "cme__enabled": False,
        "mmdit__guidance_embed": False,
        "mllm__projector": "mlp",
    },
    "without FRCE, without LoRA": {
        "cme__enabled": False,
        "frce__enabled": False,
        "mllm__lora_rank": 0,
    },
    "regions only, equal widths, wide input": REGIONS_ONLY,
}


def changed(changes: dict[str, Any]) -> Config:
    return tiny.config(**STOCK, **{f"model__{key}": value for key, value in changes.items()})


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The PyTorch model of a configuration, with the weights of ``tiny.params``."""

    @functools.cache
    def make(config: Config = CONFIG) -> ReasonBrainTorch:
        folder = tmp_path_factory.mktemp("twin") / "export"
        exported.export(folder, tiny.params(config), config)
        return ReasonBrainTorch.from_pretrained(folder)

    return make


def error(made: torch.Tensor, expected: Any) -> float:
    """Largest difference, as a share of the largest value."""
    expected = np.asarray(expected, np.float64)
    assert made.shape == expected.shape
    difference = np.abs(made.detach().double().numpy() - expected)
    return float(difference.max() / np.abs(expected).max())


def psnr(made: Any, expected: Any) -> float:
    mse = np.mean((np.asarray(made, np.float64) - np.asarray(expected, np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / max(mse, 1e-6)))


def to_torch(record: Any) -> Any:
    """A record of ours as the one of the same name and fields."""
    if isinstance(record, (np.ndarray, jax.Array)):
        value = torch.from_numpy(np.array(record))
        return value.long() if value.dtype == torch.int32 else value
    fields = {k: to_torch(v) for k, v in vars(record).items() if v is not None and k != "target"}
    return getattr(records, type(record).__name__)(**fields)


def jax_noise(config: Config, seed: int) -> np.ndarray:
    """The noise that our sampler draws for a single picture."""
    shape = tiny.conditioning(config=config).source_latent.shape[1:]
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return np.asarray(jax.random.normal(key, shape))[None]


def picture(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(5).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


@pytest.fixture(scope="module")
def stages():
    """Our batch, features, cues, V, V_hat and conditioning of the small model."""
    batch = tiny.batch(CONFIG)

    def run(model: ReasonBrain, batch):
        features = model.encode(batch)
        cues = model.frce(features)
        v, loss = model.mllm(features, cues)
        v_hat = model.qformer(v)
        return features, cues, v, loss, v_hat, model.condition(features)[0]

    names = ("features", "cues", "v", "loss", "v_hat", "conditioning")
    made = tiny.jit(run, CONFIG)(tiny.params(CONFIG), batch)
    return {"batch": batch} | dict(zip(names, made, strict=True))


def test_encoders(twin, stages):
    made, expected = twin().encode(to_torch(stages["batch"])), stages["features"]
    for name in ("image", "patches", "regions", "text", "pooled", "objects", "source_latent"):
        assert error(getattr(made, name), getattr(expected, name)) < 1e-5, name
    for name in ("region_mask", "text_mask", "object_mask"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))


@pytest.mark.parametrize(("side", "size"), [(32, 24), (24, 24), (20, 36), (96, 14), (37, 24)])
def test_pictures_are_resized_alike(side, size):
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    made = encoders.preprocess(torch.from_numpy(images), size).permute(0, 2, 3, 1)
    assert error(made, preprocess(jnp.asarray(images), size)) < 1e-5


def test_reasoning_stages(twin, stages):
    """Each from our own output of the stage before."""
    model, features, cues = twin(), to_torch(stages["features"]), to_torch(stages["cues"])
    made = model.frce(features)
    assert error(made.visual, stages["cues"].visual) < 1e-5
    assert error(made.textual, stages["cues"].textual) < 1e-5
    np.testing.assert_array_equal(made.visual_mask, stages["cues"].visual_mask)
    v, loss = model.visual_guidance(features, cues)
    assert error(v, stages["v"]) < 1e-5
    assert error(loss, stages["loss"]) < 1e-5
    assert error(model.qformer(to_torch(stages["v"])), stages["v_hat"]) < 1e-5
    visual, textual = model.enhance(to_torch(stages["v_hat"]), features, cues)
    tokens = model.own.cme_proj(torch.cat([visual, textual], dim=1))
    assert error(tokens, stages["conditioning"].tokens) < 1e-5


def test_conditioning_from_pixels(twin, stages):
    model = twin()
    made, loss = model.condition(model.encode(to_torch(stages["batch"])))
    for name in ("tokens", "vector", "source_latent"):
        assert error(getattr(made, name), getattr(stages["conditioning"], name)) < 1e-5, name
    assert error(loss, stages["loss"]) < 1e-5


@pytest.mark.parametrize("scale", [0.03, 1.0])
def test_velocity(twin, stages, scale):
    """float32 sinusoids of 1000 t and 1000 guidance lose digits on either side as these grow."""
    z, t = tiny.normal(3, 8, 8, 3), scale * np.array([0.0, 0.4, 1.0], np.float32)
    guidance = scale * np.array([3.5, 0.0, 1.0], np.float32)
    expected = tiny.jit(ReasonBrain.velocity, CONFIG)(
        tiny.params(CONFIG), z, t, guidance, stages["conditioning"]
    )
    made = twin().velocity(*map(to_torch, (z, t, guidance, stages["conditioning"])))
    assert error(made, expected) < (1e-5 if scale < 1 else 1e-4)


@pytest.mark.parametrize("name", EDITS)
def test_whole_edits(twin, monkeypatch, name):
    """A photograph's shape in and out; at these values some bytes differ by one."""
    monkeypatch.setattr(editor, "definition", tiny.definition)  # tracing it anew takes seconds
    config = changed(EDITS[name])
    photo = picture(40, 70)
    settings: dict[str, Any] = {"true_cfg": 2.0} if name == "channel, velocity" else {}
    expected = editor.Editor(config, tiny.params(config)).edit(photo, WORDS, seed=7, **settings)
    made = twin(config).edit(photo, WORDS, noise=jax_noise(config, 7), **settings)
    assert made.size == expected.size == (70, 40)
    assert psnr(made, expected) > 60
    assert psnr(made, photo) < 30 and np.asarray(made).std() > 10


def gradients(loss, module) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def assert_same_gradients(made: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert made.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1e-3 * largest)
        assert float((made[name] - value).abs().max()) <= 1e-4 * scale, name


def part_of(module: torch.nn.Module, prefix: str, params: dict[str, Any]) -> torch.nn.Module:
    """A torch module with the weights of ``tiny.part``, which must be all that it has."""
    state = exported.torch_names({f"{prefix}/{k}": v for k, v in params.items()}, CONFIG)
    module.load_state_dict({k.removeprefix(f"{prefix}."): v for k, v in state.items()})
    return module.eval()


def check_part(prefix: str, make, module, ours, theirs):
    """Outputs and gradients of ``sum_i w_i y_i``; ``ours`` and ``theirs`` give lists of outputs."""
    params, run = tiny.part(make)
    module = part_of(module, prefix, params)
    outputs = ours(run, params)
    weights = [tiny.normal(*y.shape, seed=9) for y in outputs]
    made = theirs(module)
    for y, expected in zip(made, outputs, strict=True):
        assert error(y, expected) < 1e-5

    def loss(params):
        return sum((w * y).sum() for w, y in zip(weights, ours(run, params), strict=True))

    expected = {f"{prefix}/{k}": v for k, v in jax.grad(loss)(params).items()}
    named = exported.torch_names(expected, CONFIG)
    total = sum((torch.from_numpy(w) * y).sum() for w, y in zip(weights, made, strict=True))
    found = {f"{prefix}.{k}": v for k, v in gradients(total, module).items()}
    assert_same_gradients(found, named)


def test_frce_alone():
    features = tiny.features(CONFIG)
    check_part(
        "frce",
        lambda r: FRCE(CONFIG.model, r),
        modules.FRCE(CONFIG.model),
        lambda run, p: [(c := run(p, features)).visual, c.textual],
        lambda m: [(c := m(to_torch(features))).visual, c.textual],
    )


def test_qformer_alone():
    model, v = CONFIG.model, tiny.normal(3, 5, CONFIG.model.mllm.width)
    check_part(
        "qformer",
        lambda r: QFormer(model.mllm.width, model.qformer, r),
        modules.QFormer(model.mllm.width, model.qformer),
        lambda run, p: [run(p, v)],
        lambda m: [m(torch.from_numpy(v))],
    )


class BothEnhancers(CME):
    """The CME as one function of all its inputs."""

    def __call__(self, v_hat, image, image_mask, visual, visual_mask, textual, textual_mask):
        return (
            self.visual_enhancer(v_hat, image, image_mask, visual, visual_mask),
            self.textual_enhancer(v_hat, image, image_mask, textual, textual_mask),
        )


def test_cme_alone():
    """The first row has neither cue nor encoder token left, the second all of them."""
    width = CONFIG.model.cme.width
    v_hat, image, visual, textual = (tiny.normal(3, n, width) for n in (7, 10, 14, 4))
    masks = [np.random.default_rng(n).random((3, n)) > 0.4 for n in (10, 14, 4)]
    for mask in masks:
        mask[0], mask[1] = False, True
    inputs = (v_hat, image, masks[0], visual, masks[1], textual, masks[2])

    def theirs(cme):
        v_hat, image, image_mask, *cues = map(torch.from_numpy, inputs)
        return [
            cme.visual_enhancer(v_hat, image, image_mask, *cues[:2]),
            cme.text_enhancer(v_hat, image, image_mask, *cues[2:]),
        ]

    check_part(
        "cme",
        lambda r: BothEnhancers(CONFIG.model.cme, r),
        modules.CME(CONFIG.model.cme),
        lambda run, p: list(run(p, *inputs)),
        theirs,
    )


def test_a_row_without_objects_and_regions(twin, stages):
    """Nothing is NaN, and the other rows do not notice."""
    config = changed(REGIONS_ONLY)
    full = stages["features"]
    names = ("region_mask", "object_mask")
    masks = {name: np.array(getattr(full, name)) for name in names}
    for mask in masks.values():
        mask[0] = False
    empty, model = dataclasses.replace(full, **masks), twin(config)
    before, _ = model.condition(to_torch(full))
    made, loss = model.condition(to_torch(empty))
    expected, _ = tiny.jit(ReasonBrain.condition, config)(tiny.params(config), empty)
    assert error(made.tokens, expected.tokens) < 1e-5
    assert torch.isfinite(loss).all()
    torch.testing.assert_close(made.tokens[1:], before.tokens[1:], rtol=1e-4, atol=1e-4)
    assert (made.tokens[0] - before.tokens[0]).abs().max() > 1e-2
    made.tokens.sum().backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in model.own.parameters())


def test_the_adapter_matters(twin, stages):
    model, features = twin(), to_torch(stages["features"])
    adapted = model.condition(features)[0].tokens
    with model.mllm.disable_adapter():
        plain = model.condition(features)[0].tokens
    assert error(plain, adapted.detach()) > 1e-2
