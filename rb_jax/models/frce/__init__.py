"""FRCE, Fine-grained Reasoning Cue Extraction (PAPER section 4.2): Features -> Cues."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from rb_jax.config import ModelConfig
from rb_jax.models.frce.textual import IDController
from rb_jax.models.frce.visual import VisualCues
from rb_jax.models.types import Cues, Features


class FRCE(nnx.Module):
    """R_V from the picture's patches and regions, R_T from the objects the instruction names."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        frce = config.frce
        self.visual = VisualCues(config.vision.width, config.regions.width, frce, rngs)
        self.text_proj_in = nnx.Linear(config.text.width, frce.width, rngs=rngs)
        if frce.id_controller:
            self.id_controller = IDController(frce, rngs)

    def __call__(self, features: Features, remat: str = "off") -> Cues:
        """Without the ID Controller R_T is the projected object features, blind to the picture."""
        visual, visual_mask = self.visual(
            features.patches, features.regions, features.region_mask, remat
        )
        textual = self.text_proj_in(features.objects)
        if hasattr(self, "id_controller"):
            textual = self.id_controller(textual, visual, visual_mask, remat)
        return Cues(visual, visual_mask, textual, features.object_mask)


def no_cues(features: Features, width: int) -> Cues:
    """The cues of a model without FRCE: none."""
    batch, dtype = features.image.shape[0], features.image.dtype
    empty, mask = jnp.zeros((batch, 0, width), dtype), jnp.zeros((batch, 0), bool)
    return Cues(empty, mask, empty, mask)
