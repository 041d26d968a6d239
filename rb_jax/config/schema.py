"""Every value there is, with its default: frozen dataclasses that check themselves.

Each group checks its own values when it is made (``Group``); ``Config`` checks what groups must
agree on. The model's groups are in rb_jax.config.model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from rb_jax.config.group import Group, Sizes
from rb_jax.config.model import ModelConfig
from rb_jax.config.remat import parse

# (1 - b2) g^2 must be more than half of bfloat16's last bit of the moment it is added to.
MAX_BFLOAT16_B2 = 0.99
MAX_STEPS = 1000  # of the sampler
MAX_IMAGE_SIZE = 16_384  # pixels a side
MAX_WORKERS = 1024


@dataclass(frozen=True)
class FlowConfig(Group):
    """Rectified flow: training-time sampling of t, and the sampler's defaults."""

    place = "flow"

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

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.base_tokens >= self.max_tokens:
            yield "max_tokens", f"must be more than flow.base_tokens={self.base_tokens}"
        for key in ("drop_condition", "drop_source"):
            if not 0 <= getattr(self, key) < 1:
                yield key, "must be in [0, 1)"
        if self.logit_std <= 0:
            yield "logit_std", "must be positive"
        if self.guidance_range[0] > self.guidance_range[1]:
            yield "guidance_range", "low > high"
        yield from at_least_one(self, "steps")
        yield from not_negative(self, "guidance", "true_cfg")
        if self.steps > MAX_STEPS:
            yield "steps", f"must be at most {MAX_STEPS}, got {self.steps}"


@dataclass(frozen=True)
class DataConfig(Group):
    """``name`` is ``reasonworld``, ``folder`` (then ``path`` is in the Reason50K layout),
    ``records`` (then ``path`` is what ``rb-jax data import`` wrote), ``cache`` (what ``rb-jax data
    cache`` wrote), or ``synthetic`` (noise of the right shapes, to time a machine).

    ``inputs`` says what an example holds: pixels and tokens, or the frozen encoders' features,
    computed ahead of time; then the model has no encoders.
    """

    place = "data"

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
    # Shapes (height, width) of batches, each picture in the nearest; or how many shapes to derive,
    # of about image_size squared pixels. Empty and 0: squares.
    buckets: tuple[tuple[int, int], ...] = ()
    bucket_count: int = 0
    # The tokenizer file of each tower; empty means the one shipped with the package.
    text_tokenizer: str = ""
    prompt_tokenizer: str = ""
    workers: int = 0  # threads that read and decode ahead of time; 0 is 2
    # Make every example once, before training, with its latents; "" keeps them in the workdir.
    prepare: bool = True
    prepared_dir: str = ""

    def problems(self) -> Iterator[tuple[str, str]]:
        records, bucketed = self.name == "records", bool(self.buckets or self.bucket_count)
        yield from at_least_one(self, "count", "image_size")
        yield from not_negative(self, "workers", "bucket_count", "seed")
        if self.image_size > MAX_IMAGE_SIZE:
            yield "image_size", f"must be at most {MAX_IMAGE_SIZE}, got {self.image_size}"
        if self.workers > MAX_WORKERS:
            yield "workers", f"must be at most {MAX_WORKERS}, got {self.workers}"
        for key in ("split", "val_split"):
            if not (name := getattr(self, key)) or "/" in name or "\0" in name or name[0] == ".":
                yield key, f"{name!r} is not the name of a split"
        if self.name in ("folder", "records", "cache") and not self.path and not self.mix:
            also = ", or data.mix" if records else ""
            yield "path", f"data.name={self.name!r} needs the path of its folder{also}"
        if self.mix and (not records or self.path):
            yield "mix", "is for data.name='records', in the place of data.path"
        if self.mix and self.prepare:
            yield "mix", "is read as it is: clear data.prepare"
        if not all(path and 0 < weight < math.inf for path, weight in self.mix):
            yield "mix", f"each is a folder and a weight above 0, got {self.mix}"
        if self.buckets and self.bucket_count:
            yield "bucket_count", "and data.buckets are two ways to say the same: set one"
        if len(set(self.buckets)) < len(self.buckets):
            yield "buckets", "a shape comes twice"
        if bucketed and (not records or self.prepare):
            yield "buckets", "needs data.name='records', read as it is: clear data.prepare"
        if self.inputs == "features" and self.name not in ("synthetic", "cache"):
            yield (
                "inputs",
                "features come from data.name='cache' (rb-jax data cache) or 'synthetic'",
            )
        if self.name == "cache" and self.inputs != "features":
            yield "inputs", "data.name='cache' holds 'features'"


@dataclass(frozen=True)
class OptimizerConfig(Group):
    place = "optimizer"

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

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from not_negative(self, "learning_rate", "warmup_steps", "eps", "weight_decay")
        yield from not_negative(self, "clip_norm")
        for key in ("b1", "b2", "momentum"):
            if not 0 <= getattr(self, key) < 1:
                yield key, f"must be in [0, 1), got {getattr(self, key)}"
        if not 0 <= self.final_fraction <= 1:
            yield "final_fraction", f"must be in [0, 1], got {self.final_fraction}"
        if self.spike_factor and self.spike_factor <= 1:
            yield "spike_factor", f"must be 0 (off) or more than 1, got {self.spike_factor}"
        if not 0 <= self.decay_fraction <= 1:
            yield "decay_fraction", "must be in [0, 1]"
        if any(factor < 0 for _, factor in self.rates):
            yield "rates", "factors must not be negative"

    @property
    def follows_in_bfloat16(self) -> bool:
        """Whether a second moment kept in bfloat16 would still move."""
        return self.name in ("adafactor", "lion") or self.b2 <= MAX_BFLOAT16_B2


@dataclass(frozen=True)
class TrainConfig(Group):
    place = "train"

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

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from at_least_one(self, "batch_size", "log_every", "eval_every", "checkpoint_every")
        yield from not_negative(
            self, "keep_checkpoints", "keep_every", "step_timeout", "max_skipped", "steps"
        )
        yield from not_negative(self, "seed", "eval_examples")
        yield from not_negative(self, "mllm_loss_weight", "flow_loss_weight", "kl_weight")
        if not 0 <= self.ema_decay < 1:
            yield "ema_decay", "must be in [0, 1)"
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            yield (
                "accumulation",
                f"{self.accumulation} does not divide batch_size={self.batch_size}",
            )


@dataclass(frozen=True)
class MeshConfig(Group):
    """Devices along each axis of the mesh; -1 fills. ``slices`` are joined by a slower network.

    With both data and fsdp -1, fsdp takes up to 64 devices of a slice and data the rest.
    ``frozen`` weights are split over fsdp like the others (``sharded``), so that each use gathers
    them, or every device has all of them (``replicated``); ``auto`` replicates them on TPUs where
    the training state then takes no more than 0.6 of a device's memory.
    """

    place = "mesh"

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    slices: int = 1
    frozen: Literal["auto", "sharded", "replicated"] = "auto"

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("data", "fsdp", "tensor", "context"):
            if (size := getattr(self, key)) < 1 and size != -1:
                yield key, f"must be at least 1, or -1 for all that are left, got {size}"
        yield from at_least_one(self, "slices")


@dataclass(frozen=True)
class RematConfig(Group):
    """What a block keeps for its backward pass: ``off`` (all), ``full`` (its input alone), or the
    names to keep, such as ``qkv,attention,mlp@host`` (rb_jax.config.remat.NAMES)."""

    place = "remat"

    double_blocks: str = "off"
    single_blocks: str = "off"
    mllm: str = "off"
    others: str = "off"  # encoders, FRCE, QFormer, CME

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("double_blocks", "single_blocks", "mllm", "others"):
            setting = getattr(self, name)
            try:
                if setting not in ("off", "full"):
                    parse(setting)
            except ValueError as error:
                yield name, str(error)


@dataclass(frozen=True)
class ProfileConfig(Group):
    """``steps`` such as ``10:13`` are traced into WORKDIR/profile: the 10th up to the 13th, which
    is left out. The trace opens in xprof (TensorBoard's profile tab) and Perfetto."""

    place = "profile"

    steps: str = ""

    def problems(self) -> Iterator[tuple[str, str]]:
        try:
            step_range(self.steps)
        except ValueError:
            yield "steps", f"{self.steps!r} is not FIRST:END with 1 <= FIRST < END, such as 10:13"


@dataclass(frozen=True)
class Config(Group):
    model: ModelConfig = field(default_factory=ModelConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    remat: RematConfig = field(default_factory=RematConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from self._model_problems()
        yield from self._data_problems()
        yield from self._train_problems()

    def _model_problems(self) -> Iterator[tuple[str, str]]:
        """What two stages of the model, or the model and its pictures, must agree on."""
        model, size = self.model, self.data.image_size
        for group in (getattr(model, f.name) for f in fields(model)):
            if isinstance(group, Sizes):
                yield from ((f"{group.place}.{key}", why) for key, why in group.conflicts())
        vae, mmdit, regions = model.autoencoder, model.mmdit, model.regions
        if size % (cell := vae.downsampling * mmdit.patch_size):
            yield (
                "data.image_size",
                f"{size} is not a multiple of {cell} (autoencoder x patch size)",
            )
        if regions.encoder == "stem" and size % regions.stride:
            yield "model.regions.stride", f"{regions.stride} does not divide data.image_size={size}"
        if regions.encoder == "sam":
            if size % (grid := model.region_grid(size)):
                why = f"SAM's grid, model.sam.image_size / patch_size = {grid}"
                yield "data.image_size", f"must be a multiple of {why}"
            if regions.width != model.sam.out_channels:
                why = f"must be model.sam.out_channels={model.sam.out_channels}"
                yield "model.regions.width", why
        if model.cme.enabled and not model.frce.enabled:
            why = "CME reads FRCE's cues: set model.frce.enabled or clear model.cme.enabled"
            yield "model.cme.enabled", why
        tokens = replace(mmdit, in_width=0).token_width(vae.latent_channels)
        if 0 < mmdit.in_width < tokens:
            why = f"must be 0 or at least the {tokens} values of z_t and the source"
            yield "model.mmdit.in_width", why
        if model.mllm.image_tokens < 1:
            yield "model.mllm.image_tokens", "must be positive, got 0"
        if mmdit.source == "none" and self.train.task != "mmdit":
            yield "model.mmdit.source", "an edit needs its source: 'channel' or 'sequence'"

    def _data_problems(self) -> Iterator[tuple[str, str]]:
        model, data = self.model, self.data
        multiple = model.pixel_multiple
        if any(n <= 0 or n % multiple for shape in data.buckets for n in shape):
            yield "data.buckets", f"{data.buckets} are not all multiples of {multiple}"
        if (data.buckets or data.bucket_count) and model.regions.encoder != "stem":
            why = "needs model.regions.encoder='stem': SAM's grid is square"
            yield "data.buckets", why
        if self.train.task == "mmdit" and data.name != "synthetic":
            reads = "train.task='mmdit' reads latents and conditioning"
            yield "data.name", f"{reads}: 'synthetic' is the only such source"
        if self.train.task == "autoencoder" and data.inputs == "features":
            yield "data.inputs", "train.task='autoencoder' learns from pixels"

    def _train_problems(self) -> Iterator[tuple[str, str]]:
        train, data, opt = self.train, self.data, self.optimizer
        if train.steps and opt.warmup_steps >= train.steps:
            yield "optimizer.warmup_steps", f"must be below train.steps={train.steps}"
        if train.param_dtype == "bfloat16" and not opt.follows_in_bfloat16:
            why = f"{opt.b2} is more than a second moment in bfloat16 can follow; use at most"
            yield "optimizer.b2", f"{why} {MAX_BFLOAT16_B2}, or train.param_dtype='float32'"
        if train.eval_examples and train.task == "mmdit":
            yield "train.eval_examples", "must be 0: there are no pictures in latents"
        shown = data.inputs == "pixels" or (data.name == "cache" and train.init_from)
        if train.eval_examples and not shown:
            why = "features are shown by the autoencoder of train.init_from, which is not set"
            yield "train.eval_examples", f"must be 0: {why}"


def step_range(text: str) -> tuple[int, int]:
    """``10:13`` as numbers, two zeros for an empty text. Raises ValueError."""
    if not text:
        return 0, 0
    first, colon, end = text.partition(":")
    if not colon or not 1 <= int(first) < int(end):
        raise ValueError(text)
    return int(first), int(end)


def at_least_one(group: Group, *keys: str) -> Iterator[tuple[str, str]]:
    yield from (
        (key, f"must be at least 1, got {getattr(group, key)}")
        for key in keys
        if getattr(group, key) < 1
    )


def not_negative(group: Group, *keys: str) -> Iterator[tuple[str, str]]:
    yield from (
        (key, f"must not be negative, got {getattr(group, key)}")
        for key in keys
        if getattr(group, key) < 0
    )
