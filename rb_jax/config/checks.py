"""Which values of a configuration cannot go together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from rb_jax.config.remat import parse
from rb_jax.config.schema import Config, ConfigError

# (1 - b2) g^2 must be more than half of bfloat16's last bit of the moment it is added to.
MAX_BFLOAT16_B2 = 0.99
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
    bucketed = data.buckets != () or data.bucket_count != 0
    rules = [
        (vision.image_size % vision.patch_size == 0, "model.vision.patch_size",
         f"{vision.patch_size} does not divide model.vision.image_size={vision.image_size}"),
        (data.image_size % pixels_a_token == 0, "data.image_size",
         f"{data.image_size} is not a multiple of {pixels_a_token} (autoencoder x patch size)"),
        (model.regions.encoder == "sam" or data.image_size % model.regions.stride == 0,
         "model.regions.stride",
         f"{model.regions.stride} does not divide data.image_size={data.image_size}"),
        (model.regions.encoder == "stem" or data.image_size % model.region_grid(0) == 0,
         "data.image_size", "must be a multiple of SAM's grid, model.sam.image_size / patch_size = "
         f"{model.region_grid(0) if model.regions.encoder == 'sam' else 0}"),
        (model.regions.encoder == "stem" or model.regions.width == model.sam.out_channels,
         "model.regions.width", f"must be model.sam.out_channels={model.sam.out_channels}"),
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
        (data.name not in ("folder", "records", "cache") or data.path != "" or data.mix != (),
         "data.path", f"data.name={data.name!r} needs the path of its folder"
         + (", or data.mix" if data.name == "records" else "")),
        (not data.mix or (data.name == "records" and data.path == ""), "data.mix",
         "is for data.name='records', in the place of data.path"),
        (not data.mix or not data.prepare, "data.mix", "is read as it is: clear data.prepare"),
        (all(path and 0 < weight < math.inf for path, weight in data.mix), "data.mix",
         f"each is a folder and a weight above 0, got {data.mix}"),
        (data.bucket_count >= 0, "data.bucket_count", "must not be negative"),
        (not (data.buckets and data.bucket_count), "data.bucket_count",
         "and data.buckets are two ways to say the same: set one"),
        (all(n > 0 and n % model.pixel_multiple == 0 for shape in data.buckets for n in shape),
         "data.buckets", f"{data.buckets} are not all multiples of {model.pixel_multiple}"),
        (len(set(data.buckets)) == len(data.buckets), "data.buckets", "a shape comes twice"),
        (not bucketed or (data.name == "records" and not data.prepare), "data.buckets",
         "needs data.name='records', read as it is: clear data.prepare"),
        (not bucketed or model.regions.encoder == "stem", "data.buckets",
         "needs model.regions.encoder='stem': SAM's grid is square"),
        (data.workers >= 0, "data.workers", f"must not be negative, got {data.workers}"),
        (0 <= train.ema_decay < 1, "train.ema_decay", "must be in [0, 1)"),
        (config.optimizer.warmup_steps < train.steps or train.steps == 0,
         "optimizer.warmup_steps", f"must be below train.steps={train.steps}"),
    ]  # fmt: skip
    for key, setting in dataclasses.asdict(config.remat).items():
        if setting not in ("off", "full"):
            rules.append((not (why := remat_error(setting)), f"remat.{key}", why))
    opt = config.optimizer
    follows = opt.name in ("adafactor", "lion") or opt.b2 <= MAX_BFLOAT16_B2
    rules += [
        (opt.spike_factor == 0 or opt.spike_factor > 1, "optimizer.spike_factor",
         f"must be 0 (off) or more than 1, got {opt.spike_factor}"),
        (_is_range(config.profile.steps), "profile.steps",
         f"{config.profile.steps!r} is not FIRST:END with 1 <= FIRST < END, such as 10:13"),
        (0 <= opt.decay_fraction <= 1, "optimizer.decay_fraction", "must be in [0, 1]"),
        (all(factor >= 0 for _, factor in opt.rates), "optimizer.rates",
         "factors must not be negative"),
        (train.accumulation >= 1 and train.batch_size % train.accumulation == 0,
         "train.accumulation",
         f"{train.accumulation} does not divide batch_size={train.batch_size}"),
        (train.param_dtype != "bfloat16" or follows, "optimizer.b2",
         f"{opt.b2} is more than a second moment in bfloat16 can follow; use "
         f"at most {MAX_BFLOAT16_B2}, or train.param_dtype='float32'"),
        (train.task != "mmdit" or data.name == "synthetic", "data.name",
         "train.task='mmdit' reads latents and conditioning: 'synthetic' is the only such source"),
        (data.inputs == "pixels" or data.name in ("synthetic", "cache"), "data.inputs",
         "features come from data.name='cache' (rb-jax data cache) or 'synthetic'"),
        (data.name != "cache" or data.inputs == "features", "data.inputs",
         "data.name='cache' holds 'features'"),
        (data.inputs == "pixels" or train.task != "autoencoder", "data.inputs",
         "train.task='autoencoder' learns from pixels"),
        (train.eval_examples == 0 or train.task != "mmdit", "train.eval_examples",
         "must be 0: there are no pictures in latents"),
        (train.eval_examples == 0 or data.inputs == "pixels"
         or (data.name == "cache" and bool(train.init_from)), "train.eval_examples",
         "must be 0: features are shown by the autoencoder of train.init_from, which is not set"),
        (mmdit.source != "none" or train.task == "mmdit", "model.mmdit.source",
         "an edit needs its source: 'channel' or 'sequence'"),
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
    for name in ("keep_checkpoints", "keep_every", "step_timeout", "max_skipped"):
        value = getattr(train, name)
        rules.append((value >= 0, f"train.{name}", f"must not be negative, got {value}"))
    for holds, key, why in rules:
        if not holds:
            raise ConfigError(f"config.{key}: {why}")


def step_range(text: str) -> tuple[int, int]:
    """``10:13`` as numbers, two zeros for an empty text. Raises ValueError."""
    if not text:
        return 0, 0
    first, colon, end = text.partition(":")
    if not colon or not 1 <= int(first) < int(end):
        raise ValueError(text)
    return int(first), int(end)


def _is_range(text: str) -> bool:
    try:
        step_range(text)
    except ValueError:
        return False
    return True


def remat_error(setting: str) -> str:
    """What is wrong with the names of a remat setting; empty if nothing is."""
    try:
        parse(setting)
    except ValueError as error:
        return str(error)
    return ""


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
