"""TRCB, the textual reasoning cues branch (PAPER section 4.2; authors' models/id_controller.py)."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Bool, Float

from rb_jax.config import FRCEConfig
from rb_jax.models.layers.attention import MultiheadAttention
from rb_jax.models.layers.mlp import MLP
from rb_jax.models.layers.norms import LayerNorm
from rb_jax.models.layers.stack import scan_blocks, stack


class ControllerBlock(nnx.Module):
    """Objects attend to the visual cues, then a feed-forward layer."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm_q = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.norm_kv = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attn = MultiheadAttention(width, heads, rngs)
        self.norm_ff = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.ff = MLP(width, 4 * width, rngs)

    def __call__(
        self,
        objects: Float[Array, "B O C"],
        cues: Float[Array, "B V C"],
        cue_mask: Bool[Array, "B V"],
    ) -> Float[Array, "B O C"]:
        x = objects + self.attn(self.norm_q(objects), self.norm_kv(cues), cue_mask)
        return x + self.ff(self.norm_ff(x))


class IDController(nnx.Module):
    """R_T = FFN(CrossAttn(Q = objects, K = V = R_V)), several times."""

    def __init__(self, config: FRCEConfig, rngs: nnx.Rngs):
        self.layers = stack(
            lambda r: ControllerBlock(config.width, config.heads, r),
            config.id_controller_layers,
            rngs,
        )
        self.out_norm = LayerNorm(config.width, epsilon=1e-5, rngs=rngs)

    def __call__(
        self,
        objects: Float[Array, "B O C"],
        cues: Float[Array, "B V C"],
        cue_mask: Bool[Array, "B V"],
        remat: str = "off",
    ) -> Float[Array, "B O C"]:
        x, _ = scan_blocks(
            self.layers, objects, lambda block, h: block(h, cues, cue_mask), remat=remat
        )
        return self.out_norm(x)
