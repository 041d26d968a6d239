"""Configuration: ml_collections on the outside, frozen and checked dataclasses on the inside.

``configs/*.py`` build a ``ConfigDict`` with ``to_config_dict(Config())`` plus their changes;
``from_config_dict`` turns it back and refuses unknown, missing, mistyped and inconsistent values,
naming the key. Every size of the model is here; nothing is read from anywhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_collections

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
    source: Literal["channel", "sequence"] = "channel"
    # Values in a token of the input; 0 is what ``source`` needs, more are filled with zeros.
    in_width: int = 0
    # What the last layer's output means: FLUX's velocity, or the data x0 from which it follows.
    prediction: Literal["velocity", "data"] = "velocity"

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
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    frce: FRCEConfig = field(default_factory=FRCEConfig)
    mllm: MLLMConfig = field(default_factory=MLLMConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    cme: CMEConfig = field(default_factory=CMEConfig)
    mmdit: MMDiTConfig = field(default_factory=MMDiTConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


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
    """``name`` is ``reasonworld`` or ``folder`` (then ``path`` is in the Reason50K layout)."""

    name: Literal["reasonworld", "folder"] = "reasonworld"
    path: str = ""
    split: str = "train"
    val_split: str = "val"
    count: int = 16_384  # distinct ReasonWorld examples; a folder has as many as it has
    seed: int = 0
    image_size: int = 64
    # The tokenizer file of each tower; empty means the one shipped with the package.
    text_tokenizer: str = ""
    prompt_tokenizer: str = ""
    workers: int = 0  # threads that make batches ahead of time; 0 is 2
    # Make every example once, before training, with its latents; "" keeps them in the workdir.
    prepare: bool = True
    prepared_dir: str = ""


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 100
    final_fraction: float = 0.05  # of the peak learning rate at the last step
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 1e-2
    clip_norm: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    task: Literal["edit", "autoencoder"] = "edit"
    steps: int = 600
    batch_size: int = 32
    seed: int = 0
    ema_decay: float = 0.999
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
    keep_checkpoints: int = 2


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        check(self)


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The editable form that configs/*.py return and absl flags override."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """Checked, frozen form of a ConfigDict or nested dict; raises ConfigError naming the key."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return from_values(Config, values)


def from_stored(values: Mapping[str, Any]) -> Config:
    """As ``from_config_dict``, of a configuration saved with weights.

    Keys that did not exist when it was saved take their defaults, which mean "as before".
    """
    return from_config_dict(_filled(dataclasses.asdict(Config()), values))


def _filled(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(defaults) | dict(values)
    for name, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(filled[name], Mapping):
            filled[name] = _filled(default, filled[name])
    return filled


def check_key(key: str) -> None:
    """Raises ConfigError if a dotted key such as ``train.steps`` names no value."""
    cls, prefix = Config, ""
    for name in key.split("."):
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        _check_name(name, hints, prefix)
        cls, prefix = hints[name], f"{prefix}{name}."


def _check_name(name: str, known: Mapping[str, Any], prefix: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {prefix}{close[0]}?" if close else ""
        raise ConfigError(f"config.{prefix}{name}: no such key{hint}")


def from_values(cls, values: Any, prefix: str = ""):
    """A dataclass of this module from nested dicts; raises ConfigError naming the key."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{prefix[:-1]}: expected a group of values, got {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        _check_name(str(key), hints, prefix)
    missing = [name for name in hints if name not in values]
    if missing:
        raise ConfigError(f"config.{prefix}{missing[0]}: missing")
    return cls(**{name: _value(hints[name], values[name], prefix + name) for name in hints})


def _value(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_values(hint, value, key + ".")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"config.{key}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"config.{key}: expected a tuple, got {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"config.{key}: expected {len(inner)} values, got {len(value)}")
        pairs = enumerate(zip(inner, value, strict=True))
        return tuple(_value(h, v, f"{key}[{i}]") for i, (h, v) in pairs)
    if isinstance(hint, types.UnionType):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"config.{key}: expected {hint.__name__}, got {value!r}")
    return value


MAY_BE_ZERO = ("layers", "blocks", "lora_rank", "in_width")


def check(config: Config) -> None:
    """Raises ConfigError for the first pair of values that cannot go together."""
    model, data, flow, train = config.model, config.data, config.flow, config.train
    for key, size in _sizes(model, "model"):
        if size < 0 or (size == 0 and not key.endswith(MAY_BE_ZERO)):
            raise ConfigError(f"config.{key}: must be positive, got {size}")
    vision, vae, frce, mmdit = model.vision, model.autoencoder, model.frce, model.mmdit
    downsampling = 2 ** (len(vae.channel_mult) - 1)
    pixels_a_token = downsampling * mmdit.patch_size
    tokens = dataclasses.replace(mmdit, in_width=0).token_width(vae.latent_channels)
    rules = [
        (vision.image_size % vision.patch_size == 0, "model.vision.patch_size",
         f"{vision.patch_size} does not divide model.vision.image_size={vision.image_size}"),
        (data.image_size % pixels_a_token == 0, "data.image_size",
         f"{data.image_size} is not a multiple of {pixels_a_token} (autoencoder x patch size)"),
        (data.image_size % model.regions.stride == 0, "model.regions.stride",
         f"{model.regions.stride} does not divide data.image_size={data.image_size}"),
        (all(vae.channels * m % vae.norm_groups == 0 for m in vae.channel_mult),
         "model.autoencoder.norm_groups", f"{vae.norm_groups} does not divide every level's width"),
        (not frce.enabled or frce.patch_branch or frce.region_branch, "model.frce.patch_branch",
         "FRCE needs at least one of patch_branch and region_branch"),
        (frce.enabled or not model.cme.enabled, "model.cme.enabled",
         "CME reads FRCE's cues: set model.frce.enabled or clear model.cme.enabled"),
        (mmdit.width % mmdit.heads == 0 and sum(mmdit.axes_dim) == mmdit.width // mmdit.heads,
         "model.mmdit.axes_dim", f"{mmdit.axes_dim} must add up to the head width "
         f"{mmdit.width}/{mmdit.heads}"),
        (mmdit.in_width == 0 or mmdit.in_width >= tokens, "model.mmdit.in_width",
         f"must be 0 or at least the {tokens} values of z_t and the source"),
        (all(d % 2 == 0 for d in mmdit.axes_dim), "model.mmdit.axes_dim", "each must be even"),
        (model.mllm.heads % model.mllm.kv_heads == 0, "model.mllm.kv_heads",
         f"{model.mllm.kv_heads} does not divide heads={model.mllm.heads}"),
        (model.mllm.width // model.mllm.heads % 2 == 0, "model.mllm.heads",
         "the head width must be even for RoPE"),
        (-vision.layers - 1 <= vision.feature_layer <= vision.layers, "model.vision.feature_layer",
         f"{vision.feature_layer} is not one of the {vision.layers + 1} hidden states"),
        (model.text.max_length >= 8, "model.text.max_length",
         "must hold the 8 tokens of an object's name"),
        (flow.base_tokens < flow.max_tokens, "flow.max_tokens",
         f"must be more than flow.base_tokens={flow.base_tokens}"),
        (0 <= flow.drop_condition < 1, "flow.drop_condition", "must be in [0, 1)"),
        (0 <= flow.drop_source < 1, "flow.drop_source", "must be in [0, 1)"),
        (flow.logit_std > 0, "flow.logit_std", "must be positive"),
        (flow.guidance_range[0] <= flow.guidance_range[1], "flow.guidance_range", "low > high"),
        (data.name != "folder" or data.path != "", "data.path", "a folder data set needs a path"),
        (0 <= train.ema_decay < 1, "train.ema_decay", "must be in [0, 1)"),
        (config.optimizer.warmup_steps < train.steps or train.steps == 0,
         "optimizer.warmup_steps", f"must be below train.steps={train.steps}"),
    ]  # fmt: skip
    for name, width, heads in [
        ("vision", vision.width, vision.heads),
        ("text", model.text.width, model.text.heads),
        ("frce", frce.width, frce.heads),
        ("mllm", model.mllm.width, model.mllm.heads),
        ("qformer", model.qformer.width, model.qformer.heads),
        ("cme", model.cme.width, model.cme.heads),
    ]:
        why = f"{heads} does not divide width={width}"
        rules.append((width % heads == 0, f"model.{name}.heads", why))
    for key, value in [("train.batch_size", train.batch_size), ("data.count", data.count),
                       ("flow.steps", flow.steps), ("train.log_every", train.log_every),
                       ("model.mllm.image_tokens", model.mllm.image_tokens),
                       ("train.eval_every", train.eval_every),
                       ("train.checkpoint_every", train.checkpoint_every)]:  # fmt: skip
        rules.append((value >= 1, key, f"must be at least 1, got {value}"))
    for holds, key, why in rules:
        if not holds:
            raise ConfigError(f"config.{key}: {why}")


def _sizes(group: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """Dotted key and value of every number in a group that counts or measures something."""
    for f in dataclasses.fields(group):
        key, value = f"{prefix}.{f.name}", getattr(group, f.name)
        if dataclasses.is_dataclass(value):
            yield from _sizes(value, key)
        elif f.name not in ("feature_layer", "shift_factor"):
            values = value if isinstance(value, tuple) else (value,)
            numbers = (v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool))
            yield from ((key, v) for v in numbers)


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested dicts, e.g. a checkpoint's and yours."""
    keys = []
    for name in sorted(set(a) | set(b)):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{prefix}{name}.")
        elif _plain(left) != _plain(right):
            keys.append(f"{prefix}{name}")
    return keys


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
