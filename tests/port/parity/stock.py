"""Tiny stock models, with unequal odd sizes and random values everywhere."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,  # pyright: ignore[reportPrivateImportUsage]
    FluxTransformer2DModel,  # pyright: ignore[reportPrivateImportUsage]
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SamConfig,
    SamModel,
)

from rb_jax.port.family import Part
from rb_jax.port.parity.official import modules

Module = TypeVar("Module", bound=torch.nn.Module)

TOWER: dict[str, Any] = dict(
    image_size=24,
    patch_size=8,
    hidden_size=28,
    num_hidden_layers=3,
    num_attention_heads=7,
    intermediate_size=44,
)
TEXT: dict[str, Any] = dict(
    vocab_size=61,
    max_position_embeddings=13,
    hidden_size=20,
    num_hidden_layers=2,
    num_attention_heads=5,
    intermediate_size=36,
    bos_token_id=3,
    eos_token_id=60,
    pad_token_id=1,
)
DECODER: dict[str, Any] = dict(
    vocab_size=67,
    hidden_size=48,
    intermediate_size=76,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=6,
    rms_norm_eps=1e-5,
)


OFFICIAL: dict[str, dict[str, Any]] = {
    "vision": dict(width=28),
    "regions": dict(width=14),
    "text": dict(width=20),
    "mllm": dict(width=48),
    "frce": dict(width=30, heads=5, patch_layers=2, region_layers=1, id_controller_layers=3),
    "qformer": dict(width=36, heads=3, layers=2, queries=6),
    "cme": dict(width=44, heads=4, blocks=2, queries=9),
    "mmdit": dict(context_width=26),
}

# The numbers of heads are not in the authors' file.
HEADS = [f"{name}.heads={OFFICIAL[name]['heads']}" for name in ("frce", "qformer", "cme")]


@torch.no_grad()
def randomize(model: Module, seed: int = 0) -> Module:
    """Random values of a trained model's size, also where a new model has zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise / value[0].numel() ** 0.5)
        else:
            value.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
    return model.eval()


def flux(**changes: Any) -> FluxTransformer2DModel:
    """Of FLUX.1-dev's kind; ``in_channels`` is 12, or 24 with a source in every token."""
    sizes: dict[str, Any] = dict(
        patch_size=1,
        in_channels=12,
        out_channels=12,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=20,
        num_attention_heads=3,
        joint_attention_dim=26,
        pooled_projection_dim=22,
        guidance_embeds=True,
        axes_dims_rope=(4, 8, 8),
    )
    return randomize(FluxTransformer2DModel(**(sizes | changes)))


def autoencoder(**changes: Any) -> AutoencoderKL:
    sizes: dict[str, Any] = dict(
        block_out_channels=(6, 12, 18),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=3,
        scaling_factor=0.7,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return randomize(AutoencoderKL(**(sizes | changes)))


def clip(activation: str = "quick_gelu", **text: Any) -> CLIPModel:
    config = CLIPConfig(
        text_config=TEXT | {"hidden_act": activation} | text,
        vision_config=TOWER | {"hidden_act": activation},
        projection_dim=18,
    )
    return randomize(CLIPModel(config))


def llava(
    projector: str = "gelu", feature_layer: int = -2, **decoder: Any
) -> LlavaForConditionalGeneration:
    """Of v1.5's kind; ``projector="linear"`` is v1.1: one layer, then the identity."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**(DECODER | decoder)),
        projector_hidden_act=projector,
        vision_feature_layer=feature_layer,
        image_token_index=66,
        image_seq_length=9,
    )
    model = randomize(LlavaForConditionalGeneration(config))
    if projector == "linear":
        second = model.model.multi_modal_projector.linear_2
        torch.nn.init.eye_(second.weight)
        torch.nn.init.zeros_(second.bias)
    return model


def sam() -> SamModel:
    config = SamConfig(
        vision_config=dict(
            hidden_size=36,
            output_channels=20,
            mlp_dim=52,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=48,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[1],
            num_pos_feats=10,
        ),
        prompt_encoder_config=dict(
            hidden_size=20, image_size=48, patch_size=8, mask_input_channels=12
        ),
        mask_decoder_config=dict(
            hidden_size=20,
            mlp_dim=28,
            num_hidden_layers=2,
            num_attention_heads=5,
            iou_head_hidden_dim=24,
        ),
    )
    return randomize(SamModel(config))


def official(**groups: Any) -> torch.nn.ModuleDict:
    """The authors' modules; ``groups`` change sizes: ``frce=dict(width=40)``."""
    values = {name: inner | groups.get(name, {}) for name, inner in OFFICIAL.items()}
    names = {"frce", "qformer", "cme", "cme_proj", "cond_proj"}
    return randomize(modules(Part(values), names))
