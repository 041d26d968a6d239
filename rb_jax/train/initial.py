"""What a run starts from: another model's weights, or its encoders alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import numpy as np

from rb_jax.checkpoint.stored import load_weights
from rb_jax.config import Config
from rb_jax.errors import InputError
from rb_jax.models.types import ENCODERS
from rb_jax.sharding.rules import param_shardings
from rb_jax.weights.folder import (
    SHIPPED,
    differing_model_keys,
    has_weights,
    open_weights,
    resolve,
)
from rb_jax.weights.params import Params, check_weights, definition


def check_sources(config: Config) -> None:
    """InputError when the weights to start from are not there."""
    for key in SHIPPED:
        source = getattr(config.train, key)
        if source and not resolve(source, SHIPPED[key]).exists():
            raise InputError(f"config.train.{key}={source!r}: no such folder")


def initial_weights(config: Config) -> Params:
    """What config.train.init_from or .autoencoder_from put in place of the random values.

    ``init_from`` brings the whole model; without it, ``autoencoder_from`` brings the autoencoder.
    A model of cached features takes no encoders. Raises InputError when the other model's
    configuration differs, naming the keys.
    """
    without = config.data.inputs == "features"
    for key, parts in (("init_from", ("model",)), ("autoencoder_from", ("model", "autoencoder"))):
        source = getattr(config.train, key)
        if not source or (without and key == "autoencoder_from"):
            continue
        other, params = load_weights(resolve(source, SHIPPED[key]))
        differing = differing_model_keys(other, config, parts)
        if differing:
            raise InputError(
                f"config.train.{key}={source!r} has another model: {', '.join(differing)} differ"
            )
        if key == "init_from":
            if without:
                params = {p: x for p, x in params.items() if p.split("/")[0] not in ENCODERS}
            check_weights(params, definition(config)[1], where=f"config.train.init_from={source!r}")
            return params
        return {path: v for path, v in params.items() if path.startswith("autoencoder/")}
    return {}


def encoder_weights(config: Config, stages: Collection[str] = ENCODERS) -> tuple[Config, Params]:
    """These encoders of config.train.init_from, and its configuration; nothing without a source.

    The rest of the model is not read. Raises InputError as ``load_weights``.
    """
    if not config.train.init_from:
        return config, {}
    folder = resolve(config.train.init_from)
    if not has_weights(folder):
        other, params = load_weights(folder)
        return other, {path: x for path, x in params.items() if path.split("/")[0] in stages}
    other, files = open_weights(folder)
    wanted = {p: x for p, x in definition(other)[1].items() if p.split("/")[0] in stages}
    params = {path: files.read(path, checksum=True) for path in files if path in wanted}
    check_weights(params, wanted, where=f"the encoders in {folder}")
    return other, params


def whole_model(config: Config, params: Params) -> tuple[Config, Params]:
    """A model trained from cached features with the encoders that it started with, if any.

    Such a model can edit pictures; others are returned as they are.
    """
    if config.data.inputs == "pixels" or config.train.task != "edit":
        return config, params
    other, encoders = encoder_weights(config)
    if not encoders:
        return config, params
    data = dataclasses.replace(other.data, image_size=config.data.image_size)
    return dataclasses.replace(config, data=data), encoders | params


def distributed(weights: Params, mesh: jax.sharding.Mesh) -> Params:
    """Host arrays placed on the mesh, shard by shard: no device ever holds a whole model."""
    layouts = param_shardings(mesh, weights)
    return {
        path: jax.make_array_from_callback(np.shape(x), layouts[path], x.__getitem__)
        for path, x in weights.items()
    }
