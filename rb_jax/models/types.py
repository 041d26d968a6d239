"""The records that travel along the data path, and the legend of their axes.

    Batch --encode--> Features --frce--> Cues --mllm, qformer, cme--> Conditioning
    (z_t, t, Conditioning) --mmdit--> velocity

Axis legend (one letter names an axis everywhere in the package):

    B  batch                      Y X  image height, width, pixels  C  channels / width of a stage
    P  patch tokens of the image encoder, no class token            E  the same with the class token
    R  regions per picture          G_y G_x  cells of the region-mask grid, down and across
    V  visual cues (P + R)
    O  objects of an instruction
    T  text tokens (CLIP)         L  text tokens (language model)   K  tokens of one object's name
    I  [IMG] tokens               Q  learnable queries              M  conditioning tokens
    H W  latent height and width  N  packed image tokens            D  width of one packed token

Masks are boolean and True where there is content (padding is False).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

T = TypeVar("T")

if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray  # NumPy on the way in, JAX from the first stage on


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """A frozen dataclass that JAX walks through as a pytree.

    Trees may hold anything in the place of the arrays (shapes, shardings, tracers), so rebuilding
    one skips ``__init__``, where tests check the arrays' shapes.
    """
    dataclasses.dataclass(frozen=True)(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]

    def children(value: T):
        return [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in names], None

    def rebuild(_: None, values: Iterable[Any]) -> T:
        value = object.__new__(cls)
        value.__dict__.update(zip(names, values, strict=True))
        return value

    jax.tree_util.register_pytree_with_keys(cls, children, rebuild)
    return cls


@record
class Text:
    """Token ids with their mask; rows are left-aligned, padding comes last."""

    ids: Int[Array, "*B T"]
    mask: Bool[Array, "*B T"]


@record
class Batch:
    """What the loader hands to the model.

    ``target`` is None when editing. ``source_latent`` and ``target_latent`` are the autoencoder's
    latents (shifted and scaled posterior means), present when they were computed ahead of time.
    """

    source: UInt8[Array, "B Y X 3"]
    target: UInt8[Array, "B Y X 3"] | None
    text: Text  # [B T], for the CLIP text tower
    prompt: Text  # [B L], for the language model
    objects: Text  # [B O K], names of the objects in the instruction, for the CLIP text tower
    object_mask: Bool[Array, "B O"]
    regions: Bool[Array, "B R G_y G_x"]
    region_mask: Bool[Array, "B R"]
    source_latent: Float[Array, "B H W C"] | None = None
    target_latent: Float[Array, "B H W C"] | None = None
    category: Int[Array, " B"] | None = None  # place in CATEGORIES, -1 for none; for the logs


@record
class Features:
    """Outputs of the encoders: all that the later stages see of a picture and a sentence."""

    image: Float[Array, "B E C_i"]  # E_I(I), class token first; CME's visual enhancer
    patches: Float[Array, "B P C_i"]  # the layer LLaVA and FRCE read, class token dropped
    regions: Float[Array, "B R C_r"]  # region features, pooled over the region masks
    region_mask: Bool[Array, "B R"]
    text: Float[Array, "B T C_t"]  # E_T(H)
    text_mask: Bool[Array, "B T"]
    pooled: Float[Array, "B C_t"]  # CLIP's pooled text vector, the MMDiT's `vec`
    objects: Float[Array, "B O C_t"]  # pooled text vector of each object's name
    object_mask: Bool[Array, "B O"]
    prompt: Text  # [B L], token ids are the language model's own features
    source_latent: Float[Array, "B H W C_z"]


# The stages of the model that ``Features`` and latents come from.
ENCODERS = ("vision", "text", "regions", "sam", "autoencoder")
# All of them, in the order in which data passes.
STAGES = (*ENCODERS, "frce", "mllm", "qformer", "cme", "projections", "mmdit")


@record
class FeatureBatch:
    """A batch whose encoders ran ahead of time (config.data.inputs = "features")."""

    features: Features
    target_latent: Float[Array, "B H W C"]
    category: Int[Array, " B"] | None = None


@record
class Cues:
    """FRCE's outputs R_V and R_T (PAPER section 4.2)."""

    visual: Float[Array, "B V C"]
    visual_mask: Bool[Array, "B V"]
    textual: Float[Array, "B O C"]
    textual_mask: Bool[Array, "B O"]


@record
class Conditioning:
    """What the flow model is given besides z_t; it does not depend on the time t."""

    tokens: Float[Array, "B M C"]
    vector: Float[Array, "B C_v"]
    source_latent: Float[Array, "B H W C_z"]


@record
class FlowBatch:
    """A batch for the flow model alone (config.train.task = "mmdit")."""

    conditioning: Conditioning
    target_latent: Float[Array, "B H W C"]


AnyBatch = Batch | FeatureBatch | FlowBatch
