"""ReasonWorld: a procedural micro-world of hypothetical edits with known right answers."""

from rb_jax.config.sizes import CATEGORIES
from rb_jax.data.reasonworld.world import FAMILIES, SPLITS, Example, ReasonWorld

__all__ = ["CATEGORIES", "FAMILIES", "SPLITS", "Example", "ReasonWorld"]
