"""Assembling: the parts' tensors bit for bit, fresh ones for the rest, and a model that works."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rb_jax import editor as editor_module
from rb_jax.checkpoint import stored
from rb_jax.checkpoint.stored import load_weights
from rb_jax.cli import main
from rb_jax.data.inputs.text import Tokenizer
from rb_jax.errors import InputError
from rb_jax.port import assemble as assemble_module
from rb_jax.port.assemble import assemble, merged_config
from rb_jax.port.component import open_component
from rb_jax.port.importing import import_checkpoint
from rb_jax.train import initial, loop, state
from rb_jax.weights.safetensors.reader import TensorFiles, verify
from tests import tiny
from tests.port import cases, whole

# ml_collections loads the file of --config in a way that Python no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIGS = Path(__file__).parents[2] / "configs"
TOKENIZER = Tokenizer.load().to_json() + "\n"
LATENT = 12  # values of a token of z_t
GIVEN = {
    "flux": ["mmdit"],
    "flux_vae": ["autoencoder"],
    "clip": ["text"],
    "llava": ["mllm", "vision"],
    "reasonbrain": ["cme", "frce", "projections", "qformer"],
}


@pytest.fixture(scope="module")
def patch():
    """The modules are traced once: a model's graph depends on few of its configuration's values."""

    def definition(config):
        data, train = whole.CONFIG.data, whole.CONFIG.train
        return tiny.definition(dataclasses.replace(config, data=data, train=train))

    with pytest.MonkeyPatch.context() as context:
        for module in (assemble_module, editor_module, loop, state, stored, initial):
            context.setattr(module, "definition", definition)
        yield context


@pytest.fixture(scope="module")
def parts(tmp_path_factory, patch):
    """The whole model's parts, of a FLUX that knows no source picture, and two tokenizers."""
    folder = tmp_path_factory.mktemp("parts")
    whole.save(folder / "whole")
    made = whole.import_parts(folder / "whole", folder)
    plain = folder / "diffusers" / "transformer"
    tensors = load_file(plain / "diffusion_pytorch_model.safetensors")
    tensors["x_embedder.weight"] = tensors["x_embedder.weight"][:, :LATENT].copy()
    save_file(tensors, plain / "diffusion_pytorch_model.safetensors")
    for family in ("clip", "llava"):
        (made[family] / "tokenizer.json").write_text(TOKENIZER)
    shutil.rmtree(made["flux"])
    import_checkpoint(plain, made["flux"])
    return made


@pytest.fixture(scope="module")
def assembled(tmp_path_factory, parts):
    """Sizes that the parts fix are others in the configuration."""
    model = tiny.CONFIG.model
    other = dataclasses.replace(whole.CONFIG.model, text=model.text, vision=model.vision)
    out = tmp_path_factory.mktemp("assembled") / "model"
    config = dataclasses.replace(whole.CONFIG, model=other)
    made = assemble(config, list(parts.values()), out, allow_random_frozen=True)
    return made, out


def test_every_parameter_has_its_origin(assembled, parts):
    made, out = assembled
    config, params = load_weights(out)
    given = tiny.params(whole.CONFIG)
    assert made.parts == {str(parts[family]): stages for family, stages in GIVEN.items()}
    assert made.fresh == ["mllm", "projections", "regions"] and not made.unused
    verify(TensorFiles.open(out))
    image_tokens, words = config.model.mllm.image_tokens, whole.CONFIG.model.mllm.vocab_size
    assert config.model.mllm.vocab_size == words + image_tokens  # the export joined them
    assert config.model.vision == whole.CONFIG.model.vision
    fresh = {
        "mllm/image_tokens",
        "mllm/textual_cue_proj",
        "mllm/visual_cue_proj",
        "regions",
        "projections/v_hat",
        "projections/image",
        "projections/text",
        "projections/visual_cues",
        "projections/textual_cues",
    }
    for path, value in params.items():
        if path.endswith(("embed_tokens", "lm_head/kernel")) or path == "mmdit/img_in/kernel":
            continue
        new = any(path.startswith(f"{start}/") for start in fresh) or "/lora_" in path
        assert np.array_equal(value, given[path]) is not new or not np.any(value), path


def test_vocabulary_and_image_tokens(assembled):
    """LLaVA's words are kept apart from the new ones."""
    _, params = load_weights(assembled[1])
    given = tiny.params(whole.CONFIG)
    words = given["mllm/language_model/embed_tokens"], given["mllm/image_tokens/embedding"]
    table = params["mllm/language_model/embed_tokens"]
    assert table.tobytes() == np.concatenate(words).tobytes()
    assert params["mllm/image_tokens/embedding"].shape == words[1].shape
    assert not np.array_equal(params["mllm/image_tokens/embedding"], words[1])


def test_input_layer_is_widened_with_zeros(assembled):
    kernel = load_weights(assembled[1])[1]["mmdit/img_in/kernel"]
    given = np.asarray(tiny.params(whole.CONFIG)["mmdit/img_in/kernel"])
    assert kernel.shape == given.shape == (2 * LATENT, whole.CONFIG.model.mmdit.width)
    assert np.array_equal(kernel[:LATENT], given[:LATENT]) and not kernel[LATENT:].any()


def test_tokenizers_travel_along(assembled):
    config, _ = load_weights(assembled[1])
    for name in ("text", "prompt"):
        path = assembled[1] / f"{name}_tokenizer.json"
        assert path.read_text() == TOKENIZER
        assert getattr(config.data, f"{name}_tokenizer") == str(path)


def test_trains_and_edits(assembled, tmp_path, patch):
    """Two steps by the command line; what is frozen keeps its bits."""
    config = f"--config={CONFIGS / 'from_checkpoint.py'}:{assembled[1]}"
    assert main(["train", config, f"--workdir={tmp_path}/run"]) == 0
    _, before = load_weights(assembled[1])
    stored, after = load_weights(tmp_path / "run" / "weights")
    assert stored.train.init_from == str(assembled[1])
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {"mmdit/final_layer/linear/kernel", "mmdit/final_layer/linear/bias"}
    picture = np.random.default_rng(0).integers(0, 256, (40, 32, 3)).astype(np.uint8)
    edited = editor_module.Editor.from_pretrained(assembled[1]).edit(
        picture, "What if the rope were cut?", steps=1
    )
    assert edited.size == (32, 40)


def test_frozen_stages_without_weights_are_refused(parts, tmp_path, capsys, patch):
    """They would paint noise for good: the autoencoder, and encoders that nothing trains."""
    without = [str(parts[name]) for name in ("flux", "llava")]
    config = dataclasses.replace(
        whole.CONFIG,
        train=dataclasses.replace(
            whole.CONFIG.train,
            trainable=("mllm/**", "mmdit/**", "frce/**", "qformer/**", "cme/**", "projections/**"),
        ),
    )
    with pytest.raises(InputError) as caught:
        assemble(config, without, tmp_path / "out")
    assert "no part has weights for autoencoder, regions, text, which the" in str(caught.value)
    assert not (tmp_path / "out").exists()
    argv = ["assemble", "--config=reasonworld", f"--parts={parts['clip']}", f"--out={tmp_path}/o"]
    argv.append("--config.optimizer.warmup_steps=0")
    assert main(argv) == 2
    assert "for autoencoder, which the configuration freezes" in capsys.readouterr().err


# What fits and what does not --------------------------------------------------------------------


def imported(folder: Path, **names: str) -> dict[str, Path]:
    for part, name in names.items():
        import_checkpoint(cases.source(folder / "source" / part, name), folder / part)
    return {part: folder / part for part in names}


def components(parts):
    return [open_component(folder) for folder in parts.values()]


@pytest.mark.usefixtures("cached_porters")
def test_all_conflicts_are_listed(tmp_path):
    made = imported(
        tmp_path, flux="flux diffusers", clip="clip", llava="llava hf first", own="reasonbrain"
    )
    with pytest.raises(InputError) as caught:
        assemble(whole.CONFIG, list(made.values()), tmp_path / "out")
    assert str(caught.value) == (
        "the parts do not fit together: "
        f"config.model.text.width is 10 in {made['flux']} and 20 in {made['clip']}; "
        f"config.model.text.width is 10 in {made['flux']} and 20 in {made['own']}; "
        f"config.model.mllm.width is 16 in {made['llava']} and 18 in {made['own']}; "
        f"config.model.mmdit.context_width is 20 in {made['flux']} and 26 in {made['own']}"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cached_porters")
def test_two_parts_with_the_same_parameters(tmp_path, patch):
    made = imported(tmp_path, first="vae diffusers", second="vae bfl")
    vae = dataclasses.replace(whole.CONFIG.model.autoencoder, channel_mult=(1, 2))
    model = dataclasses.replace(whole.CONFIG.model, autoencoder=vae)
    shapes = {p: None for c in components(made) for p in c.paths}
    with pytest.raises(InputError) as caught:
        assemble_module._origins(components(made), shapes)
    assert str(caught.value) == (
        f"the parts do not fit together: {made['first']} and {made['second']} both hold autoencoder"
    )
    merged = merged_config(dataclasses.replace(whole.CONFIG, model=model), components(made))
    assert merged.model.autoencoder == vae


@pytest.mark.usefixtures("cached_porters")
def test_llavas_vision_tower_outranks_clips(tmp_path):
    """Whatever their order, and though their sizes differ."""
    folder = tmp_path / "other"
    case = dataclasses.replace(
        cases.CASES["llava hf first"],
        values={
            **cases.CASES["llava hf first"].values,
            "vision": {**cases.VISION, "layers": 3, "feature_layer": -2},
        },
    )
    config = json.loads(json.dumps(dict(case.config)))
    config["vision_config"]["num_hidden_layers"] = 3
    cases.write(folder, cases.tensors(case), config)
    import_checkpoint(folder, tmp_path / "llava")
    made = imported(tmp_path, clip="clip") | {"llava": tmp_path / "llava"}
    for order in (list(made), list(made)[::-1]):
        opened = components({name: made[name] for name in order})
        values = {(g, k): v for c in opened for g, k, v in assemble_module._values(c, opened)}
        assert values["vision", "layers"] == 3 and values["vision", "feature_layer"] == -2
        assert values["text", "layers"] == 3
        paths = {p: None for c in opened for p in c.paths}
        origin = assemble_module._origins(opened, paths)
        from_clip = {p.split("/")[0] for p, c in origin.items() if c.family.name == "clip"}
        assert from_clip == {"text"} and origin["vision/layers/mlp/fc1/bias"] is not None


def test_a_folder_that_is_no_part(tmp_path, capsys):
    cases.write(tmp_path / "model", {"a": np.zeros(2)}, {"model": {}})
    argv = ["assemble", f"--config={CONFIGS / 'reasonworld.py'}", f"--out={tmp_path}/out"]
    assert main([*argv, f"--parts={tmp_path}/model"]) == 2
    assert "not a folder that rb-jax import wrote" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cached_porters")
def test_a_part_is_not_a_whole_model(tmp_path, capsys):
    part = imported(tmp_path, clip="clip text")["clip"]
    argv = ["edit", "--image=x.png", "--instruction=x", f"--out={tmp_path}/o.png"]
    with pytest.raises(InputError, match="put parts together with rb-jax assemble"):
        load_weights(part)
    assert main([*argv, f"--checkpoint={part}"]) == 2
