"""The FLUX-type multimodal diffusion transformer: (z_t, t, Conditioning) -> velocity."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.config import MMDiTConfig
from rb_jax.layers.embeddings import TIMESTEP_WIDTH, MLPEmbedder, timestep_embedding
from rb_jax.layers.rope import axes_angles
from rb_jax.layers.stack import scan_blocks, stack
from rb_jax.mmdit.blocks import DoubleBlock, FinalLayer, SingleBlock
from rb_jax.mmdit.latents import pack, position_ids, text_ids, unpack
from rb_jax.types import Conditioning


class MMDiT(nnx.Module):
    """Source conditioning is by ``channel`` (eq. 4: [z_t, source] in each token) or by ``sequence``
    (the source's tokens follow z_t's, with image id 1, as in FLUX.1 Kontext)."""

    def __init__(
        self, config: MMDiTConfig, latent_channels: int, vector_width: int, rngs: nnx.Rngs
    ):
        self.config = config
        width = config.width
        args = (width, config.heads, config.mlp_width)
        self.img_in = nnx.Linear(config.token_width(latent_channels), width, rngs=rngs)
        self.txt_in = nnx.Linear(config.context_width, width, rngs=rngs)
        self.time_in = MLPEmbedder(TIMESTEP_WIDTH, width, rngs)
        self.vector_in = MLPEmbedder(vector_width, width, rngs)
        if config.guidance_embed:
            self.guidance_in = MLPEmbedder(TIMESTEP_WIDTH, width, rngs)
        self.double_blocks = stack(lambda r: DoubleBlock(*args, r), config.double_blocks, rngs)
        self.single_blocks = stack(lambda r: SingleBlock(*args, r), config.single_blocks, rngs)
        self.final_layer = FinalLayer(width, latent_channels * config.patch_size**2, rngs)

    def __call__(
        self,
        z_t: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        guidance: Float[Array, " B"],
        conditioning: Conditioning,
        remat: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Velocity eps - x0 at time t (1 is noise, 0 is data), float32.

        ``guidance`` is the distilled guidance scale; ignored without ``guidance_embed``.
        """
        config, (_, height, width, _) = self.config, z_t.shape
        dtype, patch = self.img_in.kernel.dtype, config.patch_size
        vec = self.time_in(timestep_embedding(t)) + self.vector_in(conditioning.vector)
        if config.guidance_embed:
            vec = vec + self.guidance_in(timestep_embedding(guidance))
        img, ids = self._image_tokens(z_t, conditioning.source_latent)
        img = self.img_in(img.astype(dtype))
        txt = self.txt_in(conditioning.tokens.astype(dtype))
        count = txt.shape[1]
        angle = axes_angles(
            jnp.concatenate([text_ids(count), ids]), config.axes_dim, config.rope_theta
        )
        (img, txt), _ = scan_blocks(
            self.double_blocks,
            (img, txt),
            lambda block, c: block(c[0], c[1], vec, angle),
            remat=remat,
        )
        x, _ = scan_blocks(
            self.single_blocks,
            jnp.concatenate([txt, img], axis=1),
            lambda block, h: block(h, vec, angle),
            remat=remat,
        )
        target_tokens = (height // patch) * (width // patch)
        x = self.final_layer(x[:, count : count + target_tokens], vec)
        return unpack(x.astype(jnp.float32), height, width, patch)

    def _image_tokens(self, z_t, source):
        """Packed tokens [B N D] and their position ids [N 3]."""
        config, (_, height, width, _) = self.config, z_t.shape
        patch = config.patch_size
        ids = position_ids(height, width, patch)
        tokens, source_tokens = pack(z_t, patch), pack(source.astype(z_t.dtype), patch)
        if config.source == "channel":
            tokens = jnp.concatenate([tokens, source_tokens], axis=-1)
        else:
            ids = jnp.concatenate([ids, position_ids(height, width, patch, image=1)])
            tokens = jnp.concatenate([tokens, source_tokens], axis=1)
        unused = self.img_in.in_features - tokens.shape[-1]
        return jnp.pad(tokens, ((0, 0), (0, 0), (0, unused))), ids
