"""CLIP's two towers, in transformers' layout (models/clip/modeling_clip.py).

A file may hold the whole CLIPModel, or one tower. What only contrastive training uses (the two
projections, the temperature, the norm of the pooled picture) is carried along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rb_jax.config import CLIPTextConfig, CLIPVisionConfig
from rb_jax.models.encoders.clip import CLIPText, CLIPVision
from rb_jax.port.family import (
    Family,
    Layout,
    Modules,
    Names,
    Part,
    Prefix,
    Source,
    expect,
    need,
    numbered,
)
from rb_jax.port.table import CONV, Rule, Table, linear, norm, prefixed, rule, stacked

CARRIED = (
    r"(.*\.)?position_ids",
    r"(text|visual)_projection\.weight",
    r"logit_scale",
)

LAYER = [
    *norm("layer_norm1", "layer_norm1"),
    *[
        r
        for x in ("q", "k", "v", "out")
        for r in linear(f"self_attn.{x}_proj", f"self_attn/{x}_proj")
    ],
    *norm("layer_norm2", "layer_norm2"),
    *linear("mlp.fc1", "mlp/fc1"),
    *linear("mlp.fc2", "mlp/fc2"),
]


def vision_rules(prefix: str, layers: int) -> list[Rule]:
    rules = [
        rule("embeddings.class_embedding", "class_embedding"),
        rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", CONV),
        rule("embeddings.position_embedding.weight", "position_embedding"),
        *norm("pre_layrnorm", "pre_layernorm"),
        *stacked("encoder.layers.{}.", "layers/", layers, LAYER),
    ]
    return prefixed(prefix, "vision/", rules)


def text_rules(prefix: str, layers: int) -> list[Rule]:
    rules = [
        rule("embeddings.token_embedding.weight", "token_embedding"),
        rule("embeddings.position_embedding.weight", "position_embedding"),
        *stacked("encoder.layers.{}.", "layers/", layers, LAYER),
        *norm("final_layer_norm", "final_layer_norm"),
    ]
    return prefixed(prefix, "text/", rules)


def table(part: Part, names: Names) -> Table:
    rules = []
    if "vision" in names:
        rules += vision_rules(names["vision"], part.model.vision.layers)
    if "text" in names:
        rules += text_rules(names["text"], part.model.text.layers)
    return Table(tuple(rules), (*CARRIED, r"(vision_model\.)?post_layernorm\.(weight|bias)"))


def fill_vision(prefix: str, width: int) -> dict[str, np.ndarray]:
    """The norm of the pooled picture, which ReasonBrain does not read."""
    values = {"weight": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    return {f"{prefix}post_layernorm.{name}": value for name, value in values.items()}


def fill(part: Part, names: Names) -> dict[str, np.ndarray]:
    return fill_vision(names["vision"], part.model.vision.width) if "vision" in names else {}


def read(source: Source, names: Names) -> dict[str, Any]:
    values = {}
    if "vision" in names:
        values["vision"] = vision_sizes(source, source.config.get("vision_config"), names["vision"])
    if "text" in names:
        values["text"] = text_sizes(source, source.config.get("text_config"), names["text"])
    return values


def vision_sizes(source: Source, config: Mapping[str, Any] | None, prefix: str) -> dict[str, Any]:
    config = source.config if config is None else config
    expect(source, config, num_channels=3)
    width, _, patch, _ = need(source, f"{prefix}embeddings.patch_embedding.weight")
    patches = need(source, f"{prefix}embeddings.position_embedding.weight")[0] - 1
    return _shared(source, config, prefix, width, default_heads=12) | {
        "image_size": config.get("image_size", round(patches**0.5) * patch),
        "patch_size": patch,
    }


def text_sizes(source: Source, config: Mapping[str, Any] | None, prefix: str) -> dict[str, Any]:
    config = source.config if config is None else config
    vocabulary, width = need(source, f"{prefix}embeddings.token_embedding.weight")
    return _shared(source, config, prefix, width, default_heads=8) | {
        "vocab_size": vocabulary,
        "max_length": need(source, f"{prefix}embeddings.position_embedding.weight")[0],
    }


def _shared(
    source: Source, config: Mapping[str, Any], prefix: str, width: int, default_heads: int
) -> dict[str, Any]:
    # A configuration may leave out its class's default. Beside a bare file there is none: OpenAI's
    # heads are 64 wide.
    heads = default_heads if config else max(1, width // 64)
    layers = numbered(source, f"{prefix}encoder.layers.{{}}.")
    return {
        "width": width,
        "layers": config.get("num_hidden_layers", layers),
        "heads": config.get("num_attention_heads", heads),
        "mlp_width": need(source, f"{prefix}encoder.layers.0.mlp.fc1.weight")[0],
        "activation": config.get("hidden_act", "quick_gelu"),
        "norm_eps": config.get("layer_norm_eps", 1e-5),
    }


def write_tower(config: CLIPVisionConfig | CLIPTextConfig) -> dict[str, Any]:
    """config.json of transformers' CLIPVisionModel or CLIPTextModel."""
    values: dict[str, Any] = {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
    }
    if isinstance(config, CLIPVisionConfig):
        kind = ("CLIPVisionModel", "clip_vision_model")
        values |= {"image_size": config.image_size, "patch_size": config.patch_size}
    else:
        kind = ("CLIPTextModel", "clip_text_model")
        values |= {
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_length,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
    return {"architectures": [kind[0]], "model_type": kind[1]} | values


def write(part: Part) -> dict[str, Any]:
    """config.json of a single tower, or of both as a CLIPModel."""
    towers = {
        k: write_tower(getattr(part.model, k)) for k in ("vision", "text") if k in part.values
    }
    if len(towers) == 1:
        return next(iter(towers.values()))
    both = {f"{name}_config": tower for name, tower in towers.items()}
    return {"architectures": ["CLIPModel"], "model_type": "clip", **both}


def modules(part: Part) -> Modules:
    model, modules = part.model, {}
    if "vision" in part.values:
        modules["vision"] = lambda rngs: CLIPVision(model.vision, rngs)
    if "text" in part.values:
        modules["text"] = lambda rngs: CLIPText(model.text, rngs)
    return modules


FAMILY = Family(
    "clip",
    (
        Layout(
            "hf",
            {
                "vision": Prefix("embeddings.class_embedding", ("vision_model.", ""), False),
                "text": Prefix("embeddings.token_embedding.weight", ("text_model.", ""), False),
            },
            read,
            table,
            write,
            fill=fill,
        ),
    ),
    modules,
)
