"""Pixels and words into the stock encoders: rb_jax/models/encoders/ over published packages."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rb_jax.config import AutoencoderConfig, CLIPVisionConfig, RegionConfig
from rb_jax.port.torch.records import Text

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SAM_MEAN, SAM_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    return ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def preprocess(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [B S S 3] to CLIP's input [B 3 size size]: antialiased bicubic, then normalised.

    torch's antialiased bicubic kernel is jax.image.resize's (Keys, a = -0.5); without antialiasing
    it would be another one.
    """
    pixels = images.float().permute(0, 3, 1, 2) / 255.0
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (pixels.new_tensor(x)[:, None, None] for x in (MEAN, STD))
    return (pixels - mean) / std


def encode_image(
    tower: Any, images: torch.Tensor, config: CLIPVisionConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """E_I(I) [B E C] of a stock CLIPVisionModel, and the patches [B P C] of ``feature_layer``."""
    pixels = preprocess(images, config.image_size).to(next(tower.parameters()).dtype)
    out = tower(pixel_values=pixels, output_hidden_states=True)
    return out.last_hidden_state, out.hidden_states[config.feature_layer][:, 1:]


def encode_text(tower: Any, text: Text) -> tuple[torch.Tensor, torch.Tensor]:
    """States [N T C] of a stock CLIPTextModel and the one at each row's last token [N C].

    The stock pooled output would look for the end token's id, which differs between tokenizers.
    """
    states = tower(input_ids=text.ids, attention_mask=text.mask.long()).last_hidden_state
    end = (text.mask.sum(dim=1) - 1).clamp_min(0)
    return states, states[torch.arange(len(end), device=end.device), end]


def encode_objects(tower: Any, objects: Text, present: torch.Tensor) -> torch.Tensor:
    """Pooled vector of each object's name, [B O C]; absent objects give zeros."""
    flat = Text(objects.ids.flatten(0, 1), objects.mask.flatten(0, 1))
    pooled = encode_text(tower, flat)[1].unflatten(0, present.shape)
    return pooled.masked_fill(~present[..., None], 0.0)


def encode_latents(vae: Any, images: torch.Tensor, config: AutoencoderConfig) -> torch.Tensor:
    """uint8 [B S S 3] to latents [B H W C]: the shifted and scaled posterior mean; no gradient."""
    pixels = to_float(images).permute(0, 3, 1, 2).to(next(vae.parameters()).dtype)
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean.float()
    return config.scale_factor * (mean.permute(0, 2, 3, 1) - config.shift_factor)


def decode_latents(vae: Any, latents: torch.Tensor, config: AutoencoderConfig) -> torch.Tensor:
    """Latents [B H W C] to pictures [B S S 3] around [-1, 1], float32."""
    z = latents / config.scale_factor + config.shift_factor
    pixels = vae.decode(z.permute(0, 3, 1, 2).to(next(vae.parameters()).dtype)).sample
    return pixels.permute(0, 2, 3, 1).float()


class RegionStem(nn.Module):
    """A small convolutional map, averaged over the region masks, as encoders/regions.py."""

    def __init__(self, config: RegionConfig):
        super().__init__()
        width, stride = config.width, config.stride
        # Two further input channels hold the pixel coordinates: pooling would lose the place.
        self.patch_conv = nn.Conv2d(5, width, stride, stride=stride)
        self.neck_conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, images: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """images uint8 [B S S 3], regions [B R G G] -> [B R C]; zeros for an empty region."""
        batch, size = images.shape[:2]
        axis = torch.linspace(-1.0, 1.0, size, device=images.device)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
        pixels = to_float(images).permute(0, 3, 1, 2)
        pixels = torch.cat([pixels, grid.expand(batch, -1, -1, -1)], dim=1)
        x = F.gelu(self.patch_conv(pixels.to(self.patch_conv.weight.dtype)), approximate="tanh")
        return masked_pool(self.neck_conv(x), regions)


def masked_pool(features: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Mean of the map [B C G G] over each region [B R G G], as [B R C]; zeros for an empty one."""
    weights = regions.to(features.dtype)
    total = torch.einsum("bcij,brij->brc", features, weights)
    return total / weights.sum((2, 3)).clamp_min(1)[..., None]


def encode_sam(sam: Any, images: torch.Tensor) -> torch.Tensor:
    """The map [B C G G] that a stock SamModel's image encoder makes of uint8 [B S S 3].

    Antialiased bilinear resize and ImageNet's normalisation (rb_jax/models/encoders/sam/pixels.py).
    """
    size = sam.config.vision_config.image_size
    pixels = images.float().permute(0, 3, 1, 2) / 255.0
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    mean, std = (pixels.new_tensor(x)[:, None, None] for x in (SAM_MEAN, SAM_STD))
    pixels = ((pixels - mean) / std).to(next(sam.parameters()).dtype)
    return sam.vision_encoder(pixels).last_hidden_state
