"""The authors' modules: their state dict in the torch modules of rb_jax.port.torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from torch import nn

from rb_jax.errors import InputError
from rb_jax.models.types import Features, Text
from rb_jax.port.family import Part
from rb_jax.port.parity.pair import (
    ROWS,
    Inputs,
    Ours,
    Pair,
    Theirs,
    lengths_mask,
    normal,
    tensor,
    tensors,
)
from rb_jax.port.torch import records
from rb_jax.port.torch.modules import CME, FRCE, QFormer
from rb_jax.weights.safetensors.reader import TensorFiles

PATCHES, REGIONS, OBJECTS, TOKENS = 6, 5, 4, 7


def load(path: Path, part: Part) -> nn.ModuleDict:
    """The modules of the state dict, filled strictly; raises InputError naming what differs."""
    files = TensorFiles.open(path)
    state = {
        name.removeprefix("module."): tensor(files.read(name).astype(np.float32)) for name in files
    }
    made = modules(part, {name.split(".")[0] for name in state})
    try:
        made.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    return made


def modules(part: Part, names: set[str]) -> nn.ModuleDict:
    """Those that the file has, freshly made; ``cond_proj`` is the authors' for lack of a CME."""
    model = part.model
    out = model.mmdit.context_width
    makers = {
        "frce": lambda: FRCE(model),
        "qformer": lambda: QFormer(model.mllm.width, model.qformer),
        "cme": lambda: CME(model.cme),
        "cme_proj": lambda: nn.Linear(model.cme.width, out, bias=False),
        "cond_proj": lambda: nn.Linear(model.qformer.width, out, bias=False),
    }
    return nn.ModuleDict({name: make() for name, make in makers.items() if name in names})


def inputs(part: Part, stock: Any, rng: np.random.Generator) -> Inputs:
    model = part.model
    width = model.cme.width
    return {
        "patches": normal(rng, ROWS, PATCHES, model.vision.width),
        "regions": normal(rng, ROWS, REGIONS, model.regions.width),
        "region_mask": lengths_mask(rng, 0, REGIONS),
        "objects": normal(rng, ROWS, OBJECTS, model.text.width),
        "object_mask": lengths_mask(rng, 1, OBJECTS),
        "v": normal(rng, ROWS, TOKENS, model.mllm.width),
        "v_hat": normal(rng, ROWS, TOKENS, width),
        "encoded": normal(rng, ROWS, PATCHES, width),
        "encoded_mask": lengths_mask(rng, 1, PATCHES),
        "cues": normal(rng, ROWS, REGIONS, width),
        "cue_mask": lengths_mask(rng, 0, REGIONS),
        "enhanced": normal(rng, ROWS, TOKENS, width),
    }


def features(x: Inputs) -> Features:
    """What FRCE reads, and nothing in the other fields."""
    rows, vision, text = len(x["patches"]), x["patches"].shape[-1], x["objects"].shape[-1]
    empty = [np.zeros((rows, 0, width), np.float32) for width in (vision, text)]
    no_words = Text(np.zeros((rows, 0), np.int32), np.zeros((rows, 0), bool))
    return Features(
        image=empty[0],
        patches=x["patches"],
        regions=x["regions"],
        region_mask=x["region_mask"],
        text=empty[1],
        text_mask=no_words.mask,
        pooled=np.zeros((rows, text), np.float32),
        objects=x["objects"],
        object_mask=x["object_mask"],
        prompt=no_words,
        source_latent=np.zeros((rows, 0, 0, 0), np.float32),
    )


def ours(parts: Mapping[str, Any], part: Part, x: Inputs) -> Ours:
    stages = {}
    enhancer = (x["v_hat"], x["encoded"], x["encoded_mask"], x["cues"], x["cue_mask"])
    if "frce" in parts:
        cues = parts["frce"](features(x))
        stages |= {"visual cues": cues.visual, "textual cues": cues.textual}
    if "qformer" in parts:
        stages["V_hat"] = parts["qformer"](x["v"])
    if "cme" in parts:
        stages["R_bar_V"] = parts["cme"].visual_enhancer(*enhancer)
        stages["R_bar_T"] = parts["cme"].textual_enhancer(*enhancer)
    if "projections" in parts:
        stages["cme_proj"] = parts["projections"].cme_proj(jnp.asarray(x["enhanced"]))
    return stages


def theirs(stock: Any, part: Part, x: Inputs) -> Theirs:
    stages, t = {}, {name: tensor(value) for name, value in x.items()}
    enhancer = (t["v_hat"], t["encoded"], t["encoded_mask"], t["cues"], t["cue_mask"])
    if "frce" in stock:
        cues = stock["frce"](tensors(features(x), records.Features))
        stages |= {"visual cues": cues.visual, "textual cues": cues.textual}
    if "qformer" in stock:
        stages["V_hat"] = stock["qformer"](t["v"])
    if "cme" in stock:
        stages["R_bar_V"] = stock["cme"].visual_enhancer(*enhancer)
        stages["R_bar_T"] = stock["cme"].text_enhancer(*enhancer)
    if "cme_proj" in stock:
        stages["cme_proj"] = stock["cme_proj"](t["enhanced"])
    return stages


OFFICIAL = Pair("official", load, inputs, ours, theirs)
