"""The FLUX-type multimodal diffusion transformer: (z_t, t, Conditioning) -> velocity."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.config import MMDiTConfig, RematConfig
from rb_jax.models.flow.matching import velocity_of_data
from rb_jax.models.layers.embeddings import TIMESTEP_WIDTH, MLPEmbedder, timestep_embedding
from rb_jax.models.layers.rope import axes_angles
from rb_jax.models.layers.stack import scan_blocks, stack
from rb_jax.models.mmdit.blocks import DoubleBlock, FinalLayer, SingleBlock, Sizes
from rb_jax.models.mmdit.latents import pack, position_ids, text_ids, unpack
from rb_jax.models.mmdit.tokens import join, pad_tokens, padding_mask, split
from rb_jax.models.types import Conditioning
from rb_jax.sharding.activations import constrain

NO_REMAT = RematConfig()


class MMDiT(nnx.Module):
    """Source conditioning is by ``channel`` (eq. 4: [z_t, source] in each token) or by ``sequence``
    (the source's tokens follow z_t's, with image id 1, as in FLUX.1 Kontext), or there is ``none``
    (text to image)."""

    def __init__(
        self, config: MMDiTConfig, latent_channels: int, vector_width: int, rngs: nnx.Rngs
    ):
        self.config = config
        width = config.width
        sizes = Sizes(width, config.heads, config.mlp_width, config.lora_rank, config.lora_alpha)
        self.img_in = nnx.Linear(config.token_width(latent_channels), width, rngs=rngs)
        self.txt_in = nnx.Linear(config.context_width, width, rngs=rngs)
        self.time_in = MLPEmbedder(TIMESTEP_WIDTH, width, rngs)
        self.vector_in = MLPEmbedder(vector_width, width, rngs)
        if config.guidance_embed:
            self.guidance_in = MLPEmbedder(TIMESTEP_WIDTH, width, rngs)
        self.double_blocks = stack(lambda r: DoubleBlock(sizes, r), config.double_blocks, rngs)
        self.single_blocks = stack(lambda r: SingleBlock(sizes, r), config.single_blocks, rngs)
        self.final_layer = FinalLayer(width, latent_channels * config.patch_size**2, rngs)

    def __call__(
        self,
        z_t: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        guidance: Float[Array, " B"],
        conditioning: Conditioning,
        remat: RematConfig = NO_REMAT,
    ) -> Float[Array, "B H W C"]:
        """The last layer's output, velocity or data, at time t (1 is noise, 0 is data), float32.

        ``guidance`` is the distilled guidance scale; ignored without ``guidance_embed``.
        """
        config, (_, height, width, _) = self.config, z_t.shape
        dtype, patch = self.img_in.kernel.dtype, config.patch_size
        vec = self.time_in(timestep_embedding(t)) + self.vector_in(conditioning.vector)
        if config.guidance_embed:
            vec = vec + self.guidance_in(timestep_embedding(guidance))
        img, ids = self._image_tokens(z_t, conditioning.source_latent)
        txt = conditioning.tokens
        angles = [
            pad_tokens(axes_angles(i, config.axes_dim, config.rope_theta)[None])[0]
            for i in (text_ids(txt.shape[1]), ids)
        ]
        mask = padding_mask(txt.shape[1], img.shape[1])
        img = constrain(self.img_in(pad_tokens(img).astype(dtype)), "batch", "tokens", None)
        txt = constrain(self.txt_in(pad_tokens(txt).astype(dtype)), "batch", "tokens", None)
        (img, txt), _ = scan_blocks(
            self.double_blocks,
            (img, txt),
            lambda block, c: block(c[0], c[1], vec, angles, mask),
            remat=remat.double_blocks,
            layout=("batch", "tokens"),
        )
        angle = join(angles[0][None], angles[1][None])[0]
        x, _ = scan_blocks(
            self.single_blocks,
            constrain(join(txt, img), "batch", "tokens", None),
            lambda block, h: block(h, vec, angle, mask),
            remat=remat.single_blocks,
            layout=("batch", "tokens"),
        )
        target_tokens = (height // patch) * (width // patch)
        x = self.final_layer(split(x, txt.shape[1])[1][:, :target_tokens], vec)
        return unpack(x.astype(jnp.float32), height, width, patch)

    def velocity(
        self,
        z_t: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        guidance: Float[Array, " B"],
        conditioning: Conditioning,
        remat: RematConfig = NO_REMAT,
    ) -> Float[Array, "B H W C"]:
        """eps - x0 at z_t, whichever of velocity and data the last layer predicts."""
        out = self(z_t, t, guidance, conditioning, remat)
        return out if self.config.prediction == "velocity" else velocity_of_data(out, z_t, t)

    def tokens(self, latent_shape: tuple[int, ...]) -> int:
        """Packed image tokens of a [B H W C] latent; decides the time shift."""
        return latent_shape[1] * latent_shape[2] // self.config.patch_size**2

    def _image_tokens(self, z_t, source):
        """Packed tokens [B N D] and their position ids [N 3]."""
        config, (_, height, width, _) = self.config, z_t.shape
        patch = config.patch_size
        ids = position_ids(height, width, patch)
        tokens, source_tokens = pack(z_t, patch), pack(source.astype(z_t.dtype), patch)
        if config.source == "channel":
            tokens = jnp.concatenate([tokens, source_tokens], axis=-1)
        elif config.source == "sequence":
            ids = jnp.concatenate([ids, position_ids(height, width, patch, image=1)])
            tokens = jnp.concatenate([tokens, source_tokens], axis=1)
        unused = self.img_in.in_features - tokens.shape[-1]
        return jnp.pad(tokens, ((0, 0), (0, 0), (0, unused))), ids
