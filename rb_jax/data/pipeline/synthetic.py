"""Noise of the shapes that a configuration trains on, to time a machine or to plan one.

For every task and kind of input, so that a pod can be filled before any data set is there.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from rb_jax.config import Config
from rb_jax.data.pipeline.collate import OBJECT_TOKENS
from rb_jax.models.types import (
    AnyBatch,
    Batch,
    Conditioning,
    FeatureBatch,
    Features,
    FlowBatch,
    Text,
)

Shape = jax.ShapeDtypeStruct


def batch_shapes(config: Config, rows: int) -> AnyBatch:
    """The shapes and dtypes of a batch for ``config.train.task`` and ``config.data.inputs``."""

    def made() -> AnyBatch:
        if config.train.task == "mmdit":
            return FlowBatch(_conditioning(config, rows), _latent(config, rows))
        if config.data.inputs == "features":
            return FeatureBatch(_features(config, rows), _latent(config, rows))
        return _pixels(config, rows)

    return jax.eval_shape(made)  # records check the arrays that they are made of


def _pixels(config: Config, rows: int) -> Batch:
    model, side = config.model, config.data.image_size
    objects, regions = model.frce.max_objects, model.regions.max_regions
    grid = model.region_grid(side)
    picture = jnp.zeros((rows, side, side, 3), jnp.uint8)
    return Batch(
        source=picture,
        target=picture,
        text=_text(rows, model.text.max_length),
        prompt=_text(rows, model.mllm.max_length),
        objects=_text(rows, objects, OBJECT_TOKENS),
        object_mask=_mask(rows, objects),
        regions=_mask(rows, regions, grid, grid),
        region_mask=_mask(rows, regions),
        category=jnp.zeros(rows, jnp.int32),
    )


def _features(config: Config, rows: int) -> Features:
    model = config.model
    patches, width = (model.vision.image_size // model.vision.patch_size) ** 2, model.vision.width
    text, objects, regions = model.text, model.frce.max_objects, model.regions

    def values(*shape: int) -> jax.Array:
        return jnp.zeros((rows, *shape), model.dtype)

    return Features(
        image=values(patches + 1, width),
        patches=values(patches, width),
        regions=values(regions.max_regions, regions.width),
        region_mask=_mask(rows, regions.max_regions),
        text=values(text.max_length, text.width),
        text_mask=_mask(rows, text.max_length),
        pooled=values(text.width),
        objects=values(objects, text.width),
        object_mask=_mask(rows, objects),
        prompt=_text(rows, model.mllm.max_length),
        source_latent=_latent(config, rows),
    )


def _conditioning(config: Config, rows: int) -> Conditioning:
    model = config.model
    queries = 2 * model.cme.queries if model.cme.enabled else model.qformer.queries
    return Conditioning(
        jnp.zeros((rows, queries, model.mmdit.context_width), model.dtype),
        jnp.zeros((rows, model.text.width), model.dtype),
        _latent(config, rows),
    )


def batches(config: Config, rows: Int[np.ndarray, " R"] | None = None) -> Iterator[AnyBatch]:
    """These rows (default: all) of a global batch that is the same at every step.

    What a row holds depends on its number alone, whichever process makes it.
    """
    shapes = batch_shapes(config, 1)
    numbers = range(config.train.batch_size) if rows is None else rows

    def row(number: int) -> AnyBatch:
        rng = np.random.default_rng([config.data.seed, number])
        return jax.tree.map(lambda shape: _noise(rng, shape), shapes)

    noise = [row(int(number)) for number in numbers]
    batch = jax.tree.map(lambda *parts: np.concatenate(parts), *noise)
    while True:
        yield batch


def _noise(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    if shape.dtype == bool:
        mask = rng.random(shape.shape) < 0.8
        mask[..., 0] = True  # no row without content
        return mask
    if np.issubdtype(shape.dtype, np.integer):
        return rng.integers(0, 256, shape.shape).astype(shape.dtype)
    return rng.standard_normal(shape.shape, np.float32).astype(shape.dtype)


def _text(*shape: int) -> Text:
    return Text(jnp.zeros(shape, jnp.int32), _mask(*shape))


def _mask(*shape: int) -> jax.Array:
    return jnp.zeros(shape, bool)


def _latent(config: Config, rows: int) -> jax.Array:
    autoencoder = config.model.autoencoder
    side = config.data.image_size // autoencoder.downsampling
    return jnp.zeros((rows, side, side, autoencoder.latent_channels), config.model.dtype)
