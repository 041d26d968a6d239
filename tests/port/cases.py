"""Small checkpoints of every family and layout, made of random bits and written without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from rb_jax.port.families import FAMILIES
from rb_jax.port.family import Family, Layout, Names, Part, shapes
from rb_jax.port.table import Porter

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16, "mixed": BFLOAT16}
# NaN with a payload, a signalling one, infinities, -0.0, the smallest number.
SPECIAL = {
    FLOAT32: (0x7FC00123, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 1),
    BFLOAT16: (0x7FC3, 0x7F81, 0x7F80, 0xFF80, 0x8000, 1),
    FLOAT16: (0x7E03, 0x7C01, 0x7C00, 0xFC00, 0x8000, 1),
}
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """``values`` is what an import must find; ``carried`` are tensors that we only keep."""

    family: str
    layout: str
    values: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def part(self) -> Part:
        return Part(self.values)

    @property
    def porter(self) -> Porter:
        found = FAMILIES[self.family]
        return cached_porter(found, found.layout(self.layout), self.part, self.names)


_traced: dict[tuple[str, str], Mapping[str, tuple[int, ...]]] = {}


def cached_porter(family: Family, layout: Layout, part: Part, names: Names) -> Porter:
    """rb_jax.port.family.porter, tracing the modules, which takes long, once a size."""
    key = (family.name, repr(sorted((k, sorted(v.items())) for k, v in part.values.items())))
    if key not in _traced:
        _traced[key] = shapes(family.modules(part))
    return Porter(layout.table(part, names), _traced[key])


def random_bits(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Any bits at all, with the special values first."""
    count = int(np.prod(shape))
    if dtype.kind == "i":
        return np.arange(count, dtype=dtype).reshape(shape)
    raw = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(f"u{dtype.itemsize}")
    raw[: len(SPECIAL[dtype])] = SPECIAL[dtype][:count]
    return raw.view(dtype).reshape(shape)


def tensors(case: Case, kind: str = "float32", seed: int = 0) -> Tensors:
    """Tensors by the source's names; of ``mixed`` the norms are float32 and the rest bfloat16."""
    rng, made, porter = np.random.default_rng(seed), {}, case.porter
    for name, slot in porter.sources.items():
        norm = kind == "mixed" and "norm" in slot.rule.target[0]
        made[name] = random_bits(rng, FLOAT32 if norm else DTYPES[kind], porter.source_shape(name))
    for name, shape in case.carried.items():
        dtype = np.dtype(np.int64) if name.endswith("position_ids") else DTYPES[kind]
        made[name] = random_bits(rng, dtype, shape)
        if name.endswith("linear_2.weight"):  # of a linear projector: the identity
            made[name] = np.eye(shape[0]).astype(dtype)
        elif name.endswith("linear_2.bias"):
            made[name] = np.zeros(shape, dtype)
    return made


def write(
    folder: Path, made: Tensors, config: Mapping[str, Any] | None = None, stem: str = "model"
) -> Path:
    """A safetensors file and the config.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(made, folder / f"{stem}.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(dict(config)))
    return folder


def source(folder: Path, name: str, kind: str = "float32", seed: int = 0) -> Path:
    case = CASES[name]
    return write(folder, tensors(case, kind, seed), case.config)


def content(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> (dtype, shape, bytes) of all files in a folder, read by the safetensors library."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, info in safetensors.deserialize(path.read_bytes()):
            found[name] = (info["dtype"], tuple(info["shape"]), bytes(info["data"]))
    return found


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# The cases ----------------------------------------------------------------------------------------


def _flux(layout: str, *, guidance: bool = True, in_width: int = 12, prefix: str = "") -> Case:
    latents, tokens = 3, 12
    values = {
        "mmdit": {
            "width": 24,
            "heads": 2,
            "mlp_ratio": 4.0,
            "double_blocks": 2,
            "single_blocks": 3,
            "context_width": 20,
            "axes_dim": (4, 4, 4),
            "guidance_embed": guidance,
            "patch_size": 2,
            "prediction": "velocity",
            "source": "channel" if in_width == 2 * tokens else "sequence",
            "in_width": in_width if in_width > 2 * tokens else 0,
        },
        "autoencoder": {"latent_channels": latents},
        "text": {"width": 10},
    }
    return _case("flux", layout, values, {"prefix": prefix}, {"_diffusers_version": "0.30.0"})


def _vae(layout: str, prefix: str = "") -> Case:
    sizes = {
        "channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "latent_channels": 3,
        "norm_groups": 32,
        "scale_factor": 0.3611,
        "shift_factor": 0.1159,
    }
    return _case("flux_vae", layout, {"autoencoder": sizes}, {"prefix": prefix})


VISION = {
    "image_size": 16,
    "patch_size": 8,
    "width": 24,
    "layers": 2,
    "heads": 3,
    "mlp_width": 40,
    "activation": "quick_gelu",
    "norm_eps": 1e-5,
}
TEXT = {
    "vocab_size": 33,
    "max_length": 9,
    "width": 20,
    "layers": 3,
    "heads": 2,
    "mlp_width": 28,
    "activation": "gelu",
    "norm_eps": 1e-6,
}


def _post_norm(prefix: str) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}post_layernorm.{x}": (VISION["width"],) for x in ("weight", "bias")}


def _clip(**names: str) -> Case:
    values = {k: v for k, v in {"vision": VISION, "text": TEXT}.items() if k in names}
    carried = {}
    if "vision" in names:
        carried |= _post_norm(names["vision"])
        carried[f"{names['vision']}embeddings.position_ids"] = (1, 5)
    if "text" in names:
        carried[f"{names['text']}embeddings.position_ids"] = (1, 9)
    if len(names) == 2:
        carried |= {"visual_projection.weight": (8, 24), "text_projection.weight": (8, 20)}
        carried["logit_scale"] = ()
    return _case("clip", "hf", values, names, carried=carried)


def _llava(layout: str, projector: str, names: Mapping[str, str]) -> Case:
    mllm = {
        "vocab_size": 30,
        "width": 16,
        "mlp_width": 22,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "rope_theta": 5000.0,
        "norm_eps": 1e-5,
        "image_tokens": 0,
        "lora_rank": 0,
        "projector": projector,
    }
    vision: dict[str, Any] = {"width": VISION["width"], "feature_layer": -2}
    carried = {}
    if "vision" in names:
        # The original layout does not tell these; CLIP's heads are 64 wide.
        vision |= VISION if layout == "hf" else VISION | {"heads": 1}
        carried = _post_norm(names["vision"])
    if layout == "hf" and projector == "linear":
        carried |= {f"{names['projector']}linear_2.weight": (16, 16)}
        carried |= {f"{names['projector']}linear_2.bias": (16,)}
    for layer in range(2):
        carried[f"{names['language']}layers.{layer}.self_attn.rotary_emb.inv_freq"] = (2,)
    return _case("llava", layout, {"vision": vision, "mllm": mllm}, names, carried=carried)


def _reasonbrain(prefix: str, parts: tuple[str, ...] = ("frce", "qformer", "cme")) -> Case:
    values = {"text": {"width": 20}, "vision": {"width": 24}, "regions": {"width": 6}}
    values["frce"] = {
        "width": 16,
        "heads": 8,
        "patch_layers": 2,
        "region_layers": 1,
        "id_controller_layers": 2,
    }
    values |= {"mllm": {"width": 18}, "mmdit": {"context_width": 26}}
    values["qformer"] = {"width": 24, "queries": 5, "layers": 2, "heads": 12}
    values["cme"] = {"width": 32, "queries": 7, "blocks": 2, "heads": 16}
    names = {part: f"{prefix}{part}." for part in parts} | {"cme_proj": ""}
    if parts == ("qformer",):
        values, names = {k: values[k] for k in ("mllm", "qformer")}, {"qformer": "qformer."}
    carried = {"cond_proj.weight": (26, 24)} if "cme_proj" in names else {}
    return _case("reasonbrain", "official", values, names, carried=carried)


def _sam(prefix: str = "") -> Case:
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "width": 12,
        "layers": 3,
        "heads": 2,
        "mlp_width": 20,
        "window_size": 3,
        "global_layers": (1,),
        "out_channels": 8,
        "decoder_layers": 2,
        "decoder_heads": 2,
        "decoder_mlp_width": 10,
        "attention_downsample": 2,
        "multimask_outputs": 3,
        "iou_head_layers": 3,
        "iou_head_width": 14,
        "mask_channels": 4,
    }
    carried = {f"{prefix}prompt_encoder.shared_embedding.positional_embedding": (2, 4)}
    return _case("sam", "hf", {"sam": sizes}, {"prefix": prefix}, carried=carried)


def left(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def _case(family, layout, values, names, more: Mapping[str, Any] = {}, carried={}) -> Case:  # noqa: B006
    write_config = FAMILIES[family].layout(layout).write
    config = {**write_config(Part(values)), **more} if write_config else {}
    return Case(family, layout, values, names, config, carried)


def _spelling(language: str, head: str, projector: str, vision: str) -> dict[str, str]:
    return {"language": language, "head": head, "projector": projector, "vision": vision}


# How transformers has spelt LLaVA over time.
HF_LLAVA = {
    "first": _spelling(
        "language_model.model.",
        "language_model.",
        "multi_modal_projector.",
        "vision_tower.vision_model.",
    ),
    "flat": _spelling(
        "model.language_model.",
        "",
        "model.multi_modal_projector.",
        "model.vision_tower.vision_model.",
    ),
    "flatter": _spelling(
        "model.language_model.", "", "model.multi_modal_projector.", "model.vision_tower."
    ),
    "nested": _spelling(
        "model.language_model.model.",
        "model.language_model.",
        "model.multi_modal_projector.",
        "model.vision_tower.vision_model.",
    ),
    "bare": _spelling(
        "language_model.model.", "language_model.", "multi_modal_projector.", "vision_tower."
    ),
}
ORIGINAL_LLAVA = {"language": "model.", "projector": "model.mm_projector."}
ORIGINAL_VISION = "model.vision_tower.vision_tower.vision_model."

CASES = {
    **{f"flux {layout}": _flux(layout) for layout in ("diffusers", "bfl")},
    **{f"flux {layout} schnell": _flux(layout, guidance=False) for layout in ("diffusers", "bfl")},
    **{f"flux {layout} 2x": _flux(layout, in_width=24) for layout in ("diffusers", "bfl")},
    **{f"flux {layout} 6x": _flux(layout, in_width=72) for layout in ("diffusers", "bfl")},
    "flux bfl prefixed": _flux("bfl", prefix="model.diffusion_model."),
    "flux diffusers prefixed": _flux("diffusers", prefix="transformer."),
    "vae diffusers": _vae("diffusers"),
    "vae bfl": _vae("bfl"),
    "vae bfl prefixed": _vae("bfl", "vae."),
    "clip": _clip(vision="vision_model.", text="text_model."),
    "clip vision": _clip(vision="vision_model."),
    "clip text": _clip(text="text_model."),
    "clip text bare": _clip(text=""),
    **{f"llava hf {name}": _llava("hf", "mlp", names) for name, names in HF_LLAVA.items()},
    "llava hf linear": _llava("hf", "linear", HF_LLAVA["first"]),
    "llava original": _llava("original", "mlp", ORIGINAL_LLAVA | {"vision": ORIGINAL_VISION}),
    "llava original linear": _llava("original", "linear", ORIGINAL_LLAVA),
    "reasonbrain": _reasonbrain(""),
    "reasonbrain module": _reasonbrain("module."),
    "reasonbrain qformer": _reasonbrain("", ("qformer",)),
    **({"sam": _sam(), "sam prefixed": _sam("sam.")} if "sam" in FAMILIES else {}),
}
