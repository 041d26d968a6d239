"""FLUX.1's transformer: BFL's single file and diffusers' folder.

BFL's names are ours (black-forest-labs/flux: modules/layers.py); diffusers splits the fused
projections (models/transformers/transformer_flux.py).
"""

from __future__ import annotations

from typing import Any

from rb_jax.models.mmdit import MMDiT
from rb_jax.port.family import (
    Family,
    Layout,
    Modules,
    Names,
    Part,
    Prefix,
    Source,
    need,
    numbered,
)
from rb_jax.port.table import (
    SWAPPED,
    SWAPPED_LINEAR,
    Rule,
    Table,
    linear,
    norm,
    prefixed,
    rule,
    stacked,
)

PATCH = 2  # FLUX packs 2 x 2 latents into a token


def bfl(part: Part, names: Names) -> Table:
    mmdit = part.model.mmdit
    stream = [
        *linear("_mod.lin", "mod/lin"),
        *linear("_attn.qkv", "attn/qkv"),
        rule("_attn.norm.query_norm.scale", "attn/norm/query_norm/scale"),
        rule("_attn.norm.key_norm.scale", "attn/norm/key_norm/scale"),
        *linear("_attn.proj", "attn/proj"),
        *linear("_mlp.0", "mlp/fc1"),
        *linear("_mlp.2", "mlp/fc2"),
    ]
    double = prefixed("img", "img/", stream) + prefixed("txt", "txt/", stream)
    single = [
        *linear("modulation.lin", "modulation/lin"),
        *linear("linear1", "linear1"),
        rule("norm.query_norm.scale", "norm/query_norm/scale"),
        rule("norm.key_norm.scale", "norm/key_norm/scale"),
        *linear("linear2", "linear2"),
    ]
    embedders = ["time_in", "vector_in"] + ["guidance_in"] * mmdit.guidance_embed
    rules = [
        *linear("img_in", "img_in"),
        *linear("txt_in", "txt_in"),
        *[r for name in embedders for r in linear(f"{name}.in_layer", f"{name}/in_layer")],
        *[r for name in embedders for r in linear(f"{name}.out_layer", f"{name}/out_layer")],
        *stacked("double_blocks.{}.", "double_blocks/", mmdit.double_blocks, double),
        *stacked("single_blocks.{}.", "single_blocks/", mmdit.single_blocks, single),
        *linear("final_layer.adaLN_modulation.1", "final_layer/adaLN_modulation"),
        *linear("final_layer.linear", "final_layer/linear"),
    ]
    return Table(tuple(prefixed(names["prefix"], "mmdit/", rules)))


def diffusers(part: Part, names: Names) -> Table:
    mmdit = part.model.mmdit
    width, hidden = mmdit.width, mmdit.mlp_width
    qkv, qkv_mlp = (width,) * 3, (width, width, width, hidden)
    double = [
        *linear("norm1.linear", "img/mod/lin"),
        *linear("norm1_context.linear", "txt/mod/lin"),
        *linear([f"attn.to_{x}" for x in "qkv"], "img/attn/qkv", sizes=qkv),
        *linear([f"attn.add_{x}_proj" for x in "qkv"], "txt/attn/qkv", sizes=qkv),
        *norm("attn.norm_q", "img/attn/norm/query_norm", bias=False),
        *norm("attn.norm_k", "img/attn/norm/key_norm", bias=False),
        *norm("attn.norm_added_q", "txt/attn/norm/query_norm", bias=False),
        *norm("attn.norm_added_k", "txt/attn/norm/key_norm", bias=False),
        *linear("attn.to_out.0", "img/attn/proj"),
        *linear("attn.to_add_out", "txt/attn/proj"),
        *linear("ff.net.0.proj", "img/mlp/fc1"),
        *linear("ff.net.2", "img/mlp/fc2"),
        *linear("ff_context.net.0.proj", "txt/mlp/fc1"),
        *linear("ff_context.net.2", "txt/mlp/fc2"),
    ]
    single = [
        *linear("norm.linear", "modulation/lin"),
        *linear([*(f"attn.to_{x}" for x in "qkv"), "proj_mlp"], "linear1", sizes=qkv_mlp),
        *norm("attn.norm_q", "norm/query_norm", bias=False),
        *norm("attn.norm_k", "norm/key_norm", bias=False),
        *linear("proj_out", "linear2"),
    ]
    embedders = [("timestep_embedder", "time_in"), ("text_embedder", "vector_in")]
    embedders += [("guidance_embedder", "guidance_in")] * mmdit.guidance_embed
    rules: list[Rule] = [
        *linear("x_embedder", "img_in"),
        *linear("context_embedder", "txt_in"),
        *stacked("transformer_blocks.{}.", "double_blocks/", mmdit.double_blocks, double),
        *stacked("single_transformer_blocks.{}.", "single_blocks/", mmdit.single_blocks, single),
        rule("norm_out.linear.weight", "final_layer/adaLN_modulation/kernel", SWAPPED_LINEAR),
        rule("norm_out.linear.bias", "final_layer/adaLN_modulation/bias", SWAPPED),
        *linear("proj_out", "final_layer/linear"),
    ]
    for theirs, ours in embedders:
        rules += linear(f"time_text_embed.{theirs}.linear_1", f"{ours}/in_layer")
        rules += linear(f"time_text_embed.{theirs}.linear_2", f"{ours}/out_layer")
    return Table(tuple(prefixed(names["prefix"], "mmdit/", rules)))


def read_bfl(source: Source, names: Names) -> dict[str, Any]:
    """Sizes from the shapes: BFL's file has no configuration."""
    at = names["prefix"]
    in_width, width = need(source, f"{at}img_in.weight")[1], need(source, f"{at}img_in.weight")[0]
    head = need(source, f"{at}double_blocks.0.img_attn.norm.query_norm.scale")[0]
    return _model(
        width=width,
        heads=width // head,
        mlp_width=need(source, f"{at}double_blocks.0.img_mlp.0.weight")[0],
        double_blocks=numbered(source, f"{at}double_blocks.{{}}."),
        single_blocks=numbered(source, f"{at}single_blocks.{{}}."),
        context_width=need(source, f"{at}txt_in.weight")[1],
        vector_width=need(source, f"{at}vector_in.in_layer.weight")[1],
        guidance_embed=f"{at}guidance_in.in_layer.weight" in source.files,
        in_width=in_width,
        out_width=need(source, f"{at}final_layer.linear.weight")[0],
        axes_dim=_axes(head),
    )


def read_diffusers(source: Source, names: Names) -> dict[str, Any]:
    at, config = names["prefix"], source.config
    in_width = need(source, f"{at}x_embedder.weight")[1]
    heads, head = config.get("num_attention_heads", 24), config.get("attention_head_dim", 128)
    return _model(
        width=heads * head,
        heads=heads,
        mlp_width=need(source, f"{at}transformer_blocks.0.ff.net.0.proj.weight")[0],
        double_blocks=config.get("num_layers", 19),
        single_blocks=config.get("num_single_layers", 38),
        context_width=config.get("joint_attention_dim", 4096),
        vector_width=config.get("pooled_projection_dim", 768),
        guidance_embed=bool(config.get("guidance_embeds", False)),
        in_width=in_width,
        out_width=need(source, f"{at}proj_out.weight")[0],
        axes_dim=tuple(config.get("axes_dims_rope", (16, 56, 56))),
    )


def _axes(head: int) -> tuple[int, int, int]:
    """FLUX's 16, 56, 56 of 128, in proportion; the rest of the head goes to the first axis."""
    each = head * 7 // 32 * 2
    return head - 2 * each, each, each


def _model(
    *, in_width: int, out_width: int, vector_width: int, mlp_width: int, width: int, **mmdit: Any
) -> dict[str, Any]:
    patch = PATCH if out_width % PATCH**2 == 0 else 1
    source = "channel" if in_width == 2 * out_width else "sequence"
    extra = 0 if in_width in (out_width, 2 * out_width) else in_width
    mmdit |= {"width": width, "mlp_ratio": mlp_width / width, "patch_size": patch}
    mmdit |= {"source": source, "in_width": extra, "prediction": "velocity"}
    latents = {"latent_channels": out_width // patch**2}
    return {"mmdit": mmdit, "autoencoder": latents, "text": {"width": vector_width}}


def write_diffusers(part: Part) -> dict[str, Any]:
    """config.json of diffusers' FluxTransformer2DModel."""
    mmdit, latent = part.model.mmdit, part.model.autoencoder.latent_channels
    tokens = latent * mmdit.patch_size**2
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": mmdit.token_width(latent),
        "out_channels": tokens,
        "num_layers": mmdit.double_blocks,
        "num_single_layers": mmdit.single_blocks,
        "attention_head_dim": mmdit.width // mmdit.heads,
        "num_attention_heads": mmdit.heads,
        "joint_attention_dim": mmdit.context_width,
        "pooled_projection_dim": part.model.text.width,
        "guidance_embeds": mmdit.guidance_embed,
        "axes_dims_rope": list(mmdit.axes_dim),
    }


def modules(part: Part) -> Modules:
    model = part.model
    latents, vector = model.autoencoder.latent_channels, model.text.width
    return {"mmdit": lambda rngs: MMDiT(model.mmdit, latents, vector, rngs)}


def stock_problems(part: Part) -> list[str]:
    """What diffusers' FluxTransformer2DModel fixes."""
    mmdit = part.model.mmdit
    if mmdit.mlp_width != 4 * mmdit.width:
        return [f"config.model.mmdit.mlp_ratio must be 4 in diffusers, not {mmdit.mlp_ratio:g}"]
    return []


PREFIXES = ("", "model.diffusion_model.", "transformer.")
FAMILY = Family(
    "flux",
    (
        Layout(
            "diffusers",
            {"prefix": Prefix("x_embedder.weight", PREFIXES)},
            read_diffusers,
            diffusers,
            write_diffusers,
            "diffusion_pytorch_model",
            stock_problems,
        ),
        Layout(
            "bfl",
            {"prefix": Prefix("double_blocks.0.img_attn.qkv.weight", PREFIXES)},
            read_bfl,
            bfl,
            None,
            "flux1",
        ),
    ),
    modules,
)
