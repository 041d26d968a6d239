"""A small SAM with random weights; every width differs."""

import functools

from flax import nnx

from rb_jax.config import SAMConfig
from rb_jax.models.encoders.sam import SAM
from rb_jax.weights.params import merge
from tests import tiny

CONFIG = SAMConfig(
    image_size=20,
    patch_size=4,
    width=12,
    layers=4,
    heads=3,
    mlp_width=22,
    window_size=2,
    global_layers=(0, 2),
    out_channels=16,
    decoder_heads=2,
    decoder_mlp_width=24,
    iou_head_width=18,
    mask_channels=8,
)


def build(make):
    """The graph of a module and random weights for it."""
    graph, variables = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    shapes = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(variables)}
    return graph, tiny.weights(shapes)


@functools.cache
def sam():
    return merge(*build(lambda rngs: SAM(CONFIG, rngs)))
