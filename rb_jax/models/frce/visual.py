"""VRCB, the visual reasoning cues branch (PAPER section 4.2; authors' models/frce.py)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from rb_jax.config import FRCEConfig
from rb_jax.models.layers.attention import MultiheadAttention
from rb_jax.models.layers.mlp import MLP
from rb_jax.models.layers.norms import LayerNorm
from rb_jax.models.layers.stack import scan_blocks, stack


class TransformerBlock(nnx.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attn = MultiheadAttention(width, heads, rngs)
        self.norm2 = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.mlp = MLP(width, 4 * width, rngs)

    def __call__(
        self, x: Float[Array, "B T C"], mask: Bool[Array, "B T"] | None
    ) -> Float[Array, "B T C"]:
        x = x + self.attn(self.norm1(x), key_mask=mask)
        return x + self.mlp(self.norm2(x))


class CueBranch(nnx.Module):
    """Projects tokens to the cue width and refines them: the patch or the region branch."""

    def __init__(self, in_width: int, config: FRCEConfig, layers: int, rngs: nnx.Rngs):
        self.proj_in = nnx.Linear(in_width, config.width, rngs=rngs)
        self.blocks = stack(lambda r: TransformerBlock(config.width, config.heads, r), layers, rngs)
        self.norm = LayerNorm(config.width, epsilon=1e-5, rngs=rngs)
        # The authors keep this embedding beside the branch (local_type_emb, global_type_emb).
        self.type_embedding = nnx.Param(
            nnx.initializers.truncated_normal(0.02)(rngs.params(), (config.width,))
        )

    def __call__(
        self,
        tokens: Float[Array, "B T C_in"],
        mask: Bool[Array, "B T"] | None = None,
        remat: str = "off",
    ) -> Float[Array, "B T C"]:
        x, _ = scan_blocks(
            self.blocks, self.proj_in(tokens), lambda block, h: block(h, mask), remat=remat
        )
        return self.norm(x) + self.type_embedding[...]


class VisualCues(nnx.Module):
    """R_V: refined patch tokens (local) beside refined region tokens (global)."""

    def __init__(self, patch_width: int, region_width: int, config: FRCEConfig, rngs: nnx.Rngs):
        if config.patch_branch:
            self.patch_branch = CueBranch(patch_width, config, config.patch_layers, rngs)
        if config.region_branch:
            self.region_branch = CueBranch(region_width, config, config.region_layers, rngs)

    def __call__(
        self,
        patches: Float[Array, "B P C_i"],
        regions: Float[Array, "B R C_r"],
        region_mask: Bool[Array, "B R"],
        remat: str = "off",
    ) -> tuple[Float[Array, "B V C"], Bool[Array, "B V"]]:
        """Cues and their mask; V = P + R, or one of them when a branch is switched off."""
        cues, masks = [], []
        if hasattr(self, "patch_branch"):
            cues.append(self.patch_branch(patches, remat=remat))
            masks.append(jnp.ones(patches.shape[:2], bool))
        if hasattr(self, "region_branch"):
            cues.append(self.region_branch(regions, region_mask, remat))
            masks.append(region_mask)
        return jnp.concatenate(cues, axis=1), jnp.concatenate(masks, axis=1)
