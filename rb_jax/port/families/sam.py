"""Segment Anything, in transformers' layout (models/sam/modeling_sam.py)."""

from __future__ import annotations

from typing import Any

from rb_jax.config import SAMConfig
from rb_jax.models.encoders.sam import SAM
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
from rb_jax.port.table import (
    CONV,
    TRANSPOSED_CONV,
    Rule,
    Table,
    conv,
    linear,
    norm,
    prefixed,
    rule,
    stacked,
)

BLOCK = [
    *norm("layer_norm1", "layer_norm1"),
    *linear("attn.qkv", "attn/qkv"),
    *linear("attn.proj", "attn/proj"),
    rule("attn.rel_pos_h", "attn/rel_pos_h"),
    rule("attn.rel_pos_w", "attn/rel_pos_w"),
    *norm("layer_norm2", "layer_norm2"),
    *linear("mlp.lin1", "mlp/fc1"),
    *linear("mlp.lin2", "mlp/fc2"),
]


def table(part: Part, names: Names) -> Table:
    sam = part.model.sam
    rules = [
        rule(
            "shared_image_embedding.positional_embedding",
            "shared_image_embedding/positional_embedding",
        ),
        *prefixed("vision_encoder.", "image_encoder/", image_encoder(sam)),
        *prefixed("prompt_encoder.", "prompt_encoder/", prompt_encoder()),
        *prefixed("mask_decoder.", "mask_decoder/", mask_decoder(sam)),
    ]
    # The prompt encoder's copy of the shared positions.
    carried = (r"(sam\.)?prompt_encoder\.shared_embedding\.positional_embedding",)
    return Table(tuple(prefixed(names["prefix"], "sam/", rules)), carried)


def image_encoder(sam: SAMConfig) -> list[Rule]:
    windowed = [i for i in range(sam.layers) if i not in sam.global_layers]
    rules = [
        rule("pos_embed", "pos_embed"),
        rule("patch_embed.projection.weight", "patch_embed/kernel", CONV),
        rule("patch_embed.projection.bias", "patch_embed/bias"),
    ]
    for name, numbers in (("window", windowed), ("global", sorted(sam.global_layers))):
        if numbers:
            rules += stacked("layers.{}.", f"{name}_layers/", numbers, BLOCK)
    for number in "12":
        rules += conv(f"neck.conv{number}", f"neck/conv{number}", bias=False)
        rules += norm(f"neck.layer_norm{number}", f"neck/layer_norm{number}")
    return rules


def prompt_encoder() -> list[Rule]:
    names = [f"point_embed.{i}" for i in range(4)] + ["not_a_point_embed", "no_mask_embed"]
    rules = [rule(f"{name}.weight", name.replace(".", "/")) for name in names]
    for number in "123":
        rules += conv(f"mask_embed.conv{number}", f"mask_embed/conv{number}")
    for number in "12":
        rules += norm(f"mask_embed.layer_norm{number}", f"mask_embed/layer_norm{number}")
    return rules


def mask_decoder(sam: SAMConfig) -> list[Rule]:
    rules = [rule(f"{name}.weight", name) for name in ("iou_token", "mask_tokens")]
    for number in "12":
        name = f"upscale_conv{number}"
        rules.append(rule(f"{name}.weight", f"{name}/kernel", TRANSPOSED_CONV))
        rules.append(rule(f"{name}.bias", f"{name}/bias"))
    rules += norm("upscale_layer_norm", "upscale_layer_norm")
    for layer in range(sam.decoder_layers):
        at = f"transformer.layers.{layer}."
        block = [
            r
            for n in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
            for r in attention(n)
        ]
        block += linear("mlp.lin1", "mlp/fc1") + linear("mlp.lin2", "mlp/fc2")
        block += [r for i in "1234" for r in norm(f"layer_norm{i}", f"layer_norm{i}")]
        rules += prefixed(at, at.replace(".", "/"), block)
    final = attention("final_attn_token_to_image")
    final += norm("layer_norm_final_attn", "layer_norm_final_attn")
    rules += prefixed("transformer.", "transformer/", final)
    masks = sam.multimask_outputs + 1
    rules += stacked(
        "output_hypernetworks_mlps.{}.", "output_hypernetworks_mlps/", masks, feed_forward(3)
    )
    head = feed_forward(sam.iou_head_layers)
    return rules + prefixed("iou_prediction_head.", "iou_prediction_head/", head)


def attention(name: str) -> list[Rule]:
    return [
        r for x in ("q", "k", "v", "out") for r in linear(f"{name}.{x}_proj", f"{name}/{x}_proj")
    ]


def feed_forward(layers: int) -> list[Rule]:
    """The first, ``layers`` - 2 hidden ones, the last."""
    rules = [*linear("proj_in", "proj_in"), *linear("proj_out", "proj_out")]
    return rules + [r for i in range(layers - 2) for r in linear(f"layers.{i}", f"layers/{i}")]


def read(source: Source, names: Names) -> dict[str, Any]:
    at = names["prefix"]
    vision = source.config.get("vision_config", {})
    decoder = source.config.get("mask_decoder_config", {})
    prompts = source.config.get("prompt_encoder_config", {})
    expect(
        source,
        vision,
        hidden_act="gelu",
        use_rel_pos=True,
        use_abs_pos=True,
        qkv_bias=True,
        num_channels=3,
        layer_norm_eps=1e-6,
    )
    expect(source, prompts, num_point_embeddings=4, hidden_act="gelu", layer_norm_eps=1e-6)
    # transformers reads the downsampling in its last attention only, and has 2 elsewhere.
    expect(source, decoder, hidden_act="relu", layer_norm_eps=1e-6, attention_downsample_rate=2)
    width, _, patch, _ = need(source, f"{at}vision_encoder.patch_embed.projection.weight")
    grid = need(source, f"{at}vision_encoder.pos_embed")[1]
    return {
        "sam": {
            "image_size": grid * patch,
            "patch_size": patch,
            "width": width,
            "layers": numbered(source, f"{at}vision_encoder.layers.{{}}."),
            "heads": vision.get("num_attention_heads", 12),
            "mlp_width": need(source, f"{at}vision_encoder.layers.0.mlp.lin1.weight")[0],
            "window_size": vision.get("window_size", 14),
            "global_layers": tuple(vision.get("global_attn_indexes", (2, 5, 8, 11))),
            "out_channels": need(source, f"{at}vision_encoder.neck.conv1.weight")[0],
            "decoder_layers": decoder.get("num_hidden_layers", 2),
            "decoder_heads": decoder.get("num_attention_heads", 8),
            "decoder_mlp_width": decoder.get("mlp_dim", 2048),
            "attention_downsample": 2,
            "multimask_outputs": decoder.get("num_multimask_outputs", 3),
            "iou_head_layers": decoder.get("iou_head_depth", 3),
            "iou_head_width": decoder.get("iou_head_hidden_dim", 256),
            "mask_channels": need(source, f"{at}prompt_encoder.mask_embed.conv2.weight")[0],
        }
    }


def write(part: Part) -> dict[str, Any]:
    """config.json of transformers' SamModel."""
    sam = part.model.sam
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "model_type": "sam_vision_model",
            "hidden_size": sam.width,
            "output_channels": sam.out_channels,
            "num_hidden_layers": sam.layers,
            "num_attention_heads": sam.heads,
            "num_channels": 3,
            "image_size": sam.image_size,
            "patch_size": sam.patch_size,
            "mlp_dim": sam.mlp_width,
            "mlp_ratio": sam.mlp_width / sam.width,
            "window_size": sam.window_size,
            "global_attn_indexes": list(sam.global_layers),
            "num_pos_feats": sam.out_channels // 2,
        },
        "prompt_encoder_config": {
            "hidden_size": sam.out_channels,
            "image_size": sam.image_size,
            "patch_size": sam.patch_size,
            "mask_input_channels": sam.mask_channels,
            "num_point_embeddings": 4,
        },
        "mask_decoder_config": {
            "hidden_size": sam.out_channels,
            "mlp_dim": sam.decoder_mlp_width,
            "num_hidden_layers": sam.decoder_layers,
            "num_attention_heads": sam.decoder_heads,
            "attention_downsample_rate": sam.attention_downsample,
            "num_multimask_outputs": sam.multimask_outputs,
            "iou_head_depth": sam.iou_head_layers,
            "iou_head_hidden_dim": sam.iou_head_width,
        },
    }


def modules(part: Part) -> Modules:
    return {"sam": lambda rngs: SAM(part.model.sam, rngs)}


FAMILY = Family(
    "sam",
    (
        Layout(
            "hf",
            {"prefix": Prefix("vision_encoder.patch_embed.projection.weight", ("", "sam."))},
            read,
            table,
            write,
        ),
    ),
    modules,
)
