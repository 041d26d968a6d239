"""ReasonBrain, the whole model (arXiv 2507.01908): one arrow from a picture and a hypothesis.

    encode     source, instruction, objects  -> Features
    condition  Features -> Cues (FRCE) -> V (MLLM) -> V_hat (QFormer) -> R_bar (CME) -> Conditioning
    loss       L_MLLM + L_DM, the flow model's error on z_t given the Conditioning
    sample     noise -> edited picture, given the same Conditioning

The ablations of the paper are switches of the configuration: ``frce.enabled``,
``frce.patch_branch``, ``frce.region_branch``, ``frce.id_controller``, ``cme.enabled``.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from rb_jax.config import Config, ModelConfig
from rb_jax.models.cme import CME
from rb_jax.models.encoders.clip import CLIPText, CLIPVision
from rb_jax.models.encoders.regions import RegionEncoder, masked_pool
from rb_jax.models.encoders.sam import SAM
from rb_jax.models.encoders.vae import Autoencoder
from rb_jax.models.flow import sampler
from rb_jax.models.flow.breakdown import loss_by_category, loss_by_time
from rb_jax.models.flow.training import row_keys, training_loss
from rb_jax.models.frce import FRCE, no_cues
from rb_jax.models.layers.linear import match_width
from rb_jax.models.mllm.llava import MLLM
from rb_jax.models.mmdit import MMDiT
from rb_jax.models.pixels import to_float
from rb_jax.models.qformer import QFormer
from rb_jax.models.types import Batch, Conditioning, Cues, FeatureBatch, Features
from rb_jax.sharding.activations import constrain

T = TypeVar("T")


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
        # Encoders, unless their features come ready-made
        if config.data.inputs == "pixels":
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
        remat = self.config.remat.others
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

    def _regions(self, batch: Batch, remat: str) -> Float[Array, "B R C"]:
        """Features of each region: a map of the picture, averaged over the region's mask."""
        if self.config.model.regions.encoder == "sam":
            return masked_pool(self.sam.encode(batch.source, remat), batch.regions)
        return self.regions(batch.source, batch.regions)

    def encode_latents(self, images: UInt8[Array, "B Y X 3"]) -> Float[Array, "B H W C"]:
        """Latents of pictures, shifted and scaled to about unit variance; no gradient."""
        return jax.lax.stop_gradient(self.autoencoder.encode(to_float(images)))

    def condition(self, features: Features) -> tuple[Conditioning, Float[Array, " B"]]:
        """The flow model's conditioning, and L_MLLM of each example (PAPER sections 4.1 to 4.3)."""
        model, remat = self.config.model, self.config.remat.others
        with jax.named_scope("frce"):
            cues = (
                self.frce(features, remat)
                if model.frce.enabled
                else no_cues(features, model.frce.width)
            )
            cues = by_example(cues)
        with jax.named_scope("mllm"):
            v, mllm_loss = self.mllm(features, cues, self.config.remat.mllm)
        with jax.named_scope("qformer"):
            v_hat = by_example(self.qformer(by_example(v), remat))
        with jax.named_scope("cme"):
            tokens = by_example(self._enhance(v_hat, features, cues))
        return Conditioning(tokens, features.pooled, features.source_latent), mllm_loss

    def _enhance(
        self, v_hat: Float[Array, "B Q C"], features: Features, cues: Cues
    ) -> Float[Array, "B M C2"]:
        """[R_bar_V, R_bar_T] at the MMDiT's context width; V_hat itself without the CME."""
        if not self.config.model.cme.enabled:
            return self.projections.cond_proj(v_hat)
        project, remat = self.projections, self.config.remat.others
        v_hat = project.v_hat(v_hat)
        image_mask = jnp.ones(features.image.shape[:2], bool)
        visual = self.cme.visual_enhancer(
            v_hat,
            project.image(features.image),
            image_mask,
            project.visual_cues(cues.visual),
            cues.visual_mask,
            remat,
        )
        textual = self.cme.textual_enhancer(
            v_hat,
            project.text(features.text),
            features.text_mask,
            project.textual_cues(cues.textual),
            cues.textual_mask,
            remat,
        )
        return project.cme_proj(jnp.concatenate([visual, textual], axis=1))

    def loss(
        self, batch: Batch | FeatureBatch, rng: jax.Array, rows: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """L_MLLM + L_DM of a batch with targets; the weights are the configuration's.

        ``rows`` are the examples' numbers in a larger batch of which this is a part.
        """
        flow, train = self.config.flow, self.config.train
        conditioning, mllm_loss = self.condition(self.features(batch))
        x0 = batch.target_latent
        if x0 is None:
            assert isinstance(batch, Batch)
            assert batch.target is not None, "a batch without targets has no loss"
            x0 = self.encode_latents(batch.target)
        flow_loss, t = training_loss(
            self.velocity, x0, conditioning, rng, rows, flow, self.mmdit.tokens(x0.shape)
        )
        loss_mllm, loss_flow = mllm_loss.mean(), flow_loss.mean()
        total = train.mllm_loss_weight * loss_mllm + train.flow_loss_weight * loss_flow
        terms = {"loss_flow": loss_flow, "loss_mllm": loss_mllm} | loss_by_time(flow_loss, t)
        if batch.category is not None:
            terms |= loss_by_category(flow_loss, batch.category)
        return total, terms

    def features(self, batch: Batch | FeatureBatch) -> Features:
        """The encoders' features of a batch, computed here unless they came with it."""
        if isinstance(batch, FeatureBatch):
            return by_example(batch.features)
        with jax.named_scope("encoders"):
            return by_example(self.encode(batch))

    def sample(
        self,
        batch: Batch,
        rng: jax.Array,
        steps: int | None = None,
        guidance: float | Float[Array, ""] | None = None,
        true_cfg: float | None = None,
    ) -> Float[Array, "B Y X 3"]:
        """Edited pictures in [-1, 1]; as ``sample_latents``, decoded."""
        return self.autoencoder.decode(self.sample_latents(batch, rng, steps, guidance, true_cfg))

    def sample_latents(
        self,
        batch: Batch | FeatureBatch,
        rng: jax.Array,
        steps: int | None = None,
        guidance: float | Float[Array, ""] | None = None,
        true_cfg: float | None = None,
    ) -> Float[Array, "B H W C"]:
        """Latents of the edited pictures; None takes the configuration's value.

        ``guidance`` is the distilled scale the MMDiT is told; ``true_cfg`` mixes in a second,
        unconditional velocity (1 switches it off). Row i's noise depends on ``rng`` and i alone.
        """
        conditioning, _ = self.condition(self.features(batch))
        shape = conditioning.source_latent.shape
        return sampler.sample(
            self.velocity,
            conditioning,
            row_keys(rng, shape[0]),
            shape,
            self.config.flow,
            self.mmdit.tokens(shape),
            steps,
            guidance,
            true_cfg,
        )

    def velocity(
        self,
        z_t: Float[Array, "B H W C"],
        t: Float[Array, " B"],
        guidance: Float[Array, " B"],
        conditioning: Conditioning,
    ) -> Float[Array, "B H W C"]:
        """eps - x0 at z_t."""
        with jax.named_scope("mmdit"):
            return self.mmdit.velocity(z_t, t, guidance, conditioning, self.config.remat)


def by_example(tree: T) -> T:
    """The arrays of a record, split over the mesh by their examples alone."""
    return jax.tree.map(lambda x: constrain(x, "batch"), tree)
