"""Every value there is, with its default: frozen dataclasses, checked when a Config is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rb_jax.errors import InputError


class ConfigError(InputError):
    """A value of the configuration is unknown, missing, mistyped or inconsistent."""


@dataclass(frozen=True)
class CLIPVisionConfig:
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


@dataclass(frozen=True)
class CLIPTextConfig:
    vocab_size: int = 1024
    max_length: int = 32
    width: int = 80
    layers: int = 2
    heads: int = 4
    mlp_width: int = 320
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class RegionConfig:
    """Where the feature map comes from that is pooled over the region masks.

    ``stem`` is a small convolutional map of the picture; ``sam`` is SAM's image encoder, whose
    automatic masks then are the regions (``width`` is model.sam.out_channels).
    """

    encoder: Literal["stem", "sam"] = "stem"
    width: int = 40
    stride: int = 4  # pixels of a cell of the masks' grid, for ``stem``
    max_regions: int = 8


@dataclass(frozen=True)
class SAMConfig:
    """Segment Anything (arXiv 2304.02643); the defaults are ViT-H's."""

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
class AutoencoderConfig:
    """FLUX's KL autoencoder: resolution halves between the levels of ``channel_mult``."""

    channels: int = 16
    channel_mult: tuple[int, ...] = (1, 2, 3)
    num_res_blocks: int = 1
    latent_channels: int = 12
    norm_groups: int = 8
    scale_factor: float = 1.0
    shift_factor: float = 0.0


@dataclass(frozen=True)
class FRCEConfig:
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


@dataclass(frozen=True)
class MLLMConfig:
    """A LLaMA decoder with LLaVA's projector; ``projector`` is linear (v1.1) or mlp (v1.5)."""

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


@dataclass(frozen=True)
class QFormerConfig:
    width: int = 72
    heads: int = 6
    layers: int = 2
    queries: int = 8


@dataclass(frozen=True)
class CMEConfig:
    enabled: bool = True
    width: int = 112
    heads: int = 4
    blocks: int = 2
    queries: int = 8


@dataclass(frozen=True)
class MMDiTConfig:
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


@dataclass(frozen=True)
class ModelConfig:
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
        token = 2 ** (len(self.autoencoder.channel_mult) - 1) * self.mmdit.patch_size
        return math.lcm(token, self.regions.stride) if self.regions.encoder == "stem" else token


@dataclass(frozen=True)
class FlowConfig:
    """Rectified flow: training-time sampling of t, and the sampler's defaults."""

    logit_mean: float = 0.0
    logit_std: float = 1.0
    # Resolution-dependent shift of t: mu is linear in the number of image tokens (FLUX's points).
    shift: bool = True
    base_tokens: int = 256
    base_shift: float = 0.5
    max_tokens: int = 4096
    max_shift: float = 1.15
    drop_condition: float = 0.1
    drop_source: float = 0.0
    # Range of the distilled guidance fed in training; sampled uniformly for each example.
    guidance_range: tuple[float, float] = (1.0, 5.0)
    steps: int = 28
    guidance: float = 3.5
    true_cfg: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    """``name`` is ``reasonworld``, ``folder`` (then ``path`` is in the Reason50K layout),
    ``records`` (then ``path`` is what ``rb-jax data import`` wrote), ``cache`` (what ``rb-jax data
    cache`` wrote), or ``synthetic`` (noise of the right shapes, to time a machine).

    ``inputs`` says what an example holds: pixels and tokens, or the frozen encoders' features,
    computed ahead of time; then the model has no encoders.
    """

    name: Literal["reasonworld", "folder", "records", "cache", "synthetic"] = "reasonworld"
    inputs: Literal["pixels", "features"] = "pixels"
    path: str = ""
    # In the place of path: (folder of records, weight) of each data set. Of all examples seen, each
    # has its weight's share, whatever its size.
    mix: tuple[tuple[str, float], ...] = ()
    split: str = "train"
    val_split: str = "val"
    count: int = 16_384  # distinct ReasonWorld examples; a folder has as many as it has
    seed: int = 0
    image_size: int = 64
    # Shapes (height, width) of batches, each picture in the nearest (rb_jax.data.buckets); or how
    # many to derive, of about image_size squared pixels. Empty and 0: squares.
    buckets: tuple[tuple[int, int], ...] = ()
    bucket_count: int = 0
    # The tokenizer file of each tower; empty means the one shipped with the package.
    text_tokenizer: str = ""
    prompt_tokenizer: str = ""
    workers: int = 0  # threads that read and decode ahead of time; 0 is 2
    # Make every example once, before training, with its latents; "" keeps them in the workdir.
    prepare: bool = True
    prepared_dir: str = ""


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-3
    # Factors on the learning rate by patterns over paths, (("mllm/**", 0.1),); the first counts.
    rates: tuple[tuple[str, float], ...] = ()
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.1  # of the steps, at their end, in which wsd decays
    final_fraction: float = 0.05  # of the peak learning rate at the last step
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 1e-2
    momentum: float = 0.95  # muon's
    clip_norm: float = 1.0
    # A step whose gradient's norm is this many times the running average changes nothing; 0 is off.
    spike_factor: float = 0.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class TrainConfig:
    # edit is the whole model; mmdit the flow model alone, from latents and conditioning.
    task: Literal["edit", "mmdit", "autoencoder"] = "edit"
    steps: int = 600
    batch_size: int = 32
    accumulation: int = 1  # parts of the batch, one after the other, for one update
    seed: int = 0
    ema_decay: float = 0.999  # 0: no running average is kept
    param_dtype: Literal["float32", "bfloat16"] = "float32"  # of what is trained
    # Patterns over parameter paths ("mllm/**/lora_*"); what none matches is frozen.
    trainable: tuple[str, ...] = ("**",)
    frozen: tuple[str, ...] = ("autoencoder/**",)
    # Weights to start from: a checkpoint folder for the whole model or for the autoencoder alone.
    init_from: str = ""
    autoencoder_from: str = "shipped"
    mllm_loss_weight: float = 1.0
    flow_loss_weight: float = 1.0
    kl_weight: float = 1e-6
    log_every: int = 20
    eval_every: int = 500
    eval_examples: int = 8
    checkpoint_every: int = 500
    keep_checkpoints: int = 2  # the newest; 0: all
    keep_every: int = 0  # checkpoints of steps that this divides are never deleted; 0: none
    wandb: str = ""  # a project of Weights & Biases that also gets the logs; needs the package
    step_timeout: float = 1800.0  # seconds after which a stuck process ends itself; 0: never
    max_skipped: int = 100  # steps in a row that were not finite, after which the run ends; 0: any


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 fills. ``slices`` are joined by a slower network.

    With both data and fsdp -1, fsdp takes up to 64 devices of a slice and data the rest.
    ``frozen`` weights are split over fsdp like the others (``sharded``), so that each use gathers
    them, or not (``whole``); ``auto`` keeps them whole on TPUs where the training state then takes
    no more than 0.6 of a device's memory.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    slices: int = 1
    frozen: Literal["auto", "sharded", "whole"] = "auto"


@dataclass(frozen=True)
class RematConfig:
    """What a block keeps for its backward pass: ``off`` (all), ``full`` (its input alone), or the
    names to keep, such as ``qkv,attention,mlp@host`` (rb_jax.config.remat.NAMES)."""

    double_blocks: str = "off"
    single_blocks: str = "off"
    mllm: str = "off"
    others: str = "off"  # encoders, FRCE, QFormer, CME


@dataclass(frozen=True)
class ProfileConfig:
    """``steps`` such as ``10:13`` are traced into WORKDIR/profile: the 10th up to the 13th, which
    is left out. The trace opens in xprof (TensorBoard's profile tab) and Perfetto."""

    steps: str = ""


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    remat: RematConfig = field(default_factory=RematConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self):
        from rb_jax.config.checks import check

        check(self)
