"""LLaVA: transformers' layout and the original one (haotian-liu/LLaVA: llava/model).

v1.5 has two projector layers with a GELU, v1.1 one. transformers' class always has two; there v1.1
is the first followed by the identity (``projector_hidden_act="linear"``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from rb_jax.config import MLLMConfig
from rb_jax.models.encoders.clip import CLIPVision
from rb_jax.models.mllm.image_tokens import ImageTokens
from rb_jax.models.mllm.llama import Llama
from rb_jax.models.mllm.llava import Projector
from rb_jax.port.families.clip import CARRIED, fill_vision, vision_rules, vision_sizes, write_tower
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
from rb_jax.port.table import LINEAR, Rule, Table, linear, norm, prefixed, rule, stacked

OLD_BUFFERS = (r".*rotary_emb\.inv_freq",)

LAYER = [
    *norm("input_layernorm", "input_layernorm", bias=False),
    *[rule(f"self_attn.{x}_proj.weight", f"self_attn/{x}_proj/kernel", LINEAR) for x in "qkvo"],
    *norm("post_attention_layernorm", "post_attention_layernorm", bias=False),
    *[
        r
        for x in ("gate", "up", "down")
        for r in linear(f"mlp.{x}_proj", f"mlp/{x}_proj", bias=False)
    ],
]


def decoder_rules(prefix: str, head: str, mllm: MLLMConfig) -> list[Rule]:
    """LLaMA; the [IMG] words, where the model has them, are the last rows of the vocabulary."""
    new = mllm.image_tokens > 0
    words = ("language_model/embed_tokens", "image_tokens/embedding")[: 1 + new]
    heads = ("language_model/lm_head/kernel", "image_tokens/lm_head/kernel")[: 1 + new]
    rules = [
        Rule((f"{prefix}embed_tokens.weight",), words),
        Rule((f"{head}lm_head.weight",), heads, LINEAR),
        *norm(f"{prefix}norm", "language_model/norm", bias=False),
        *stacked(f"{prefix}layers.{{}}.", "language_model/layers/", mllm.layers, LAYER),
    ]
    return prefixed("", "mllm/", rules)


def hf(part: Part, names: Names) -> Table:
    model = part.model
    rules = decoder_rules(names["language"], names["head"], model.mllm)
    rules += linear(f"{names['projector']}linear_1", "mllm/mm_projector/linear_1")
    if model.mllm.projector == "mlp":
        rules += linear(f"{names['projector']}linear_2", "mllm/mm_projector/linear_2")
    rules += vision_rules(names["vision"], model.vision.layers)
    carried = [*CARRIED, *OLD_BUFFERS, r".*vision.*\.post_layernorm\.(weight|bias)"]
    if model.mllm.projector == "linear":
        carried.append(r".*multi_modal_projector\.linear_2\.(weight|bias)")
    return Table(tuple(rules), tuple(carried))


def original(part: Part, names: Names) -> Table:
    model, projector = part.model, names["projector"]
    rules = decoder_rules(names["language"], "", model.mllm)
    if model.mllm.projector == "mlp":
        rules += linear(f"{projector}0", "mllm/mm_projector/linear_1")
        rules += linear(f"{projector}2", "mllm/mm_projector/linear_2")
    else:
        rules += linear(projector[:-1], "mllm/mm_projector/linear_1")
    if "vision" in names:
        rules += vision_rules(names["vision"], model.vision.layers)
    carried = (*CARRIED, *OLD_BUFFERS, r".*vision.*\.post_layernorm\.(weight|bias)")
    return Table(tuple(rules), carried)


def read_hf(source: Source, names: Names) -> dict[str, Any]:
    config, projector = source.config, names["projector"]
    expect(source, config, multimodal_projector_bias=True, vision_feature_select_strategy="default")
    vision = vision_sizes(source, config.get("vision_config", {}), names["vision"])
    vision["feature_layer"] = _layer(source, config.get("vision_feature_layer", -2))
    act = config.get("projector_hidden_act", "gelu")
    if act == "linear":
        _expect_identity(source, f"{projector}linear_2")
    else:
        expect(source, config, projector_hidden_act="gelu")
    text = config.get("text_config", {})
    mllm = _decoder(source, text, names["language"]) | {
        "projector": "linear" if act == "linear" else "mlp"
    }
    return {"vision": vision, "mllm": mllm}


def read_original(source: Source, names: Names) -> dict[str, Any]:
    config, projector = source.config, names["projector"]
    mlp = f"{projector}0.weight" in source.files
    first = need(source, f"{projector}0.weight" if mlp else f"{projector}weight")
    if mlp:
        kind = config.get("mm_projector_type", "mlp2x_gelu")
        expect(source, {"mm_projector_type": kind}, mm_projector_type="mlp2x_gelu")
    vision: dict[str, Any] = {"width": first[1]}
    if "vision" in names:
        vision = vision_sizes(source, {}, names["vision"])
    vision["feature_layer"] = _layer(source, config.get("mm_vision_select_layer", -2))
    mllm = _decoder(source, config, names["language"])
    return {"vision": vision, "mllm": mllm | {"projector": "mlp" if mlp else "linear"}}


def _layer(source: Source, layer: Any) -> int:
    if not isinstance(layer, int):
        expect(source, {"vision_feature_layer": layer}, vision_feature_layer="one number")
    return layer


def _decoder(source: Source, config: Any, prefix: str) -> dict[str, Any]:
    heads = config.get("num_attention_heads", 32)
    vocabulary, width = need(source, f"{prefix}embed_tokens.weight")
    expect(
        source,
        config,
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        head_dim=width // heads,
    )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))  # its old name is the second
    expect(source, {"rope_type": kind}, rope_type="default")
    return {
        "vocab_size": vocabulary,
        "width": width,
        "mlp_width": need(source, f"{prefix}layers.0.mlp.gate_proj.weight")[0],
        "layers": config.get("num_hidden_layers", numbered(source, f"{prefix}layers.{{}}.")),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "image_tokens": 0,
        "lora_rank": 0,
    }


def _expect_identity(source: Source, name: str) -> None:
    weight, bias = source.files.read(f"{name}.weight"), source.files.read(f"{name}.bias")
    diagonal = weight.shape[0] == weight.shape[1] and (weight.diagonal() == 1).all()
    if not (diagonal and (weight != 0).sum() == len(weight) and not bias.any()):
        expect(source, {name: "a general matrix"}, **{name: "the identity (a linear projector)"})


def write_hf(part: Part) -> dict[str, Any]:
    """config.json of transformers' LlavaForConditionalGeneration."""
    vision, mllm = part.model.vision, part.model.mllm
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 0,
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu" if mllm.projector == "mlp" else "linear",
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "vocab_size": mllm.vocab_size + mllm.image_tokens,
            "hidden_size": mllm.width,
            "intermediate_size": mllm.mlp_width,
            "num_hidden_layers": mllm.layers,
            "num_attention_heads": mllm.heads,
            "num_key_value_heads": mllm.kv_heads,
            "head_dim": mllm.width // mllm.heads,
            "hidden_act": "silu",
            "rms_norm_eps": mllm.norm_eps,
            "rope_theta": mllm.rope_theta,
            "rope_parameters": {"rope_theta": mllm.rope_theta, "rope_type": "default"},
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
        },
        "vision_config": write_tower(vision),
    }


def write_original(part: Part) -> dict[str, Any]:
    """config.json of haotian-liu/LLaVA's LlavaLlamaForCausalLM."""
    vision, mllm = part.model.vision, part.model.mllm
    projector = {"mm_projector_type": "mlp2x_gelu" if mllm.projector == "mlp" else "linear"}
    decoder = write_hf(part)["text_config"]
    return {
        **decoder,
        **projector,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "use_mm_proj": True,
        "mm_hidden_size": vision.width,
        "mm_vision_select_layer": vision.feature_layer,
        "mm_vision_select_feature": "patch",
    }


def hf_problems(part: Part) -> list[str]:
    """What transformers' LLaVA has that a part may lack."""
    whole = "layers" in part.values.get("vision", {})
    return [] if whole else ["the vision tower is not in this part; its CLIP is a part of its own"]


def fill_hf(part: Part, names: Names) -> dict[str, np.ndarray]:
    """The identity after a projector of one layer, and the vision tower's unused norm."""
    width, filled = part.model.mllm.width, fill_vision(names["vision"], part.model.vision.width)
    if part.model.mllm.projector == "linear":
        filled[f"{names['projector']}linear_2.weight"] = np.eye(width, dtype=np.float32)
        filled[f"{names['projector']}linear_2.bias"] = np.zeros(width, np.float32)
    return filled


class _Decoder(nnx.Module):
    """The parts of mllm/ that LLaVA has."""

    def __init__(self, part: Part, rngs: nnx.Rngs):
        vision, mllm = part.model.vision, part.model.mllm
        self.mm_projector = Projector(vision.width, mllm.width, mllm.projector, rngs)
        self.language_model = Llama(mllm, rngs)
        if mllm.image_tokens:
            self.image_tokens = ImageTokens(mllm, rngs)


def modules(part: Part) -> Modules:
    modules: dict[str, Any] = {"mllm": lambda rngs: _Decoder(part, rngs)}
    if "layers" in part.values["vision"]:  # not only the width that the projector reads
        modules["vision"] = lambda rngs: CLIPVision(part.model.vision, rngs)
    return modules


VISION = tuple(
    f"{model}vision_tower.{nested}" for nested in ("vision_model.", "") for model in ("", "model.")
)
LANGUAGE = ("language_model.model.", "model.language_model.", "model.language_model.model.")
FAMILY = Family(
    "llava",
    (
        Layout(
            "hf",
            {
                "language": Prefix(
                    "embed_tokens.weight",
                    LANGUAGE,
                ),
                "head": Prefix("lm_head.weight", ("language_model.", "", "model.language_model.")),
                "projector": Prefix(
                    "linear_1.weight", ("multi_modal_projector.", "model.multi_modal_projector.")
                ),
                "vision": Prefix("embeddings.class_embedding", VISION),
            },
            read_hf,
            hf,
            write_hf,
            problems=hf_problems,
            fill=fill_hf,
        ),
        Layout(
            "original",
            {
                "language": Prefix("embed_tokens.weight", ("model.",)),
                "projector": Prefix(("weight", "0.weight"), ("model.mm_projector.",)),
                "vision": Prefix(
                    "embeddings.class_embedding",
                    (
                        "model.vision_tower.vision_tower.vision_model.",
                        "model.vision_tower.vision_tower.",
                    ),
                    False,
                ),
            },
            read_original,
            original,
            write_original,
        ),
    ),
    modules,
)
