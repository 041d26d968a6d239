"""The Python face: ``Editor.from_pretrained().edit(image, instruction, seed=0) -> PIL.Image``."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from rb_jax.checkpoint.stored import load_weights
from rb_jax.config import Config
from rb_jax.config.schema import MAX_STEPS
from rb_jax.data.formats.schema import EditExample
from rb_jax.data.inputs.images import Picture, as_pixels, to_source_size, to_square
from rb_jax.data.pipeline.loader import Collator
from rb_jax.data.pipeline.sam_regions import with_regions
from rb_jax.errors import InputError
from rb_jax.models.pixels import psnr, to_float, to_uint8
from rb_jax.models.types import Batch
from rb_jax.runtime.compiling import compiled, fast_compile
from rb_jax.runtime.logging import LOG
from rb_jax.weights.params import Params, cast_params, definition, merge

# The shipped codec gives back ReasonWorld pictures better than this (dB), photographs worse.
FAMILIAR_PSNR = 25.5


class UnfamiliarPicture(UserWarning):
    """The picture is unlike everything the shipped model was trained on."""


class Editor:
    """A model with its weights, ready to edit pictures; keeps one compiled program per setting."""

    def __init__(self, config: Config, params: Params, reasonworld_only: bool = False):
        if config.train.task != "edit":
            raise InputError("these weights are an autoencoder's, not an editing model's")
        self.config = config
        self.reasonworld_only = reasonworld_only
        self.collate = Collator(config)
        self._graphdef = definition(config)[0]
        # Cast before they are JAX's, which would compile a program for each shape.
        self._params = jax.device_put(cast_params(config, params))
        self._programs: dict[tuple, Any] = {}
        self._codec = jax.jit(functools.partial(_reconstruct, self._graphdef))
        self._sample = jax.jit(
            functools.partial(_sample, self._graphdef), static_argnames=("steps", "true_cfg")
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str] | None = None) -> Editor:
        """The model in a weights folder or training workdir; None or "shipped" is the one that is
        shipped.

        Raises InputError when there is none or it does not fit its configuration.
        """
        source = "shipped" if folder is None else str(folder)
        LOG.info(
            "loading the weights of %s", "the shipped model" if source == "shipped" else source
        )
        config, params = load_weights(source)
        return cls(config, params, reasonworld_only=source == "shipped")

    def edit(
        self,
        image: Picture,
        instruction: str,
        *,
        objects: Sequence[str] = (),
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        true_cfg: float | None = None,
    ) -> Image.Image:
        """The picture after the hypothesis, at the source's size; same seed, same picture.

        ``objects`` are found in the instruction when left out. ``guidance`` is the distilled scale
        and ``true_cfg`` the classifier-free one; None takes the model's defaults. Raises
        InputError for an unreadable picture or an empty or over-long instruction.
        """
        if not isinstance(instruction, str):
            kind = type(instruction).__name__
            raise InputError(f"the instruction must be a text, got {kind}: {instruction!r:.60}")
        pixels = as_pixels(image)
        self.collate.check_texts([("", instruction)])
        square = to_square(pixels, self.config.data.image_size)
        example = EditExample("", "", instruction, tuple(objects), square, None, None)
        codec = self.reconstruct(square[None])[0]
        error = np.mean((codec.astype(np.float32) - square) ** 2)
        if self.reasonworld_only and psnr(float(error), 255.0) < FAMILIAR_PSNR:
            warnings.warn(
                "the shipped model has only seen ReasonWorld, and this picture is unlike it: "
                "do not expect a sensible edit (train on your own pictures with rb-jax train)",
                UnfamiliarPicture,
                stacklevel=2,
            )
        edited = self.edit_batch(
            [example], seed=seed, steps=steps, guidance=guidance, true_cfg=true_cfg
        )[0]
        return Image.fromarray(to_source_size(edited, codec, pixels))

    def edit_batch(
        self,
        examples: Sequence[EditExample],
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        true_cfg: float | None = None,
    ) -> UInt8[np.ndarray, "B S S 3"]:
        """Edits square pictures of the model's size; row i's noise depends on seed and i alone."""
        flow = self.config.flow
        steps = flow.steps if steps is None else steps
        guidance = flow.guidance if guidance is None else guidance
        true_cfg = flow.true_cfg if true_cfg is None else true_cfg
        check_sampling(seed, steps, guidance, true_cfg)
        if self.config.model.regions.encoder == "sam":
            sam, collate = merge(self._graphdef, self._params).sam, self.collate
            examples = [with_regions(sam, e, collate.grid, collate.max_regions) for e in examples]
        batch = dataclasses.replace(self.collate(examples), target=None)
        batch = jax.tree.map(jnp.asarray, batch)
        edited = self._call(
            f"the sampler of {steps} steps",
            self._sample,
            batch,
            jax.random.key(seed),
            jnp.float32(guidance),
            steps=steps,
            true_cfg=float(true_cfg),
        )
        return np.asarray(edited)

    def reconstruct(self, images: UInt8[np.ndarray, "B S S 3"]) -> UInt8[np.ndarray, "B S S 3"]:
        """Pictures through the autoencoder and back: the best any edit can look."""
        return np.asarray(self._call("the autoencoder", self._codec, jnp.asarray(images)))

    def _call(self, what: str, function: Any, *args: Any, **settings: Any) -> jax.Array:
        """Runs a jitted function of the parameters and ``args``, compiled when it is new."""
        shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(args))
        key = (what, shapes, tuple(settings.items()))
        if key not in self._programs:
            self._programs[key] = compiled(
                lambda: function.lower(self._params, *args, **settings),
                what,
                fast_compile(level=1),
                about=(self.config, self._params, args, settings),
            )
        return self._programs[key](self._params, *args)


def check_sampling(
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    true_cfg: float | None = None,
) -> None:
    """InputError for a setting that the sampler cannot have; None stands for the model's own.

    JAX would take other seeds for another one, or not at all.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be between 0 and {2**32 - 1}, got {seed}")
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps must be between 1 and {MAX_STEPS}, got {steps}")
    for name, value in (("guidance", guidance), ("true_cfg", true_cfg)):
        if value is not None and not 0 <= value <= 100:
            raise InputError(f"{name} must be between 0 and 100, got {value}")


def _sample(
    graphdef: nnx.GraphDef,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    guidance: Float[Array, ""],
    *,
    steps: int,
    true_cfg: float,
) -> UInt8[Array, "B S S 3"]:
    return to_uint8(merge(graphdef, params).sample(batch, rng, steps, guidance, true_cfg))


def _reconstruct(
    graphdef: nnx.GraphDef, params: Params, images: UInt8[Array, "B S S 3"]
) -> UInt8[Array, "B S S 3"]:
    autoencoder = merge(graphdef, params).autoencoder
    return to_uint8(autoencoder.decode(autoencoder.encode(to_float(images))))
