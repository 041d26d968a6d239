"""An exported folder made the plain way: our parameters renamed one by one into stock modules."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,  # pyright: ignore[reportPrivateImportUsage]
    FluxTransformer2DModel,  # pyright: ignore[reportPrivateImportUsage]
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from rb_jax.config import Config
from rb_jax.data.text import Tokenizer

State = dict[str, torch.Tensor]
LORA_TARGETS = r".*language_model.*\.self_attn\.[qkvo]_proj"

# Patterns over our names, and what they become; the first name that a tensor gets is tried further.
FLUX = [
    (r"double_blocks\.", "transformer_blocks."),
    (r"single_blocks\.", "single_transformer_blocks."),
    (r"\.img\.mod\.lin", ".norm1.linear"),
    (r"\.txt\.mod\.lin", ".norm1_context.linear"),
    (r"\.img\.attn\.norm\.(\w).*_norm", r".attn.norm_\1"),
    (r"\.txt\.attn\.norm\.(\w).*_norm", r".attn.norm_added_\1"),
    (r"\.img\.attn\.proj", ".attn.to_out.0"),
    (r"\.txt\.attn\.proj", ".attn.to_add_out"),
    (r"\.img\.mlp\.fc1", ".ff.net.0.proj"),
    (r"\.img\.mlp\.fc2", ".ff.net.2"),
    (r"\.txt\.mlp\.fc1", ".ff_context.net.0.proj"),
    (r"\.txt\.mlp\.fc2", ".ff_context.net.2"),
    (r"\.modulation\.lin", ".norm.linear"),
    (r"(single.*)\.norm\.([qk]).*_norm", r"\1.attn.norm_\2"),
    (r"\.linear2", ".proj_out"),
    (r"^final_layer\.linear", "proj_out"),
    (r"^img_in", "x_embedder"),
    (r"^txt_in", "context_embedder"),
    (r"^time_in", "time_text_embed.timestep_embedder"),
    (r"^vector_in", "time_text_embed.text_embedder"),
    (r"^guidance_in", "time_text_embed.guidance_embedder"),
    (r"\.in_layer", ".linear_1"),
    (r"\.out_layer", ".linear_2"),
]
VAE = [
    (r"resnet_1", "resnets.0"),
    (r"resnet_2", "resnets.1"),
    (r"mid_block\.attention", "mid_block.attentions.0"),
    (r"to_out", "to_out.0"),
    (r"(downsampler|upsampler)", r"\1s.0.conv"),
]
CLIP = [
    (r"^layers", "encoder.layers"),
    (r"pre_layernorm", "pre_layrnorm"),
    (r"^class_embedding", "embeddings.class_embedding"),
    (r"^patch_embedding", "embeddings.patch_embedding"),
    (r"^(token|position)_embedding", r"embeddings.\1_embedding.weight"),
]
LLAVA = [
    (r"^mm_projector", "model.multi_modal_projector"),
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model", "model.language_model"),
    (r"embed_tokens", "embed_tokens.weight"),
]
OWN = [
    (r"^frce\.visual\.patch_branch\.type_embedding", "frce.local_type_emb"),
    (r"^frce\.visual\.region_branch\.type_embedding", "frce.global_type_emb"),
    (r"^frce\.visual\.(patch|region)_branch", r"frce.\1_extractor"),
    (r"textual_enhancer", "text_enhancer"),
    (r"in_proj\.", "in_proj_"),
    (r"\.fc1", ".0"),
    (r"\.fc2", ".3"),
    (r"^projections\.(cme_proj|cond_proj)", r"\1"),
    (r"^mllm\.", ""),
]


def unstacked(params: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Dotted names under ``prefix`` in torch's layout, one for each layer of a stack."""
    for path, value in params.items():
        if not path.startswith(prefix):
            continue
        name, array = path.removeprefix(prefix).replace("/", "."), np.asarray(value)
        stack = re.fullmatch(r"(.*?(?:blocks|layers))\.(?!\d)(.*)", name)
        rows = [(name, array)] if stack is None else [
            (f"{stack[1]}.{i}.{stack[2]}", row) for i, row in enumerate(array)
        ]  # fmt: skip
        for name, row in rows:
            if name.endswith("kernel"):
                row = row.T if row.ndim == 2 else row.transpose(3, 2, 0, 1)
            yield re.sub(r"(kernel|scale)$", "weight", name), row


def renamed(params: Mapping[str, Any], prefix: str, rules: list[tuple[str, str]]) -> State:
    state = {}
    for name, row in unstacked(params, prefix):
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        state[name] = torch.from_numpy(np.array(row, np.float32))
    return state


def flux(params: Mapping[str, Any], config: Config) -> FluxTransformer2DModel:
    model, state = config.model, {}
    width, latent = model.mmdit.width, model.autoencoder.latent_channels
    for name, value in renamed(params, "mmdit/", FLUX).items():
        kind = name.rpartition(".")[2]
        if match := re.fullmatch(r"(.*)\.(img|txt)\.attn\.qkv\.\w+", name):
            theirs = "to_{}" if match[2] == "img" else "add_{}_proj"
            for x, part in zip("qkv", value.chunk(3), strict=True):
                state[f"{match[1]}.attn.{theirs.format(x)}.{kind}"] = part
        elif match := re.fullmatch(r"(.*)\.linear1\.\w+", name):
            parts = value.split([width, width, width, len(value) - 3 * width])
            targets = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            state |= {f"{match[1]}.{t}.{kind}": p for t, p in zip(targets, parts, strict=True)}
        elif name.startswith("final_layer.adaLN_modulation"):
            shift, scale = value.chunk(2)  # diffusers has them the other way round
            state[f"norm_out.linear.{kind}"] = torch.cat([scale, shift])
        else:
            state[name] = value
    made = FluxTransformer2DModel(
        patch_size=1,
        in_channels=model.mmdit.token_width(latent),
        out_channels=latent * model.mmdit.patch_size**2,
        num_layers=model.mmdit.double_blocks,
        num_single_layers=model.mmdit.single_blocks,
        attention_head_dim=width // model.mmdit.heads,
        num_attention_heads=model.mmdit.heads,
        joint_attention_dim=model.mmdit.context_width,
        pooled_projection_dim=model.text.width,
        guidance_embeds=model.mmdit.guidance_embed,
        axes_dims_rope=model.mmdit.axes_dim,
    )
    made.load_state_dict(state)
    return made


def autoencoder(params: Mapping[str, Any], config: Config) -> AutoencoderKL:
    vae = config.model.autoencoder
    levels = len(vae.channel_mult)
    blocks: dict[str, Any] = {
        "block_out_channels": tuple(vae.channels * m for m in vae.channel_mult),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    made = AutoencoderKL(
        **blocks,
        layers_per_block=vae.num_res_blocks,
        latent_channels=vae.latent_channels,
        norm_num_groups=vae.norm_groups,
        scaling_factor=vae.scale_factor,
        shift_factor=vae.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    state = renamed(params, "autoencoder/", VAE)
    for name, value in state.items():
        if name.endswith("conv_shortcut.weight"):
            state[name] = value[:, :, None, None]
    made.load_state_dict(state)
    return made


def clip_sizes(config: Any) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
    }


def text_encoder(params: Mapping[str, Any], config: Config) -> CLIPTextModel:
    text = config.model.text
    made = CLIPTextModel(
        CLIPTextConfig(
            **clip_sizes(text), vocab_size=text.vocab_size,
            max_position_embeddings=text.max_length, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    made.load_state_dict(renamed(params, "text/", CLIP))
    return made


def llava(params: Mapping[str, Any], config: Config) -> LlavaForConditionalGeneration:
    vision, mllm = config.model.vision, config.model.mllm
    sizes = clip_sizes(vision)
    sizes |= {"image_size": vision.image_size, "patch_size": vision.patch_size}
    decoder = LlamaConfig(
        vocab_size=mllm.vocab_size + mllm.image_tokens,
        hidden_size=mllm.width,
        intermediate_size=mllm.mlp_width,
        num_hidden_layers=mllm.layers,
        num_attention_heads=mllm.heads,
        num_key_value_heads=mllm.kv_heads,
        rms_norm_eps=mllm.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": mllm.rope_theta},
    )
    made = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**sizes),
            text_config=decoder,
            projector_hidden_act="gelu" if mllm.projector == "mlp" else "linear",
            vision_feature_layer=vision.feature_layer,
        )
    )
    state = renamed(params, "mllm/", LLAVA)
    for ours, theirs in (
        ("embedding", "model.language_model.embed_tokens"),
        ("lm_head", "lm_head"),
    ):
        name = f"{theirs}.weight"
        new = next(k for k in state if k.startswith(f"image_tokens.{ours}"))
        state[name] = torch.cat([state[name], state.pop(new)])
    state = {k: v for k, v in state.items() if "lora_" not in k and "cue_proj" not in k}
    tower = renamed(params, "vision/", CLIP)
    state |= {f"model.vision_tower.{k}": v for k, v in tower.items()}
    if mllm.projector == "linear":
        projector = made.model.multi_modal_projector.linear_2
        torch.nn.init.eye_(projector.weight)
        torch.nn.init.zeros_(projector.bias)
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [m for m in missing if "post_layernorm" not in m and "linear_2" not in m]
    return made


def save_adapter(params: Mapping[str, Any], config: Config, base: Any, folder: Path) -> None:
    mllm = config.model.mllm
    lora = LoraConfig(
        r=mllm.lora_rank, lora_alpha=int(mllm.lora_alpha), target_modules=LORA_TARGETS
    )
    made, state = get_peft_model(base, lora), {}
    for name, value in renamed(params, "mllm/language_model/", []).items():
        if match := re.fullmatch(r"(.*)\.lora_([ab])", name):
            key = f"base_model.model.model.language_model.{match[1]}.lora_{match[2].upper()}"
            state[f"{key}.default.weight"] = value.T
    _, unexpected = made.load_state_dict(state, strict=False)
    assert state and not unexpected
    made.save_pretrained(str(folder))


def own_modules(params: Mapping[str, Any]) -> State:
    """The tensors of reasonbrain/model.safetensors."""
    state = {}
    for prefix in ("frce/", "qformer/", "cme/", "projections/", "regions/", "mllm/"):
        kept = {k: v for k, v in params.items() if prefix != "mllm/" or "cue_proj" in k}
        for name, value in renamed(kept, prefix, []).items():
            name = prefix.replace("/", ".") + name
            for pattern, replacement in OWN:
                name = re.sub(pattern, replacement, name)
            if name.endswith("queries"):
                value = value[None]
            elif name.endswith("type_emb"):
                value = value[None, None]
            state[name] = value.contiguous()
    return state


def export(folder: Path, params: Mapping[str, Any], config: Config) -> Path:
    """Writes the whole folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    for kind in ("text", "prompt"):
        path = getattr(config.data, f"{kind}_tokenizer")
        (folder / f"{kind}_tokenizer.json").write_text(Tokenizer.load(path).to_json())
    flux(params, config).save_pretrained(folder / "transformer")
    autoencoder(params, config).save_pretrained(folder / "vae")
    text_encoder(params, config).save_pretrained(folder / "text_encoder")
    base = llava(params, config)
    base.save_pretrained(folder / "mllm")
    if config.model.mllm.lora_rank:
        save_adapter(params, config, base, folder / "mllm_adapter")
    (folder / "reasonbrain").mkdir()
    save_file(own_modules(params), folder / "reasonbrain" / "model.safetensors")
    return folder
