"""The folder that ``ReasonBrainTorch.from_pretrained`` reads.

    config.json                     rb_jax's configuration
    transformer/ vae/               stock diffusers models
    text_encoder/ mllm/             stock transformers models, and sam/ where the model has SAM
    mllm_adapter/                   PEFT's LoRA over mllm/, unless lora_rank is 0
    reasonbrain/model.safetensors   ReasonBrain's own modules
    text_tokenizer.json prompt_tokenizer.json

The stock libraries fill a tensor that they do not find with random numbers; here that is an error.
"""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rb_jax.config import Config, from_stored
from rb_jax.errors import InputError, listed, reason

PARTS = (
    "config.json",
    "transformer",
    "vae",
    "text_encoder",
    "mllm",
    "reasonbrain/model.safetensors",
    "text_tokenizer.json",
    "prompt_tokenizer.json",
)
ADAPTER = "mllm_adapter"
# CLIP's norm of the pooled picture, which nothing here looks at.
UNUSED = re.compile(r".*post_layernorm\.(weight|bias)")


def read_config(folder: Path) -> Config:
    """The configuration of an exported model, with the folder's own tokenizers.

    Raises InputError when the folder lacks a part or holds no editing model.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    _need(folder, PARTS)
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{folder / 'config.json'}: not a configuration of rb_jax")
    config = from_stored(values)
    if config.train.task != "edit":
        raise InputError(f"{folder}: holds an autoencoder, not an editing model")
    if config.model.mllm.lora_rank:
        _need(folder, (f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/adapter_model.safetensors"))
    data = dataclasses.replace(
        config.data,
        text_tokenizer=str(folder / "text_tokenizer.json"),
        prompt_tokenizer=str(folder / "prompt_tokenizer.json"),
    )
    return dataclasses.replace(config, data=data)


def _need(folder: Path, parts: Iterable[str]) -> None:
    missing = [part for part in parts if not (folder / part).exists()]
    if missing:
        raise InputError(f"{folder}: no {', '.join(missing)}; not a complete export of rb_jax")


def load_stock(model: Any, folder: Path, **options: Any) -> Any:
    """``model.from_pretrained``; InputError unless every tensor is there and fits."""
    try:
        loaded, info = model.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, use_safetensors=True, **options
        )
    except Exception as error:  # what a stock library raises for a broken folder has no end
        raise InputError(f"{folder}: {reason(error)}") from error
    problems = [f"missing {key}" for key in info["missing_keys"] if not UNUSED.fullmatch(key)]
    problems += [f"unexpected {key}" for key in info["unexpected_keys"]]
    problems += [_misshapen(*mismatch) for mismatch in info["mismatched_keys"]]
    _raise(folder, sorted(problems))
    return loaded


def load_adapter(llava: Any, folder: Path) -> PeftModel:
    """The language model with its LoRA; InputError unless every tensor is there and fits."""
    try:
        with warnings.catch_warnings():  # of tensors that are missing, which are errors below
            warnings.simplefilter("ignore")
            loaded = PeftModel.from_pretrained(llava, folder, autocast_adapter_dtype=False)
    except Exception as error:
        raise InputError(f"{folder}: {reason(error)}") from error
    stored = load_file(folder / "adapter_model.safetensors").keys()
    wanted = get_peft_model_state_dict(loaded).keys()
    problems = [f"missing {name}" for name in wanted - stored]
    _raise(folder, sorted(problems + [f"unexpected {name}" for name in stored - wanted]))
    return loaded


def load_own(module: nn.Module, path: Path) -> None:
    """Fills a module; InputError listing every missing, unexpected and misshapen tensor."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    wanted = module.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    problems += [
        _misshapen(name, tensors[name].shape, value.shape)
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    _raise(path, problems)
    module.load_state_dict(tensors, assign=True)


def _misshapen(name: str, shape: Iterable[int], expected: Iterable[int]) -> str:
    return f"{name} has shape {tuple(shape)}, expected {tuple(expected)}"


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        raise InputError(f"{path}: {listed(problems, '; ')}")
