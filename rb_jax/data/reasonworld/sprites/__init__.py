"""How each kind of thing is drawn: one table from kind to drawing."""

from collections.abc import Callable

from rb_jax.data.reasonworld.canvas import Canvas
from rb_jax.data.reasonworld.scene import Thing
from rb_jax.data.reasonworld.sprites import causal, common, magic, physical, story, temporal

SPRITES: dict[str, Callable[[Canvas, Thing], None]] = {
    **common.SPRITES,
    **physical.SPRITES,
    **temporal.SPRITES,
    **causal.SPRITES,
    **story.SPRITES,
    **magic.SPRITES,
}
