"""transformers' SamModel.state_dict() as our flat path -> array."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rb_jax.config import SAMConfig

# Name in the state dict (whole match) -> our path, permutation of the axes. The group ``layer``
# is the place in a stack; groups are numbered as usual.
Row = tuple[str, str, tuple[int, ...] | None]


def plain(old: str, new: str) -> list[Row]:
    return [(old, new, None)]


def norm(old: str, new: str) -> list[Row]:
    return [(rf"{old}\.weight", f"{new}/scale", None), (rf"{old}\.bias", f"{new}/bias", None)]


def linear(old: str, new: str, axes: tuple[int, ...] = (1, 0)) -> list[Row]:
    return [(rf"{old}\.weight", f"{new}/kernel", axes), (rf"{old}\.bias", f"{new}/bias", None)]


def conv(old: str, new: str) -> list[Row]:
    return linear(old, new, (2, 3, 1, 0))


def upscale(old: str, new: str) -> list[Row]:
    return linear(old, new, (0, 2, 3, 1))


def table(config: SAMConfig) -> list[Row]:
    rows = [
        *plain(r"shared_image_embedding\.positional_embedding",
               "shared_image_embedding/positional_embedding"),
        *conv(r"vision_encoder\.patch_embed\.projection", "image_encoder/patch_embed"),
        *plain(r"vision_encoder\.pos_embed", "image_encoder/pos_embed"),
        *conv(r"vision_encoder\.neck\.(conv\d)", r"image_encoder/neck/\1"),
        *norm(r"vision_encoder\.neck\.(layer_norm\d)", r"image_encoder/neck/\1"),
        *conv(r"prompt_encoder\.mask_embed\.(conv\d)", r"prompt_encoder/mask_embed/\1"),
        *norm(r"prompt_encoder\.mask_embed\.(layer_norm\d)", r"prompt_encoder/mask_embed/\1"),
        *plain(r"prompt_encoder\.point_embed\.(\d)\.weight", r"prompt_encoder/point_embed/\1"),
        *plain(r"prompt_encoder\.(\w+_embed)\.weight", r"prompt_encoder/\1"),
        *plain(r"mask_decoder\.(iou_token|mask_tokens)\.weight", r"mask_decoder/\1"),
        *upscale(r"mask_decoder\.(upscale_conv\d)", r"mask_decoder/\1"),
        *norm(r"mask_decoder\.(upscale_layer_norm)", r"mask_decoder/\1"),
    ]  # fmt: skip
    everywhere = set(config.global_layers)
    windowed = set(range(config.layers)) - everywhere
    for stack, numbers in [("global_layers", everywhere), ("window_layers", windowed)]:
        layer = "|".join(map(str, sorted(numbers))) or "none"
        old, new = rf"vision_encoder\.layers\.(?P<layer>{layer})", f"image_encoder/{stack}"
        rows += [
            *norm(rf"{old}\.(layer_norm\d)", rf"{new}/\2"),
            *linear(rf"{old}\.attn\.(qkv|proj)", rf"{new}/attn/\2"),
            *plain(rf"{old}\.attn\.(rel_pos_[hw])", rf"{new}/attn/\2"),
            *linear(rf"{old}\.mlp\.lin(\d)", rf"{new}/mlp/fc\2"),
        ]
    old, new = r"mask_decoder\.transformer", "mask_decoder/transformer"
    rows += [
        *linear(rf"{old}\.layers\.(\d+)\.(\w+)\.(\w+_proj)", rf"{new}/layers/\1/\2/\3"),
        *linear(rf"{old}\.layers\.(\d+)\.mlp\.lin(\d)", rf"{new}/layers/\1/mlp/fc\2"),
        *norm(rf"{old}\.layers\.(\d+)\.(layer_norm\d)", rf"{new}/layers/\1/\2"),
        *linear(rf"{old}\.(final_attn_token_to_image)\.(\w+_proj)", rf"{new}/\1/\2"),
        *norm(rf"{old}\.(layer_norm_final_attn)", rf"{new}/\1"),
    ]
    old = r"mask_decoder\.output_hypernetworks_mlps\.(?P<layer>\d+)"
    new = "mask_decoder/output_hypernetworks_mlps"
    rows += [
        *linear(rf"{old}\.(proj_in|proj_out)", rf"{new}/\2"),
        *linear(rf"{old}\.layers\.(\d+)", rf"{new}/layers/\2"),
    ]
    old, new = r"mask_decoder\.iou_prediction_head", "mask_decoder/iou_prediction_head"
    rows += [
        *linear(rf"{old}\.(proj_in|proj_out)", rf"{new}/\1"),
        *linear(rf"{old}\.layers\.(\d+)", rf"{new}/layers/\1"),
    ]
    return rows


def convert(state: Mapping[str, Any], config: SAMConfig) -> dict[str, np.ndarray]:
    """Every array under our path, stacks in the order of their layers."""
    rows, found = table(config), {}
    for name, tensor in state.items():
        if name == "prompt_encoder.shared_embedding.positional_embedding":
            continue  # the same parameter again
        matches = [(m, new, axes) for old, new, axes in rows if (m := re.fullmatch(old, name))]
        assert len(matches) == 1, (name, matches)
        [(match, new, axes)] = matches
        array = tensor.detach().numpy()
        layer = match.groupdict().get("layer")
        place = found.setdefault(match.expand(new), {})
        place[-1 if layer is None else int(layer)] = (
            array if axes is None else array.transpose(axes)
        )
    return {
        path: layers[-1] if -1 in layers else np.stack([layers[i] for i in sorted(layers)])
        for path, layers in found.items()
    }
