"""The flow model as a training task of its own, from latents and conditioning made elsewhere."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from rb_jax.config import Config
from rb_jax.models.flow import sampler
from rb_jax.models.flow.breakdown import loss_by_time
from rb_jax.models.flow.training import row_keys, training_loss
from rb_jax.models.mmdit.model import MMDiT
from rb_jax.models.types import FlowBatch


class MMDiTTrainer(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs):
        model = config.model
        self.config = config
        self.mmdit = MMDiT(model.mmdit, model.autoencoder.latent_channels, model.text.width, rngs)

    def loss(
        self, batch: FlowBatch, rng: jax.Array, rows: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """L_DM."""
        losses, t = training_loss(
            self.velocity,
            batch.target_latent,
            batch.conditioning,
            rng,
            rows,
            self.config.flow,
            self.mmdit.tokens(batch.target_latent.shape),
        )
        return losses.mean(), {"loss_flow": losses.mean()} | loss_by_time(losses, t)

    def sample_latents(self, batch: FlowBatch, rng: jax.Array) -> Float[Array, "B H W C"]:
        """Latents of new pictures, by the configuration's steps and guidance."""
        flow, shape = self.config.flow, batch.target_latent.shape
        return sampler.sample(
            self.velocity,
            batch.conditioning,
            row_keys(rng, shape[0]),
            shape,
            flow,
            self.mmdit.tokens(shape),
        )

    def velocity(self, z_t, t, guidance, conditioning) -> Float[Array, "B H W C"]:
        with jax.named_scope("mmdit"):
            return self.mmdit.velocity(z_t, t, guidance, conditioning, self.config.remat)
