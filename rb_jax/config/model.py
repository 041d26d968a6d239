"""The sizes and switches of every stage of the model, one group per stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from rb_jax.config.group import Group, Sizes, undivided


@dataclass(frozen=True)
class CLIPVisionConfig(Sizes):
    place = "model.vision"
    any_sign = ("feature_layer",)

    image_size: int = 64
    patch_size: int = 16
    width: int = 96
    layers: int = 2
    heads: int = 3
    mlp_width: int = 384
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5
    # The hidden layer LLaVA and FRCE read, counted as in Hugging Face (0 = embeddings).
    feature_layer: int = -1

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from undivided(self.heads, self.width)
        if self.image_size % self.patch_size:
            why = f"{self.patch_size} does not divide model.vision.image_size={self.image_size}"
            yield "patch_size", why
        if not -self.layers - 1 <= self.feature_layer <= self.layers:
            why = f"{self.feature_layer} is not one of the {self.layers + 1} hidden states"
            yield "feature_layer", why


@dataclass(frozen=True)
class CLIPTextConfig(Sizes):
    place = "model.text"

    vocab_size: int = 1024
    max_length: int = 32
    width: int = 80
    layers: int = 2
    heads: int = 4
    mlp_width: int = 320
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from undivided(self.heads, self.width)
        if self.max_length < 8:
            yield "max_length", "must hold the 8 tokens of an object's name"


@dataclass(frozen=True)
class RegionConfig(Sizes):
    """Where the feature map comes from that is pooled over the region masks.

    ``stem`` is a small convolutional map of the picture; ``sam`` is SAM's image encoder, whose
    automatic masks then are the regions (``width`` is model.sam.out_channels).
    """

    place = "model.regions"

    encoder: Literal["stem", "sam"] = "stem"
    width: int = 40
    stride: int = 4  # pixels of a cell of the masks' grid, for ``stem``
    max_regions: int = 8


@dataclass(frozen=True)
class SAMConfig(Sizes):
    """Segment Anything (arXiv 2304.02643); the defaults are ViT-H's."""

    place = "model.sam"
    may_be_zero = ("layers", "decoder_layers", "iou_head_layers", "global_layers")

    image_size: int = 1024
    patch_size: int = 16
    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp_width: int = 5120
    window_size: int = 14
    global_layers: tuple[int, ...] = (7, 15, 23, 31)  # these attend everywhere, not in windows
    out_channels: int = 256
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048
    attention_downsample: int = 2
    multimask_outputs: int = 3
    iou_head_layers: int = 3
    iou_head_width: int = 256
    mask_channels: int = 16


@dataclass(frozen=True)
class AutoencoderConfig(Sizes):
    """FLUX's KL autoencoder: resolution halves between the levels of ``channel_mult``."""

    place = "model.autoencoder"
    any_sign = ("shift_factor",)

    channels: int = 16
    channel_mult: tuple[int, ...] = (1, 2, 3)
    num_res_blocks: int = 1
    latent_channels: int = 12
    norm_groups: int = 8
    scale_factor: float = 1.0
    shift_factor: float = 0.0

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if any(self.channels * m % self.norm_groups for m in self.channel_mult):
            yield "norm_groups", f"{self.norm_groups} does not divide every level's width"

    @property
    def downsampling(self) -> int:
        """Pixels a side of a cell of the latent."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class FRCEConfig(Sizes):
    place = "model.frce"
    may_be_zero = ("patch_layers", "region_layers", "id_controller_layers")

    enabled: bool = True
    patch_branch: bool = True
    region_branch: bool = True
    id_controller: bool = True
    width: int = 88
    heads: int = 4
    patch_layers: int = 1
    region_layers: int = 1
    id_controller_layers: int = 1
    max_objects: int = 4

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from undivided(self.heads, self.width)
        if self.enabled and not self.patch_branch and not self.region_branch:
            yield "patch_branch", "FRCE needs at least one of patch_branch and region_branch"


@dataclass(frozen=True)
class MLLMConfig(Sizes):
    """A LLaMA decoder with LLaVA's projector; ``projector`` is linear (v1.1) or mlp (v1.5)."""

    place = "model.mllm"
    may_be_zero = ("layers", "lora_rank", "image_tokens")

    vocab_size: int = 1024
    max_length: int = 32
    width: int = 128
    mlp_width: int = 344
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    projector: Literal["linear", "mlp"] = "linear"
    image_tokens: int = 8
    lora_rank: int = 4
    lora_alpha: float = 8.0

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from undivided(self.heads, self.width)
        if self.heads % self.kv_heads:
            yield "kv_heads", f"{self.kv_heads} does not divide heads={self.heads}"
        if self.width // self.heads % 2:
            yield "heads", "the head width must be even for RoPE"


@dataclass(frozen=True)
class QFormerConfig(Sizes):
    place = "model.qformer"

    width: int = 72
    heads: int = 6
    layers: int = 2
    queries: int = 8

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from undivided(self.heads, self.width)


@dataclass(frozen=True)
class CMEConfig(Sizes):
    place = "model.cme"
    may_be_zero = ("blocks",)

    enabled: bool = True
    width: int = 112
    heads: int = 4
    blocks: int = 2
    queries: int = 8

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from undivided(self.heads, self.width)


@dataclass(frozen=True)
class MMDiTConfig(Sizes):
    place = "model.mmdit"
    may_be_zero = ("double_blocks", "single_blocks", "in_width", "lora_rank")

    width: int = 160
    heads: int = 4
    mlp_ratio: float = 4.0
    double_blocks: int = 2
    single_blocks: int = 4
    context_width: int = 120  # the text stream's input width (4096 in FLUX)
    axes_dim: tuple[int, int, int] = (8, 16, 16)
    rope_theta: float = 10_000.0
    guidance_embed: bool = True
    patch_size: int = 2
    source: Literal["channel", "sequence", "none"] = "channel"
    # Values in a token of the input; 0 is what ``source`` needs, more are filled with zeros.
    in_width: int = 0
    # What the last layer's output means: FLUX's velocity, or the data x0 from which it follows.
    prediction: Literal["velocity", "data"] = "velocity"
    lora_rank: int = 0  # of every projection of the blocks; 0 is no LoRA
    lora_alpha: float = 1.0

    @property
    def mlp_width(self) -> int:
        return round(self.width * self.mlp_ratio)

    def token_width(self, latent_channels: int) -> int:
        """Values in a token of the input."""
        one = latent_channels * self.patch_size**2
        return self.in_width or (2 * one if self.source == "channel" else one)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        head = self.width // self.heads
        if self.width % self.heads or sum(self.axes_dim) != head:
            why = f"{self.axes_dim} must add up to the head width {self.width}/{self.heads}"
            yield "axes_dim", why
        if any(d % 2 for d in self.axes_dim):
            yield "axes_dim", "each must be even"


@dataclass(frozen=True)
class ModelConfig(Group):
    place = "model"

    vision: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    text: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    sam: SAMConfig = field(default_factory=SAMConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    frce: FRCEConfig = field(default_factory=FRCEConfig)
    mllm: MLLMConfig = field(default_factory=MLLMConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    cme: CMEConfig = field(default_factory=CMEConfig)
    mmdit: MMDiTConfig = field(default_factory=MMDiTConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"

    def region_grid(self, image_size: int) -> int:
        """Cells a side of the region masks' grid."""
        if self.regions.encoder == "sam":
            return self.sam.image_size // self.sam.patch_size
        return image_size // self.regions.stride

    @property
    def pixel_multiple(self) -> int:
        """What a picture's sides must be multiples of: whole tokens, whole cells of regions."""
        token = self.autoencoder.downsampling * self.mmdit.patch_size
        return math.lcm(token, self.regions.stride) if self.regions.encoder == "stem" else token
