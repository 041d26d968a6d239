"""ReasonBrain, the whole model (arXiv 2507.01908): one arrow from a picture and a hypothesis.

    encode     source, instruction, objects  -> Features
    condition  Features -> Cues (FRCE) -> V (MLLM) -> V_hat (QFormer) -> R_bar (CME) -> Conditioning
    loss       L_MLLM + L_DM, the flow model's error on z_t given the Conditioning
    sample     noise -> edited picture, given the same Conditioning

The ablations of the paper are switches of the configuration: ``frce.enabled``,
``frce.patch_branch``, ``frce.region_branch``, ``frce.id_controller``, ``cme.enabled``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from rb_jax.cme import CME
from rb_jax.config import Config, ModelConfig
from rb_jax.encoders.clip import CLIPText, CLIPVision
from rb_jax.encoders.regions import RegionEncoder, masked_pool
from rb_jax.encoders.sam import SAM
from rb_jax.encoders.vae import Autoencoder, to_float
from rb_jax.flow import matching, sampler
from rb_jax.frce import FRCE, no_cues
from rb_jax.layers.linear import match_width
from rb_jax.mllm.llava import MLLM
from rb_jax.mmdit import MMDiT
from rb_jax.qformer import QFormer
from rb_jax.types import Batch, Conditioning, Cues, Features


class ConditionProjections(nnx.Module):
    """Linear maps between stages whose widths differ; where they agree there is none.

    ``cme_proj`` and ``cond_proj`` are the authors'; the others are ours, since the authors' default
    widths (768 into 1024) do not fit together.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        out = config.mmdit.context_width
        if not config.cme.enabled:
            self.cond_proj = nnx.Linear(config.qformer.width, out, use_bias=False, rngs=rngs)
            return
        width = config.cme.width
        self.v_hat = match_width(config.qformer.width, width, rngs)
        self.image = match_width(config.vision.width, width, rngs)
        self.text = match_width(config.text.width, width, rngs)
        self.visual_cues = match_width(config.frce.width, width, rngs)
        self.textual_cues = match_width(config.frce.width, width, rngs)
        self.cme_proj = nnx.Linear(width, out, use_bias=False, rngs=rngs)


class ReasonBrain(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs):
        model = config.model
        self.config = config
        # Encoders
        self.vision = CLIPVision(model.vision, rngs)
        self.text = CLIPText(model.text, rngs)
        if model.regions.encoder == "sam":
            self.sam = SAM(model.sam, rngs)
        else:
            self.regions = RegionEncoder(model.regions, rngs)
        self.autoencoder = Autoencoder(model.autoencoder, rngs)
        # Reasoning
        if model.frce.enabled:
            self.frce = FRCE(model, rngs)
        self.mllm = MLLM(model, rngs)
        self.qformer = QFormer(model.mllm.width, model.qformer, rngs)
        if model.cme.enabled:
            self.cme = CME(model.cme, rngs)
        self.projections = ConditionProjections(model, rngs)
        # Painting
        latent_channels = model.autoencoder.latent_channels
        self.mmdit = MMDiT(model.mmdit, latent_channels, model.text.width, rngs)

    def encode(self, batch: Batch) -> Features:
        """Everything the frozen encoders say of a batch; nothing later looks at its pixels."""
        remat = self.config.model.remat
        image, patches = self.vision(batch.source, remat)
        text, pooled = self.text(batch.text.ids, batch.text.mask, remat)
        source_latent = batch.source_latent
        if source_latent is None:
            source_latent = self.encode_latents(batch.source)
        return Features(
            image=image,
            patches=patches,
            regions=self._regions(batch, remat),
            region_mask=batch.region_mask,
            text=text,
            text_mask=batch.text.mask,
            pooled=pooled,
            objects=self.text.encode_objects(batch.objects, batch.object_mask, remat),
            object_mask=batch.object_mask,
            prompt=batch.prompt,
            source_latent=source_latent.astype(jnp.float32),
        )

    def _regions(self, batch: Batch, remat: bool) -> Float[Array, "B R C"]:
        """Features of each region: a map of the picture, averaged over the region's mask."""
        if self.config.model.regions.encoder == "sam":
            return masked_pool(self.sam.encode(batch.source, remat), batch.regions)
        return self.regions(batch.source, batch.regions)

    def encode_latents(self, images: UInt8[Array, "B S S 3"]) -> Float[Array, "B H W C"]:
        """Latents of pictures, shifted and scaled to about unit variance; no gradient."""
        return jax.lax.stop_gradient(self.autoencoder.encode(to_float(images)))

    def condition(self, features: Features) -> tuple[Conditioning, Float[Array, " B"]]:
        """The flow model's conditioning, and L_MLLM of each example (PAPER sections 4.1 to 4.3)."""
        model, remat = self.config.model, self.config.model.remat
        cues = (
            self.frce(features, remat)
            if model.frce.enabled
            else no_cues(features, model.frce.width)
        )
        v, mllm_loss = self.mllm(features, cues, remat)
        v_hat = self.qformer(v, remat)
        tokens = self._enhance(v_hat, features, cues)
        return Conditioning(tokens, features.pooled, features.source_latent), mllm_loss

    def _enhance(
        self, v_hat: Float[Array, "B Q C"], features: Features, cues: Cues
    ) -> Float[Array, "B M C2"]:
        """[R_bar_V, R_bar_T] at the MMDiT's context width; V_hat itself without the CME."""
        if not self.config.model.cme.enabled:
            return self.projections.cond_proj(v_hat)
        project, remat = self.projections, self.config.model.remat
        v_hat = project.v_hat(v_hat)
        image_mask = jnp.ones(features.image.shape[:2], bool)
        visual = self.cme.visual_enhancer(
            v_hat, project.image(features.image), image_mask,
            project.visual_cues(cues.visual), cues.visual_mask, remat,
        )  # fmt: skip
        textual = self.cme.textual_enhancer(
            v_hat, project.text(features.text), features.text_mask,
            project.textual_cues(cues.textual), cues.textual_mask, remat,
        )  # fmt: skip
        return project.cme_proj(jnp.concatenate([visual, textual], axis=1))

    def loss(self, batch: Batch, rng: jax.Array) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """L_MLLM + L_DM of a batch with targets; the weights are the configuration's."""
        flow, train = self.config.flow, self.config.train
        conditioning, mllm_loss = self.condition(self.encode(batch))
        x0 = batch.target_latent
        if x0 is None:
            assert batch.target is not None, "a batch without targets has no loss"
            x0 = self.encode_latents(batch.target)
        x0 = x0.astype(jnp.float32)
        time_rng, noise_rng, drop_rng, guidance_rng = jax.random.split(rng, 4)
        count = x0.shape[0]
        noise = jax.random.normal(noise_rng, x0.shape)
        t = matching.sample_times(time_rng, count, flow, self.tokens(x0.shape))
        guidance = jax.random.uniform(
            guidance_rng, (count,), minval=flow.guidance_range[0], maxval=flow.guidance_range[1]
        )
        conditioning = drop(conditioning, drop_rng, flow.drop_condition, flow.drop_source)
        z_t = matching.interpolate(x0, noise, t)
        velocity = self.velocity(z_t, t, guidance, conditioning)
        flow_loss = matching.flow_loss(velocity, x0, noise)
        loss_mllm, loss_flow = mllm_loss.mean(), flow_loss.mean()
        total = train.mllm_loss_weight * loss_mllm + train.flow_loss_weight * loss_flow
        return total, {"loss_flow": loss_flow, "loss_mllm": loss_mllm}

    def sample(
        self,
        batch: Batch,
        rng: jax.Array,
        steps: int | None = None,
        guidance: float | Float[Array, ""] | None = None,
        true_cfg: float | None = None,
    ) -> Float[Array, "B S S 3"]:
        """Edited pictures in [-1, 1]; None takes the configuration's value.

        ``guidance`` is the distilled scale the MMDiT is told; ``true_cfg`` mixes in a second,
        unconditional velocity (1 switches it off). Row i's noise depends on ``rng`` and i alone.
        """
        flow = self.config.flow
        steps = flow.steps if steps is None else steps
        guidance = flow.guidance if guidance is None else guidance
        scale = flow.true_cfg if true_cfg is None else true_cfg
        conditioning, _ = self.condition(self.encode(batch))
        shape = conditioning.source_latent.shape
        rows = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(shape[0]))
        noise = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(rows)
        guidances = jnp.full((shape[0],), guidance)
        null = without_condition(conditioning)

        def velocity(z, t):
            times = jnp.broadcast_to(t, shape[:1])
            v = self.velocity(z, times, guidances, conditioning)
            if scale == 1.0:
                return v
            return sampler.true_cfg(v, self.velocity(z, times, guidances, null), scale)

        times = sampler.schedule(flow, steps, self.tokens(shape))
        return self.autoencoder.decode(sampler.euler(velocity, noise, times))

    def velocity(
        self,
        z_t: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        guidance: Float[Array, " B"],
        conditioning: Conditioning,
    ) -> Float[Array, "B H W C"]:
        """eps - x0 at z_t, whichever of the two the MMDiT predicts."""
        out = self.mmdit(z_t, t, guidance, conditioning, self.config.model.remat)
        if self.config.model.mmdit.prediction == "velocity":
            return out
        return matching.velocity_of_data(out, z_t, t)

    def tokens(self, latent_shape: tuple[int, ...]) -> int:
        """Packed image tokens of a [B H W C] latent; decides the time shift."""
        return latent_shape[1] * latent_shape[2] // self.config.model.mmdit.patch_size**2


def without_condition(conditioning: Conditioning) -> Conditioning:
    """The null condition of classifier-free guidance: no words, no cues, the source stays."""
    return Conditioning(
        jnp.zeros_like(conditioning.tokens),
        jnp.zeros_like(conditioning.vector),
        conditioning.source_latent,
    )


def drop(
    conditioning: Conditioning, rng: jax.Array, drop_condition: float, drop_source: float
) -> Conditioning:
    """Blanks the condition, and independently the source, of a random share of the examples."""
    count = conditioning.tokens.shape[0]
    keep = 1.0 - jnp.array([drop_condition, drop_source])
    kept = jax.random.bernoulli(rng, keep[:, None], (2, count))

    def blank(x, keep_row):
        return jnp.where(keep_row.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    return Conditioning(
        blank(conditioning.tokens, kept[0]),
        blank(conditioning.vector, kept[0]),
        blank(conditioning.source_latent, kept[1]),
    )
