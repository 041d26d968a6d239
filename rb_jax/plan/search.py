"""Which mesh, batch and recomputation suit a topology: an estimate ranks, the compiler decides.

The estimate adds the state, the activations that a remat setting keeps and one block's working set;
its time is the executed FLOPs at a fixed share of the peak, plus the weights' traffic where it
outlasts the computation. The best few are then compiled.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

from rb_jax.config import Config, ConfigError, RematConfig
from rb_jax.config.remat import parse
from rb_jax.errors import InputError
from rb_jax.plan import planner, program
from rb_jax.plan.planner import GIB, Row, Target

# From the fastest to the smallest.
REMATS = (
    RematConfig(
        double_blocks="modulation,qkv,attention,proj,mlp,out",
        single_blocks="modulation,qkv,attention,mlp,out",
        mllm="qkv,attention,proj,mlp",
        others="full",
    ),
    RematConfig(
        double_blocks="modulation,attention,proj,out",
        single_blocks="modulation,attention,out",
        mllm="attention,proj",
        others="full",
    ),
    RematConfig(
        double_blocks="modulation,attention",
        single_blocks="modulation,attention",
        mllm="attention",
        others="full",
    ),
    RematConfig(double_blocks="full", single_blocks="full", mllm="full", others="full"),
)
BATCHES = (1, 2, 4, 8, 16, 32)
EFFICIENCY = 0.75  # of the peak, for ranking alone
HEADROOM = 0.92  # of the memory that an estimate may fill


@dataclasses.dataclass(frozen=True)
class Candidate:
    target: Target
    seconds: float
    gib: float  # of one device

    @property
    def rate(self) -> float:
        """Examples per chip and second."""
        return self.target.config.train.batch_size / self.target.topology.chips / self.seconds


def search(
    config: Config,
    name: str,
    slices: int = 1,
    compiles: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """The best candidates of a topology, compiled, the fastest that fits first.

    Raises InputError, with the GiB that the smallest one is over, when by the estimate none fits.
    """
    every = list(candidates(config, name, slices))
    fitting = [c for c in every if c.gib <= HEADROOM * c.target.limit / GIB]
    if not fitting:
        least = min(every, key=lambda c: c.gib)
        over = least.gib - least.target.limit / GIB
        raise InputError(
            f"{name}: nothing fits; the smallest step needs about {least.gib:.1f} GiB per device, "
            f"{over:.1f} over: use more chips, or train.param_dtype=bfloat16"
        )
    ranked = sorted(fitting, key=lambda c: -c.rate)[:compiles]
    say(f"{name}: {len(every)} candidates, {len(fitting)} fit by estimate, compiling {len(ranked)}")
    rows = []
    for candidate in ranked:
        target = candidate.target
        axes = " x ".join(f"{a} {n}" for a, n in target.mesh.shape.items() if n > 1)
        say(
            f"{name}: {axes or 'one device'}, batch {target.config.train.batch_size}, "
            f"remat {target.config.remat.single_blocks}, "
            f"frozen weights {planner.frozen_layout(target)}"
        )
        rows.append(planner.compile_row(target))
    return sorted(rows, key=lambda row: (not row.fits, -(row.examples_per_chip_second or 0)))


def candidates(config: Config, name: str, slices: int = 1) -> Iterator[Candidate]:
    """Every mesh, batch and remat setting that the checks let pass, with its estimate."""
    chips = planner.parse(name, slices)
    shapes = [
        dataclasses.replace(config.mesh, data=-1, fsdp=fsdp, tensor=1, context=context)
        for context in (1, 2, 4)
        for fsdp in _powers(chips.devices // slices // context)
    ]
    for mesh in shapes:
        for per_chip in BATCHES:
            try:
                target = planner.target(
                    dataclasses.replace(config, mesh=mesh), name, slices, per_chip
                )
            except (InputError, ConfigError):
                continue
            choices = [target, planner.sharded(target)] if target.saving else [target]
            for choice, remat in itertools.product(choices, REMATS):
                settled = dataclasses.replace(choice.config, remat=remat)
                yield estimate(dataclasses.replace(choice, config=settled))


def estimate(target: Target) -> Candidate:
    """Memory and time of a target, without a compiler."""
    config, mesh = target.config, dict(target.mesh.shape)
    share = mesh["tensor"] * mesh["context"]
    rows = config.train.batch_size / (mesh["data"] * mesh["fsdp"]) / config.train.accumulation
    kept, recomputed = activations(config)
    total, trained, flops = _work(planner.without_layout(config))
    gathered = 2 * (trained if target.saving else total)  # bfloat16
    gradients = 2 * trained / (mesh["fsdp"] * mesh["tensor"])
    widest = 8 * config.model.mmdit.mlp_width * tokens(config)[0] * 2 * rows / share
    memory = target.state_bytes + 2 * gradients + kept * rows / share + widest + 2**30
    flops *= config.train.batch_size / target.topology.chips
    chip = target.topology.chip
    compute = flops * (1 + recomputed) / (EFFICIENCY * chip.flops)
    traffic = 3 * gathered / mesh["tensor"] * (mesh["fsdp"] > 1) / (2 * chip.link)
    return Candidate(target, max(compute, traffic) * 1.02, memory / GIB)


@functools.lru_cache(maxsize=8)
def _work(config: Config) -> tuple[int, int, float]:
    """Parameters, those that train, and model FLOPs of one example."""
    return *program.parameters(config), program.model_flops(config)


def activations(config: Config) -> tuple[float, float]:
    """Bytes kept for the backward pass of one example, and the share of model FLOPs run again."""
    model, (joint, language) = config.model, tokens(config)
    mmdit, mllm = model.mmdit, model.mllm
    stacks = [
        (config.remat.double_blocks, mmdit.double_blocks, mmdit.width, mmdit.mlp_width, joint),
        (config.remat.single_blocks, mmdit.single_blocks, mmdit.width, mmdit.mlp_width, joint),
    ]
    if config.train.task == "edit":
        stacks.append((config.remat.mllm, mllm.layers, mllm.width, 2 * mllm.mlp_width, language))
    kept = again = whole = 0.0
    for setting, layers, width, hidden, count in stacks:
        sizes = {
            "input": width,
            "qkv": 3 * width,
            "attention": width,
            "proj": width,
            "mlp": hidden,
            "out": width,
        }
        products = {
            "qkv": 3 * width**2,
            "proj": width**2,
            "mlp": width * hidden,
            "out": width * hidden,
            "attention": count * width,
        }
        named = sizes if setting == "off" else {"input", *_kept(setting)}
        kept += layers * count * 2 * sum(size for key, size in sizes.items() if key in named)
        again += layers * count * sum(v for key, v in products.items() if key not in named)
        whole += layers * count * sum(products.values())
    return kept, again / whole / 3


def tokens(config: Config) -> tuple[int, int]:
    """Of one example: the MMDiT's joint sequence, the language model's."""
    model, side = config.model, config.data.image_size
    latent = side // model.autoencoder.downsampling
    image = (latent // model.mmdit.patch_size) ** 2 * (1 + (model.mmdit.source == "sequence"))
    queries = 2 * model.cme.queries if model.cme.enabled else model.qformer.queries
    patches = (model.vision.image_size // model.vision.patch_size) ** 2
    cues = (patches + model.regions.max_regions + model.frce.max_objects) * model.frce.enabled
    language = patches + cues + model.mllm.max_length + model.mllm.image_tokens
    return image + queries, language


def _kept(setting: str) -> tuple[str, ...]:
    return () if setting == "full" else parse(setting)[0]


def _powers(limit: int) -> list[int]:
    return [2**i for i in range(int(math.log2(max(limit, 1))) + 1)]
