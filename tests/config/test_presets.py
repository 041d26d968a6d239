"""The presets of full size: how many parameters they have and train, from shapes alone."""

import math

import pytest

from configs import flux, reason50k_flux
from rb_jax.config import Config, from_config_dict
from rb_jax.train.state import trainable_paths
from rb_jax.weights.params import definition

# Published counts: FLUX.1-dev's transformer (and the 64 more inputs of a source beside z_t), and
# LLaMA-7B with LLaVA's linear projector.
FLUX = 11_901_408_320
FLUX_EDIT = FLUX + 64 * 3072
LLAVA = 6_738_415_616 + 1025 * 4096


def counts(config: Config) -> dict[str, tuple[int, int]]:
    """Stage -> how many numbers are trained and how many are frozen."""
    _, shapes, parameters = definition(config)
    trainable = trainable_paths(config, parameters)
    found: dict[str, tuple[int, int]] = {}
    for path in parameters:
        stage, size = path.split("/")[0], math.prod(shapes[path].shape)
        trained, frozen = found.get(stage, (0, 0))
        learns = path in trainable
        found[stage] = (trained + size * learns, frozen + size * (not learns))
    return found


def lora(rank: int, *layers: tuple[int, int, int]) -> int:
    """Numbers in the two factors of layers (how many, inputs, outputs)."""
    return sum(count * rank * (inputs + outputs) for count, inputs, outputs in layers)


MLLM_LORA = lora(8, (32 * 4, 4096, 4096))
DOUBLE, SINGLE, WIDTH = 19, 38, 3072
MMDIT_LORA = lora(
    64,
    (2 * DOUBLE, WIDTH, 3 * WIDTH),
    (2 * DOUBLE, WIDTH, WIDTH),
    (2 * DOUBLE, WIDTH, 4 * WIDTH),
    (2 * DOUBLE, 4 * WIDTH, WIDTH),
    (SINGLE, WIDTH, 7 * WIDTH),
    (SINGLE, 5 * WIDTH, WIDTH),
)


@pytest.mark.parametrize(
    ("preset", "mmdit"),
    [
        ("paper", (FLUX_EDIT, 0)),
        ("paper,1024", (FLUX_EDIT, 0)),
        ("lora", (MMDIT_LORA, FLUX_EDIT)),
        ("adapter,512", (0, FLUX_EDIT)),
    ],
)
def test_what_the_papers_presets_train(preset, mmdit):
    config = from_config_dict(reason50k_flux.get_config(preset))
    found = counts(config)
    assert found["mmdit"] == mmdit
    trained, frozen = found["mllm"]
    assert frozen == LLAVA
    # The cues' projections into LLaMA, and [IMG] tokens: their embeddings and their head.
    assert trained == MLLM_LORA + 2 * 1025 * 4096 + 2 * 32 * 4096
    new = {stage: found[stage] for stage in ("frce", "qformer", "cme", "projections")}
    assert all(trained > 0 and frozen == 0 for trained, frozen in new.values())
    assert set(found) == {"mllm", "mmdit", *new}  # features come ready-made
    assert config.data.image_size == (1024 if preset.endswith("1024") else 512)


def test_lora_reaches_every_projection_of_the_blocks_and_nothing_else_of_the_flow_model():
    config = from_config_dict(reason50k_flux.get_config("lora"))
    trainable = trainable_paths(config, definition(config)[2])
    adapted = {path.rsplit("/", 1)[0] for path in trainable if path.startswith("mmdit/")}
    streams = [f"mmdit/double_blocks/{stream}" for stream in ("img", "txt")]
    layers = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
    expected = {f"{stream}/{layer}" for stream in streams for layer in layers}
    assert adapted == expected | {f"mmdit/single_blocks/linear{i}" for i in (1, 2)}


@pytest.mark.parametrize("preset", flux.PRESETS)
def test_the_flow_model_alone_is_fluxs(preset):
    config = from_config_dict(flux.get_config(preset))
    assert counts(config) == {"mmdit": (FLUX, 0)}


@pytest.mark.parametrize(
    ("get_config", "variant", "named"),
    [
        (flux.get_config, "quick", "'quick' is not a preset; choose fast or small"),
        (reason50k_flux.get_config, "full", "'full' is not a preset; choose paper"),
        (reason50k_flux.get_config, "lora,768", "'lora,768' is not a preset; choose paper"),
        (reason50k_flux.get_config, "512", "'512' is not a preset; choose paper"),
    ],
)
def test_what_is_no_preset_is_refused_in_one_line(get_config, variant, named):
    with pytest.raises(ValueError, match=named) as error:
        get_config(variant)
    assert "\n" not in str(error.value)
