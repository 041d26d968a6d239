"""LoRA of the language model as a PEFT adapter (huggingface/peft: LoraConfig, save_pretrained)."""

from __future__ import annotations

import json
from pathlib import Path

from rb_jax.config import MLLMConfig
from rb_jax.errors import InputError
from rb_jax.port.table import LINEAR, Porter, Table, Tensors, rule, stacked
from rb_jax.weights.safetensors.writer import TensorSpec, write_tensors

PREFIX = "base_model.model.model.language_model.layers.{}."
TARGETS = r".*language_model.*\.(q|k|v|o)_proj"  # not the vision tower's projections


def table(mllm: MLLMConfig) -> Table:
    """PEFT's names over transformers' LlavaForConditionalGeneration."""
    layer = [
        rule(
            f"self_attn.{x}_proj.lora_{ab.upper()}.weight",
            f"self_attn/{x}_proj/lora_{ab}",
            LINEAR,
        )
        for x in "qkvo"
        for ab in "ab"
    ]
    return Table(tuple(stacked(PREFIX, "mllm/language_model/layers/", mllm.layers, layer)))


def porter(mllm: MLLMConfig) -> Porter:
    head, rank, layers = mllm.width // mllm.heads, mllm.lora_rank, mllm.layers
    widths = {"q": mllm.width, "k": head * mllm.kv_heads, "v": head * mllm.kv_heads}
    shapes = {}
    for x in "qkvo":
        at = f"mllm/language_model/layers/self_attn/{x}_proj/lora_"
        shapes[f"{at}a"] = (layers, mllm.width, rank)
        shapes[f"{at}b"] = (layers, rank, widths.get(x, mllm.width))
    return Porter(table(mllm), shapes)


def write(mllm: MLLMConfig, params: Tensors, folder: Path) -> None:
    """``adapter_model.safetensors`` and ``adapter_config.json``, as stock PEFT loads them."""
    if not mllm.lora_rank:
        raise InputError("config.model.mllm.lora_rank is 0: there is no adapter to export")
    folder.mkdir(parents=True, exist_ok=True)
    ported = porter(mllm)
    ported.check_export(params, "adapter", whole=True)
    specs = [
        TensorSpec(name, params[slot.rule.target[0]].dtype, ported.source_shape(name))
        for name, slot in ported.sources.items()
    ]
    write_tensors(
        folder,
        "adapter_model",
        specs,
        lambda name: ported.to_torch(params, name),
        metadata={"format": "pt"},
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": mllm.lora_rank,
        "lora_alpha": mllm.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": TARGETS,
        "inference_mode": True,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
