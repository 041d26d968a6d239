"""A whole model beside ReasonBrainTorch, stage by stage and from noise to picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from rb_jax.config import Config
from rb_jax.data.pipeline.collate import OBJECT_TOKENS
from rb_jax.errors import InputError, listed
from rb_jax.models.flow.training import row_keys
from rb_jax.models.frce import no_cues
from rb_jax.models.reasonbrain import ReasonBrain
from rb_jax.models.types import Array, Batch, Conditioning, Cues, Features, Text
from rb_jax.port.parity.pair import (
    GUIDANCE,
    ROWS,
    TIMES,
    lengths_mask,
    normal,
    pictures,
    tensor,
    tensors,
    words,
)
from rb_jax.port.parity.report import Stages
from rb_jax.port.torch import ReasonBrainTorch, records
from rb_jax.weights.folder import differing_model_keys
from rb_jax.weights.params import definition, merge


class Given(NamedTuple):
    """What both sides are given."""

    batch: Batch
    z_t: Array  # [B H W C], the flow model's input
    guidance: Array  # [B]


class Run(NamedTuple):
    """Our stages. PyTorch's side of a stage starts from these, not from its own stage before."""

    features: Features
    cues: Cues
    v: Array
    mllm_loss: Array
    v_hat: Array
    conditioning: Conditioning
    velocities: list[Array]
    decoded: Array


def run_whole(
    config: Config, params: Mapping[str, Any], reference: Path, seed: int
) -> tuple[Stages, tuple[np.ndarray, np.ndarray]]:
    """Every stage, and the edited pictures [B S S 3] of both sides from the same noise.

    Raises InputError when ``reference`` is not a folder of --format=torch, or of another model.
    """
    twin = ReasonBrainTorch.from_pretrained(reference)
    differing = differing_model_keys(config, twin.config)
    if differing:
        raise InputError(f"{reference} is another model: {listed(differing)} differ")
    graph = definition(config)[0]
    params = {path: np.asarray(value, np.float32) for path, value in params.items()}
    given, key = random_inputs(config, np.random.default_rng(seed)), jax.random.key(seed)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        ours = jax.jit(lambda p, x: run(merge(graph, p), x))(params, given)
        stages = {name: (np.asarray(a), b.numpy()) for name, (a, b) in beside(ours, twin, given)}
        edit = jax.jit(lambda p, x, k: merge(graph, p).sample(x, k))(params, given.batch, key)
        noise = np.asarray(sample_noise(key, given.z_t.shape))
        edit_of_twin = twin.sample(tensors(given.batch, records.Batch), noise).numpy()
    return stages, (np.asarray(edit), edit_of_twin)


def latent_side(config: Config) -> int:
    return config.data.image_size // config.model.autoencoder.downsampling


def random_inputs(config: Config, rng: np.random.Generator) -> Given:
    """Pictures, words, regions and noise; every kind of padding is among them."""
    model, size = config.model, config.data.image_size
    grid, side = model.region_grid(size), latent_side(config)
    names = [
        Text(*words(rng, model.text.vocab_size, OBJECT_TOKENS))
        for _ in range(model.frce.max_objects)
    ]
    batch = Batch(
        source=pictures(rng, size),
        target=None,
        text=Text(*words(rng, model.text.vocab_size, model.text.max_length)),
        prompt=Text(*words(rng, model.mllm.vocab_size, model.mllm.max_length)),
        objects=jax.tree.map(lambda *rows: np.stack(rows, axis=1), *names),
        object_mask=lengths_mask(rng, 0, model.frce.max_objects),
        regions=rng.random((ROWS, model.regions.max_regions, grid, grid)) > 0.5,
        region_mask=lengths_mask(rng, 0, model.regions.max_regions),
    )
    z_t = normal(rng, ROWS, side, side, model.autoencoder.latent_channels)
    return Given(batch, z_t, np.array(GUIDANCE, np.float32))


def run(model: ReasonBrain, given: Given) -> Run:
    """Our side."""
    config, batch = model.config.model, given.batch
    features = model.encode(batch)
    cues = model.frce(features) if config.frce.enabled else no_cues(features, config.frce.width)
    v, mllm_loss = model.mllm(features, cues)
    v_hat = model.qformer(v)
    tokens = model._enhance(v_hat, features, cues)
    conditioning = Conditioning(tokens, features.pooled, features.source_latent)
    velocities = [
        model.velocity(given.z_t, jnp.full(ROWS, t), given.guidance, conditioning) for t in TIMES
    ]
    decoded = model.autoencoder.decode(features.source_latent)
    return Run(features, cues, v, mllm_loss, v_hat, conditioning, velocities, decoded)


def beside(ours: Run, twin: ReasonBrainTorch, given: Given) -> list[tuple[str, tuple[Any, Any]]]:
    """Name and both sides of each stage, in the order of the computation."""
    theirs = twin.encode(tensors(given.batch, records.Batch))
    features, cues = tensors(ours.features, records.Features), tensors(ours.cues, records.Cues)
    conditioning = tensors(ours.conditioning, records.Conditioning)
    v, v_hat = tensor(ours.v), tensor(ours.v_hat)
    cues_of_twin = twin.frce(features)
    v_of_twin, mllm_loss = twin.visual_guidance(features, cues)
    if twin.config.model.cme.enabled:
        enhanced = torch.cat(twin.enhance(v_hat, features, cues), dim=1)
        tokens = twin.own.cme_proj(enhanced)
    else:
        tokens = twin.own.cond_proj(v_hat)
    names = {
        "vision": "image",
        "patches": "patches",
        "text": "text",
        "pooled": "pooled",
        "objects": "objects",
        "regions": "regions",
        "source latent": "source_latent",
    }
    encoded = [(n, (getattr(ours.features, f), getattr(theirs, f))) for n, f in names.items()]
    velocities = [
        twin.velocity(
            tensor(given.z_t), torch.full((ROWS,), t), tensor(given.guidance), conditioning
        )
        for t in TIMES
    ]
    return [
        *encoded,
        ("visual cues", (ours.cues.visual, cues_of_twin.visual)),
        ("textual cues", (ours.cues.textual, cues_of_twin.textual)),
        ("V", (ours.v, v_of_twin)),
        ("L_MLLM", (ours.mllm_loss, mllm_loss)),
        ("V_hat", (ours.v_hat, twin.qformer(v))),
        ("conditioning tokens", (ours.conditioning.tokens, tokens)),
        *[(f"velocity at t={TIMES[i]}", (ours.velocities[i], v)) for i, v in enumerate(velocities)],
        ("decoded picture", (ours.decoded, twin.decode(features.source_latent))),
    ]


def sample_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise that ReasonBrain.sample draws: each row's depends on the key and its number."""
    return jax.vmap(lambda row: jax.random.normal(row, shape[1:]))(row_keys(key, shape[0]))
