"""The authors' own modules: FRCE, QFormer, CME and ``cme_proj`` (hithqd/ReasonBrain: models/).

``official`` is their state dict; ``torch`` adds what only rb_jax has (projections between widths,
the cues' way into the language model, the region stem) and is read by rb_jax.port.torch.
"""

from __future__ import annotations

from typing import Any

from flax import nnx

from rb_jax.config import CMEConfig, FRCEConfig, ModelConfig, QFormerConfig
from rb_jax.models.cme import CME
from rb_jax.models.encoders.regions import RegionEncoder
from rb_jax.models.frce import FRCE
from rb_jax.models.qformer import QFormer
from rb_jax.models.reasonbrain import ConditionProjections
from rb_jax.port.family import Family, Layout, Modules, Names, Part, Prefix, Source, need, numbered
from rb_jax.port.table import (
    ONE_AXIS_MORE,
    TWO_AXES_MORE,
    Rule,
    Table,
    conv,
    linear,
    norm,
    prefixed,
    rule,
    stacked,
)

HEADS = {"frce": FRCEConfig, "qformer": QFormerConfig, "cme": CMEConfig}


def attention(source: str, target: str) -> list[Rule]:
    """torch.nn.MultiheadAttention."""
    in_proj = linear("in_proj", "in_proj")  # torch writes in_proj_weight, without the dot
    in_proj = [Rule((r.source[0].replace(".", "_"),), r.target, r.transform) for r in in_proj]
    return prefixed(source, target, in_proj + linear("out_proj", "out_proj"))


def mlp(source: str, target: str) -> list[Rule]:
    """torch.nn.Sequential(Linear, GELU, Dropout, Linear, Dropout)."""
    return linear(f"{source}.0", f"{target}/fc1") + linear(f"{source}.3", f"{target}/fc2")


def frce(config: FRCEConfig) -> list[Rule]:
    block = [
        *norm("norm1", "norm1"),
        *attention("attn.", "attn/"),
        *norm("norm2", "norm2"),
        *mlp("mlp", "mlp"),
    ]
    branches = [("patch_extractor", "local_type_emb", "patch_branch", config.patch_layers)]
    branches = branches * config.patch_branch
    if config.region_branch:
        names = ("region_extractor", "global_type_emb", "region_branch", config.region_layers)
        branches = [*branches, names]
    rules = linear("text_proj_in", "text_proj_in")
    for theirs, type_embedding, ours, layers in branches:
        rules += linear(f"{theirs}.proj_in", f"visual/{ours}/proj_in")
        rules += stacked(f"{theirs}.blocks.{{}}.", f"visual/{ours}/blocks/", layers, block)
        rules += norm(f"{theirs}.norm", f"visual/{ours}/norm")
        rules.append(rule(type_embedding, f"visual/{ours}/type_embedding", TWO_AXES_MORE))
    if config.id_controller:
        block = [
            *norm("norm_q", "norm_q"),
            *norm("norm_kv", "norm_kv"),
            *attention("attn.", "attn/"),
            *norm("norm_ff", "norm_ff"),
            *mlp("ff", "ff"),
        ]
        layers = config.id_controller_layers
        rules += stacked("id_controller.layers.{}.", "id_controller/layers/", layers, block)
        rules += norm("id_controller.out_norm", "id_controller/out_norm")
    return rules


def qformer(config: QFormerConfig) -> list[Rule]:
    block = [
        *norm("norm_self", "norm_self"),
        *attention("self_attn.", "self_attn/"),
        *norm("norm_cross_q", "norm_cross_q"),
        *norm("norm_cross_kv", "norm_cross_kv"),
        *attention("cross_attn.", "cross_attn/"),
        *norm("norm_ffn", "norm_ffn"),
        *mlp("ffn", "ffn"),
    ]
    return [
        rule("queries", "queries", ONE_AXIS_MORE),
        *linear("input_proj", "input_proj"),
        *stacked("blocks.{}.", "blocks/", config.layers, block),
        *norm("out_norm", "out_norm"),
    ]


def cme(config: CMEConfig) -> list[Rule]:
    def cross_attention(name: str) -> list[Rule]:
        inner = [*norm("norm_q", "norm_q"), *norm("norm_kv", "norm_kv")]
        return prefixed(f"{name}.", f"{name}/", inner + attention("attn.", "attn/"))

    block = [r for n in ("attn_q_vhat", "attn_e_r", "attn_fuse") for r in cross_attention(n)]
    block += [*norm("norm_fuse", "norm_fuse"), *norm("ffn.norm", "ffn/norm")]
    block += mlp("ffn.ff", "ffn/ff")
    enhancer = [
        rule("queries", "queries", ONE_AXIS_MORE),
        *stacked("blocks.{}.", "blocks/", config.blocks, block),
        *cross_attention("final_attn"),
        *norm("final_norm", "final_norm"),
    ]
    pairs = (("visual_enhancer", "visual_enhancer"), ("text_enhancer", "textual_enhancer"))
    return [r for a, b in pairs for r in prefixed(f"{a}.", f"{b}/", enhancer)]


def authors(model: ModelConfig, names: Names) -> list[Rule]:
    rules = []
    for part, part_rules in (("frce", frce), ("qformer", qformer), ("cme", cme)):
        if part in names:
            rules += prefixed(names[part], f"{part}/", part_rules(getattr(model, part)))
    if "cme_proj" in names:
        rules += linear("cme_proj", "projections/cme_proj", bias=False)
    return rules


def official(part: Part, names: Names) -> Table:
    """``cond_proj``, which the authors make and only use without the CME, is carried along."""
    return Table(tuple(authors(part.model, names)), (r"cond_proj\.weight",))


def torch(part: Part, names: Names) -> Table:
    model = part.model
    rules = authors(model, names)
    if not model.cme.enabled:
        rules += linear("cond_proj", "projections/cond_proj", bias=False)
    widths = [model.qformer.width, model.vision.width, model.text.width, model.frce.width]
    projections = ["v_hat", "image", "text", "visual_cues", "textual_cues"]
    for name, width in zip(projections, [*widths, model.frce.width], strict=True):
        if model.cme.enabled and width != model.cme.width:
            rules += linear(f"projections.{name}", f"projections/{name}")
    if model.frce.enabled:
        rules += linear("visual_cue_proj", "mllm/visual_cue_proj")
        rules += linear("textual_cue_proj", "mllm/textual_cue_proj")
    if model.regions.encoder == "stem":
        rules += conv("regions.patch_conv", "regions/patch_conv")
        rules += conv("regions.neck_conv", "regions/neck_conv")
    return Table(tuple(rules))


def read(source: Source, names: Names) -> dict[str, Any]:
    """Sizes from the shapes; the numbers of heads are not in them and are the authors'."""
    values: dict[str, Any] = {"vision": {}, "regions": {}, "text": {}, "mllm": {}, "mmdit": {}}
    if "frce" in names:
        at = names["frce"]
        width, text = need(source, f"{at}text_proj_in.weight")
        values["text"]["width"] = text
        values["vision"]["width"] = need(source, f"{at}patch_extractor.proj_in.weight")[1]
        values["regions"]["width"] = need(source, f"{at}region_extractor.proj_in.weight")[1]
        values["frce"] = {
            "width": width,
            "heads": 8,
            "patch_layers": numbered(source, f"{at}patch_extractor.blocks.{{}}."),
            "region_layers": numbered(source, f"{at}region_extractor.blocks.{{}}."),
            "id_controller_layers": numbered(source, f"{at}id_controller.layers.{{}}."),
        }
    if "qformer" in names:
        at = names["qformer"]
        _, queries, width = need(source, f"{at}queries")
        values["mllm"]["width"] = need(source, f"{at}input_proj.weight")[1]
        layers = numbered(source, f"{at}blocks.{{}}.")
        values["qformer"] = {"width": width, "queries": queries, "layers": layers, "heads": 12}
    if "cme" in names:
        at = f"{names['cme']}visual_enhancer."
        _, queries, width = need(source, f"{at}queries")
        blocks = numbered(source, f"{at}blocks.{{}}.")
        values["cme"] = {"width": width, "queries": queries, "blocks": blocks, "heads": 16}
    if "cme_proj" in names:
        values["mmdit"]["context_width"] = need(source, "cme_proj.weight")[0]
        values.setdefault("cme", {"width": need(source, "cme_proj.weight")[1]})
    return {key: value for key, value in values.items() if value}


class _Projections(nnx.Module):
    """The projection that the authors have too."""

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        width, out = model.cme.width, model.mmdit.context_width
        self.cme_proj = nnx.Linear(width, out, use_bias=False, rngs=rngs)


class _CueProjections(nnx.Module):
    """The cues' projections of rb_jax.models.mllm.llava.MLLM."""

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs):
        self.visual_cue_proj = nnx.Linear(model.frce.width, model.mllm.width, rngs=rngs)
        self.textual_cue_proj = nnx.Linear(model.frce.width, model.mllm.width, rngs=rngs)


def modules(part: Part) -> Modules:
    """The modules that the part has values for; all of the ``torch`` layout for a whole model."""
    model, modules = part.model, {}
    whole = "autoencoder" in part.values  # the part is a whole model, not an official file
    if "frce" in part.values and model.frce.enabled:
        modules["frce"] = lambda rngs: FRCE(model, rngs)
    if "qformer" in part.values:
        modules["qformer"] = lambda rngs: QFormer(model.mllm.width, model.qformer, rngs)
    if "blocks" in part.values.get("cme", {}) and model.cme.enabled:
        modules["cme"] = lambda rngs: CME(model.cme, rngs)
    if whole:
        modules["projections"] = lambda rngs: ConditionProjections(model, rngs)
        if model.frce.enabled:
            modules["mllm"] = lambda rngs: _CueProjections(model, rngs)
        if model.regions.encoder == "stem":
            modules["regions"] = lambda rngs: RegionEncoder(model.regions, rngs)
    elif "context_width" in part.values.get("mmdit", {}) and model.cme.enabled:
        modules["projections"] = lambda rngs: _Projections(model, rngs)
    return modules


PREFIXES = {
    "frce": Prefix("text_proj_in.weight", ("frce.", "module.frce."), False),
    "qformer": Prefix("input_proj.weight", ("qformer.", "module.qformer."), False),
    "cme": Prefix("visual_enhancer.queries", ("cme.", "module.cme."), False),
    "cme_proj": Prefix("cme_proj.weight", ("",), False),
}
FAMILY = Family(
    "reasonbrain",
    (
        Layout("official", PREFIXES, read, official, None, "reasonbrain"),
        Layout("torch", PREFIXES, read, torch, None, "model"),
    ),
    modules,
)
