"""The published models at their full size, without a weight: every tensor has its place.

The stock classes are made on torch's meta device; only names, shapes and configurations are read.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rb_jax.config import CMEConfig, FRCEConfig, QFormerConfig
from rb_jax.port.families import FAMILIES
from rb_jax.port.family import Part, Source, porter
from rb_jax.port.importing import detect, fit
from rb_jax.port.table import Porter
from rb_jax.weights.safetensors.header import TensorInfo
from rb_jax.weights.safetensors.reader import TensorFiles

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}


def flux(guidance: bool):
    return diffusers.FluxTransformer2DModel(guidance_embeds=guidance)


def flux_vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def clip():
    text = {"hidden_size": 768, "intermediate_size": 3072}
    config = transformers.CLIPConfig(text_config=text, vision_config=CLIP_L, projection_dim=768)
    return transformers.CLIPModel(config)


def llava():
    """v1.5-7B; transformers' files have 64 unused words more than the original's 32,000."""
    vision = transformers.CLIPVisionConfig(**CLIP_L | {"image_size": 336})
    text = transformers.LlamaConfig(vocab_size=32064)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text)
    return transformers.LlavaForConditionalGeneration(config)


def sam():
    vision = {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "mlp_dim": 5120,
        "global_attn_indexes": [7, 15, 23, 31],
    }
    return transformers.SamModel(transformers.SamConfig(vision_config=vision))


# How it is made; the family that it must be found to be; tensors, values, and those of them that
# are only carried along; sizes that must be read.
MODELS = {
    "FLUX.1-dev": (
        lambda: flux(True),
        "flux",
        1160,
        11_901_408_320,
        0,
        {
            "mmdit": {
                "width": 3072,
                "heads": 24,
                "double_blocks": 19,
                "single_blocks": 38,
                "axes_dim": (16, 56, 56),
                "guidance_embed": True,
                "context_width": 4096,
            }
        },
    ),
    "FLUX.1-schnell": (
        lambda: flux(False),
        "flux",
        1156,
        11_891_178_560,
        0,
        {"mmdit": {"guidance_embed": False, "mlp_ratio": 4.0}, "text": {"width": 768}},
    ),
    "FLUX.1's autoencoder": (
        flux_vae,
        "flux_vae",
        244,
        83_819_683,
        0,
        {
            "autoencoder": {
                "channels": 128,
                "channel_mult": (1, 2, 4, 4),
                "latent_channels": 16,
                "scale_factor": 0.3611,
                "shift_factor": 0.1159,
            }
        },
    ),
    "CLIP ViT-L/14": (
        clip,
        "clip",
        590,
        427_616_513,
        5,
        {"vision": {"width": 1024, "layers": 24}, "text": {"width": 768, "max_length": 77}},
    ),
    "LLaVA-1.5-7B": (
        llava,
        "llava",
        686,
        7_063_427_072,
        2,
        {
            "vision": {"image_size": 336, "feature_layer": -2},
            "mllm": {"width": 4096, "layers": 32, "mlp_width": 11008, "projector": "mlp"},
        },
    ),
    "SAM ViT-H": (
        sam,
        "sam",
        595,
        641_091_120,
        1,
        {"sam": {"width": 1280, "layers": 32, "image_size": 1024}},
    ),
}
# Tensors in BFL's files of the same models: the projections are fused there.
BFL = {"FLUX.1-dev": 780, "FLUX.1-schnell": 776, "FLUX.1's autoencoder": 244}


def no_values(info: TensorInfo, begin: int, size: int) -> np.ndarray:
    raise AssertionError(f"{info.name} has no values here")


def source(model) -> Source:
    """The model as files that hold nothing but names, shapes and config.json."""
    infos = {
        name: TensorInfo(name, np.dtype(np.float32), tuple(x.shape), Path("meta"), -1, 0)
        for name, x in model.state_dict().items()
    }
    config = dict(model.config) if "diffusers" in type(model).__module__ else model.config.to_dict()
    files = TensorFiles(infos, {}, {}, no_values)
    return Source(files, json.loads(json.dumps(config, default=str)), Path("meta"))


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_published_model_has_its_place(name):
    make, family_name, count, values, carried, sizes = MODELS[name]
    if family_name not in FAMILIES:
        pytest.skip(f"no {family_name} yet")
    with torch.device("meta"):
        made = source(make())
    assert len(made.files) == count
    assert sum(math.prod(info.shape) for info in made.files.values()) == values
    family, layout, names = detect(made)
    assert family.name == family_name
    part, table = fit(made, family, layout, names, ())
    table.check_import(made.files, name)
    for group, inner in sizes.items():
        assert inner.items() <= dict(part.values[group]).items()
    kept = {n for n in made.files if table.carries(n)}
    assert len(kept) == carried and set(table.sources) == set(made.files) - kept
    ours = sum(math.prod(shape) for shape in table.shapes.values())
    assert ours == values - sum(math.prod(made.files[n].shape) for n in kept)
    if name in BFL:
        bfl = family.layout("bfl")
        other = Porter(bfl.table(part, bfl.first_names()), table.shapes)
        assert len(other.sources) == BFL[name]
        assert sum(math.prod(other.source_shape(n)) for n in other.sources) == values


def test_the_authors_modules():
    """At the paper's sizes, as docs/architecture.md gives them."""
    groups = {
        "vision": {"width": 1024},
        "text": {"width": 768},
        "regions": {"width": 256},
        "mllm": {"width": 4096},
        "mmdit": {"context_width": 4096},
        "frce": FRCEConfig(
            width=1024, heads=8, patch_layers=4, region_layers=2, id_controller_layers=2
        ),
        "qformer": QFormerConfig(width=768, heads=12, layers=6, queries=77),
        "cme": CMEConfig(width=1024, heads=16, blocks=5, queries=77),
    }
    values = {k: v if isinstance(v, dict) else vars(v) for k, v in groups.items()}
    found = FAMILIES["reasonbrain"].layout("official")
    table = porter(FAMILIES["reasonbrain"], found, Part(values), found.first_names())
    sums: dict[str, int] = {}
    for name in table.sources:
        part = name.split(".")[0]
        sums[part] = sums.get(part, 0) + math.prod(table.source_shape(name))
    millions = {part: round(total / 1e6, 1) for part, total in sums.items()}
    assert millions == {"frce": 102.9, "qformer": 59.9, "cme": 218.6, "cme_proj": 4.2}
