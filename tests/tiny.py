"""One small model for all tests: every width differs, so no joint works by accident."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rb_jax.config import Config, from_config_dict, to_config_dict
from rb_jax.models.types import Batch, Conditioning, Cues, Features, Text
from rb_jax.train import state
from rb_jax.weights.params import Params, merge

CHANGES = {
    "model.vision": dict(
        image_size=24, patch_size=8, width=24, layers=3, heads=3, mlp_width=100, feature_layer=-2
    ),
    "model.text": dict(vocab_size=1031, max_length=36, width=40, heads=4, mlp_width=152),
    "model.regions": dict(width=20, stride=4, max_regions=5),
    "model.autoencoder": dict(
        channels=8,
        channel_mult=(1, 1, 2),
        latent_channels=3,
        norm_groups=4,
        scale_factor=0.7,
        shift_factor=0.1,
    ),
    "model.frce": dict(width=56, heads=7, patch_layers=2, id_controller_layers=2, max_objects=3),
    "model.mllm": dict(
        vocab_size=1047,
        max_length=38,
        width=48,
        mlp_width=76,
        layers=2,
        heads=6,
        kv_heads=2,
        image_tokens=5,
        lora_rank=2,
        lora_alpha=6.0,
    ),
    "model.qformer": dict(width=36, heads=3, queries=7),
    "model.cme": dict(width=44, queries=9),
    "model.mmdit": dict(
        width=60, heads=3, mlp_ratio=2.0, single_blocks=3, context_width=52, axes_dim=(4, 8, 8)
    ),
    "flow": dict(steps=2),
    "data": dict(image_size=32, count=37, prepare=False),
    "optimizer": dict(warmup_steps=2),
    "train": dict(steps=6, batch_size=4, autoencoder_from=""),
}

definition = state.definition


def config(**changes: Any) -> Config:
    """The small model; ``changes`` are dotted keys with ``__`` for the dot: ``train__steps``."""
    values = to_config_dict(Config())
    flat = {f"{group}.{key}": v for group, keys in CHANGES.items() for key, v in keys.items()}
    values.update_from_flattened_dict(flat)
    values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return from_config_dict(values)


CONFIG = config()


def text(rng: np.random.Generator, *shape: int) -> Text:
    """Random left-aligned rows of two tokens or more, always with some padding (zeros)."""
    lengths = rng.integers(2, shape[-1], shape[:-1])
    mask = np.arange(shape[-1]) < lengths[..., None]
    return Text(np.where(mask, rng.integers(3, 1000, shape), 0).astype(np.int32), mask)


def batch(config: Config = CONFIG, rows: int = 3, seed: int = 2) -> Batch:
    """Noise of the shapes that the configuration asks for; every row has padding of every kind."""
    rng, model, side = np.random.default_rng(seed), config.model, config.data.image_size
    objects, regions, grid = model.frce.max_objects, model.regions.max_regions, model.regions.stride
    pictures = rng.integers(0, 256, (2, rows, side, side, 3)).astype(np.uint8)
    return Batch(
        source=pictures[0],
        target=pictures[1],
        text=text(rng, rows, model.text.max_length),
        prompt=text(rng, rows, model.mllm.max_length),
        objects=text(rng, rows, objects, 4),
        object_mask=np.arange(objects) < rng.integers(1, objects, (rows, 1)),
        regions=rng.random((rows, regions, side // grid, side // grid)) > 0.5,
        region_mask=np.arange(regions) < rng.integers(1, regions, (rows, 1)),
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def features(config: Config = CONFIG, rows: int = 3, seed: int = 2) -> Features:
    """What the encoders might say of ``batch(config, rows, seed)``."""
    model, made = config.model, batch(config, rows, seed)
    patches = (model.vision.image_size // model.vision.patch_size) ** 2
    latent = config.data.image_size // model.autoencoder.downsampling
    text, objects, regions = (
        x.shape[1] for x in (made.text.ids, made.object_mask, made.region_mask)
    )
    return Features(
        image=normal(rows, patches + 1, model.vision.width, seed=seed),
        patches=normal(rows, patches, model.vision.width, seed=seed),
        regions=normal(rows, regions, model.regions.width, seed=seed),
        region_mask=made.region_mask,
        text=normal(rows, text, model.text.width, seed=seed),
        text_mask=made.text.mask,
        pooled=normal(rows, model.text.width, seed=seed),
        objects=normal(rows, objects, model.text.width, seed=seed),
        object_mask=made.object_mask,
        prompt=made.prompt,
        source_latent=normal(rows, latent, latent, model.autoencoder.latent_channels, seed=seed),
    )


def cues(features: Features, config: Config = CONFIG) -> Cues:
    """What FRCE might make of them."""
    rows, patches, width = len(features.image), features.patches.shape[1], config.model.frce.width
    visual_mask = np.concatenate([np.ones((rows, patches), bool), features.region_mask], axis=1)
    objects = features.object_mask
    visual, textual = normal(*visual_mask.shape, width), normal(*objects.shape, width)
    return Cues(visual, visual_mask, textual, objects)


def weights(shapes: Mapping[str, Any], seed: int = 0) -> Params:
    """Random everywhere, also where training starts from zeros; scales of norms around one."""
    rng, values = np.random.default_rng(seed), {}
    for path, leaf in shapes.items():
        noise = 0.2 * rng.standard_normal(leaf.shape)
        values[path] = jnp.asarray(noise + path.endswith("scale"), leaf.dtype)
    return values


def conditioning(rows: int = 1, tokens: int = 18, config: Config = CONFIG) -> Conditioning:
    """What the reasoning stages might hand to the flow model."""
    model = config.model
    latent = config.data.image_size // model.autoencoder.downsampling
    return Conditioning(
        jnp.asarray(normal(rows, tokens, model.mmdit.context_width)),
        jnp.asarray(normal(rows, model.text.width)),
        jnp.asarray(normal(rows, latent, latent, model.autoencoder.latent_channels)),
    )


@functools.cache
def params(config: Config = CONFIG) -> Params:
    return weights(definition(config)[1])


def merged(values: Params, config: Config = CONFIG) -> Any:
    """The module with these weights."""
    return merge(definition(config)[0], values)


def jit(function: Callable, config: Config = CONFIG) -> Callable:
    """``function(model, *args)`` as a compiled function of (params, *args)."""
    return jax.jit(lambda p, *args: function(merged(p, config), *args))


def part(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Params, Callable]:
    """One stage alone: its random weights, and it compiled as a function of (weights, *args)."""
    graphdef, variables = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    shapes = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(variables)}
    return weights(shapes), jax.jit(lambda p, *args: merge(graphdef, p)(*args))
