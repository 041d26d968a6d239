"""FLUX's autoencoder: diffusers' AutoencoderKL folder and BFL's ``ae.safetensors``.

Ours has diffusers' structure; BFL numbers the decoder's levels from the finest, and makes the
attention's projections convolutions of one pixel (modules/autoencoder.py).
"""

from __future__ import annotations

from typing import Any

from rb_jax.models.encoders.vae import Autoencoder
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
from rb_jax.port.table import POINTWISE, Rule, Table, conv, linear, norm, prefixed, rule

FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159  # BFL's file does not hold them
FLUX_GROUPS = 32


def pointwise(source: str, target: str) -> list[Rule]:
    return [
        rule(f"{source}.weight", f"{target}/kernel", POINTWISE),
        rule(f"{source}.bias", f"{target}/bias"),
    ]


def resnet(source: str, target: str, shortcut: str | None) -> list[Rule]:
    """``shortcut`` is its name where the width changes."""
    rules = [
        *norm("norm1", "norm1"),
        *conv("conv1", "conv1"),
        *norm("norm2", "norm2"),
        *conv("conv2", "conv2"),
    ]
    if shortcut:
        rules += pointwise(shortcut, "conv_shortcut")
    return prefixed(source, target, rules)


def levels(part: Part, decoder: bool) -> list[list[tuple[int, int]]]:
    """Widths (in, out) of every resnet of every level, in the order of execution."""
    vae = part.model.autoencoder
    widths = [vae.channels * m for m in vae.channel_mult]
    widths = widths[::-1] if decoder else widths
    previous, result = widths[0] if decoder else vae.channels, []
    for width in widths:
        count = vae.num_res_blocks + decoder
        result.append([(previous, width), *[(width, width)] * (count - 1)])
        previous = width
    return result


def diffusers(part: Part, names: Names) -> Table:
    rules = []
    for side, way in (("encoder", "down"), ("decoder", "up")):
        level_name, sampler = f"{way}_blocks", f"{way}sampler"
        half = [*conv("conv_in", "conv_in"), *norm("conv_norm_out", "conv_norm_out")]
        half += conv("conv_out", "conv_out")
        half += _mid("mid_block.resnets.{}.", "mid_block.attentions.0.", "group_norm", False)
        all_levels = levels(part, side == "decoder")
        for i, resnets in enumerate(all_levels):
            for j, (a, b) in enumerate(resnets):
                shortcut = "conv_shortcut" if a != b else None
                at = f"{level_name}.{i}.resnets.{j}."
                half += resnet(at, f"{level_name}/{i}/resnets/{j}/", shortcut)
            if i + 1 < len(all_levels):
                half += conv(f"{level_name}.{i}.{sampler}s.0.conv", f"{level_name}/{i}/{sampler}")
        rules += prefixed(f"{side}.", f"autoencoder/{side}/", half)
    return Table(tuple(prefixed(names["prefix"], "", rules)))


def bfl(part: Part, names: Names) -> Table:
    rules = []
    for side, theirs in (("encoder", "down"), ("decoder", "up")):
        level_name, sampler = f"{theirs}_blocks", f"{theirs}sampler"
        half = [*conv("conv_in", "conv_in"), *norm("norm_out", "conv_norm_out")]
        half += conv("conv_out", "conv_out")
        half += _mid("mid.block_{}.", "mid.attn_1.", "norm", True)
        all_levels = levels(part, side == "decoder")
        last = len(all_levels) - 1
        for i, resnets in enumerate(all_levels):
            number = last - i if side == "decoder" else i
            for j, (a, b) in enumerate(resnets):
                shortcut = "nin_shortcut" if a != b else None
                at = f"{theirs}.{number}.block.{j}."
                half += resnet(at, f"{level_name}/{i}/resnets/{j}/", shortcut)
            if i < last:
                resample = f"{theirs}.{number}.{theirs}sample.conv"
                half += conv(resample, f"{level_name}/{i}/{sampler}")
        rules += prefixed(f"{side}.", f"autoencoder/{side}/", half)
    return Table(tuple(prefixed(names["prefix"], "", rules)))


def _mid(resnets: str, attention: str, norm_name: str, is_bfl: bool) -> list[Rule]:
    first = 1 if is_bfl else 0
    rules = resnet(resnets.format(first), "mid_block/resnet_1/", None)
    rules += resnet(resnets.format(first + 1), "mid_block/resnet_2/", None)
    rules += norm(f"{attention}{norm_name}", "mid_block/attention/group_norm")
    names = ("q", "k", "v", "proj_out") if is_bfl else ("to_q", "to_k", "to_v", "to_out.0")
    layer = pointwise if is_bfl else linear
    for theirs, ours in zip(names, ("to_q", "to_k", "to_v", "to_out"), strict=True):
        rules += layer(f"{attention}{theirs}", f"mid_block/attention/{ours}")
    return rules


def read_diffusers(source: Source, names: Names) -> dict[str, Any]:
    config = source.config
    expect(
        source,
        config,
        act_fn="silu",
        in_channels=3,
        out_channels=3,
        mid_block_add_attention=True,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    widths = list(config.get("block_out_channels", (128, 256, 512, 512)))
    return _model(
        source,
        widths,
        config.get("layers_per_block", 2),
        config.get("latent_channels", 16),
        config.get("norm_num_groups", FLUX_GROUPS),
        config.get("scaling_factor", FLUX_SCALE),
        config.get("shift_factor") or 0.0,
    )


def read_bfl(source: Source, names: Names) -> dict[str, Any]:
    at = names["prefix"]
    count = numbered(source, f"{at}encoder.down.{{}}.")
    widths = [need(source, f"{at}encoder.down.{i}.block.0.conv1.weight")[0] for i in range(count)]
    return _model(
        source,
        widths,
        numbered(source, f"{at}encoder.down.0.block.{{}}."),
        need(source, f"{at}encoder.conv_out.weight")[0] // 2,
        FLUX_GROUPS,
        FLUX_SCALE,
        FLUX_SHIFT,
        need(source, f"{at}encoder.conv_in.weight")[0],
    )


def _model(
    source: Source,
    widths: list[int],
    res_blocks: int,
    latents: int,
    groups: int,
    scale: float,
    shift: float,
    channels: int | None = None,
) -> dict[str, Any]:
    channels = channels or widths[0]
    expect(source, {"widths": [w % channels for w in widths]}, widths=[0] * len(widths))
    return {
        "autoencoder": {
            "channels": channels,
            "channel_mult": tuple(w // channels for w in widths),
            "num_res_blocks": res_blocks,
            "latent_channels": latents,
            "norm_groups": groups,
            "scale_factor": scale,
            "shift_factor": shift,
        }
    }


def write_diffusers(part: Part) -> dict[str, Any]:
    """config.json of diffusers' AutoencoderKL."""
    vae = part.model.autoencoder
    widths = [vae.channels * m for m in vae.channel_mult]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.num_res_blocks,
        "norm_num_groups": vae.norm_groups,
        "mid_block_add_attention": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": vae.scale_factor,
        "shift_factor": vae.shift_factor,
        "force_upcast": True,
    }


def modules(part: Part) -> Modules:
    return {"autoencoder": lambda rngs: Autoencoder(part.model.autoencoder, rngs)}


def bfl_problems(part: Part) -> list[str]:
    """What BFL's file cannot say."""
    vae = part.model.autoencoder
    fixed = {"norm_groups": FLUX_GROUPS, "scale_factor": FLUX_SCALE, "shift_factor": FLUX_SHIFT}
    return [
        f"config.model.autoencoder.{key} must be {value} in BFL's layout, not {getattr(vae, key)}"
        for key, value in fixed.items()
        if getattr(vae, key) != value
    ]


FAMILY = Family(
    "flux_vae",
    (
        Layout(
            "diffusers",
            {"prefix": Prefix("encoder.down_blocks.0.resnets.0.conv1.weight")},
            read_diffusers,
            diffusers,
            write_diffusers,
            "diffusion_pytorch_model",
        ),
        Layout(
            "bfl",
            {"prefix": Prefix("encoder.down.0.block.0.conv1.weight", ("", "vae."))},
            read_bfl,
            bfl,
            None,
            "ae",
            bfl_problems,
        ),
    ),
    modules,
)
