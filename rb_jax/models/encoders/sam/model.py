"""Segment Anything (arXiv 2304.02643; transformers: models/sam/modeling_sam.py)."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float, UInt8

from rb_jax.config import ConfigError, SAMConfig
from rb_jax.models.encoders.sam.image_encoder import ImageEncoder
from rb_jax.models.encoders.sam.mask_decoder import MaskDecoder
from rb_jax.models.encoders.sam.pixels import preprocess
from rb_jax.models.encoders.sam.prompt_encoder import FourierPositions, PromptEncoder, Prompts


class SAM(nnx.Module):
    """``encode`` a picture once, ``decode`` any number of prompts; raises ConfigError."""

    def __init__(self, config: SAMConfig, rngs: nnx.Rngs):
        _check(config)
        self.config = config
        self.shared_image_embedding = FourierPositions(config.out_channels, rngs)
        self.image_encoder = ImageEncoder(config, rngs)
        self.prompt_encoder = PromptEncoder(config, rngs)
        self.mask_decoder = MaskDecoder(config, rngs)

    def encode(
        self, images: UInt8[Array, "B S S 3"], remat: str = "off"
    ) -> Float[Array, "B G G C"]:
        """Feature map of square pictures of any size."""
        return self.image_encoder(preprocess(images, self.config.image_size), remat)

    def decode(
        self, features: Float[Array, "B G G C"], prompts: Prompts, multimask: bool = True
    ) -> tuple[Float[Array, "B R M Z Z"], Float[Array, "B R M"]]:
        """Mask logits at four pixels a cell and their predicted IoU, float32.

        With ``multimask`` a prompt gets ``config.multimask_outputs`` masks, else M is 1.
        """
        sparse, dense = self.prompt_encoder(prompts, self.shared_image_embedding)
        places = self.shared_image_embedding.grid(features.shape[1])
        return self.mask_decoder(features, places, sparse, dense, multimask)

    def __call__(
        self, images: UInt8[Array, "B S S 3"], prompts: Prompts, multimask: bool = True
    ) -> tuple[Float[Array, "B R M Z Z"], Float[Array, "B R M"]]:
        return self.decode(self.encode(images), prompts, multimask)


def _check(config: SAMConfig) -> None:
    """Raises ConfigError for the first value that cannot be built."""
    inner = config.out_channels // config.attention_downsample
    rules = [
        (config.image_size % config.patch_size == 0, "patch_size", "must divide image_size"),
        (config.width % config.heads == 0, "heads", "must divide width"),
        (config.window_size >= 1, "window_size", "must be at least 1"),
        (
            len(set(config.global_layers)) == len(config.global_layers)
            and all(0 <= i < config.layers for i in config.global_layers),
            "global_layers",
            f"must be different numbers below layers={config.layers}",
        ),
        (
            config.out_channels % 2 == 0 and config.out_channels >= 8,
            "out_channels",
            "must be even and at least 8",
        ),
        (
            config.out_channels % config.attention_downsample == 0,
            "attention_downsample",
            "must divide out_channels",
        ),
        (
            inner % config.decoder_heads == 0 and config.out_channels % config.decoder_heads == 0,
            "decoder_heads",
            f"must divide out_channels and {inner}, the downsampled width",
        ),
        (config.mask_channels % 4 == 0, "mask_channels", "must be a multiple of 4"),
        (config.iou_head_layers >= 2, "iou_head_layers", "must be at least 2"),
    ]
    for holds, name, why in rules:
        if not holds:
            raise ConfigError(f"config.model.sam.{name}: {why}, got {getattr(config, name)}")
