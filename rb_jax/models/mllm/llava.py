"""The multimodal language model: LLaVA's projector and decoder, fed with FRCE's cues.

Sequence (PAPER section 4.1): [ IA(E_I(I)) | R_V | R_T | instruction | IMG_0 .. IMG_I-1 ].
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.config import ModelConfig
from rb_jax.models.layers.mlp import gelu
from rb_jax.models.mllm.image_tokens import ImageTokens, image_token_loss
from rb_jax.models.mllm.llama import Llama
from rb_jax.models.types import Cues, Features


class Projector(nnx.Module):
    """IA: image tokens to the language model's width; one layer (v1.1) or two (v1.5)."""

    def __init__(self, in_width: int, width: int, kind: str, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(in_width, width, rngs=rngs)
        if kind == "mlp":
            self.linear_2 = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B P C_i"]) -> Float[Array, "B P C"]:
        x = self.linear_1(x)
        return self.linear_2(gelu(x)) if hasattr(self, "linear_2") else x


class MLLM(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        mllm = config.mllm
        self.mm_projector = Projector(config.vision.width, mllm.width, mllm.projector, rngs)
        if config.frce.enabled:
            self.visual_cue_proj = nnx.Linear(config.frce.width, mllm.width, rngs=rngs)
            self.textual_cue_proj = nnx.Linear(config.frce.width, mllm.width, rngs=rngs)
        self.language_model = Llama(mllm, rngs)
        self.image_tokens = ImageTokens(mllm, rngs)

    def __call__(
        self, features: Features, cues: Cues, remat: str = "off"
    ) -> tuple[Float[Array, "B I C"], Float[Array, " B"]]:
        """Visual guidance V, the last hidden states at the [IMG] positions, and L_MLLM."""
        x, mask, text_start = self._sequence(features, cues)
        hidden = self.language_model(x, mask, remat)
        count = self.image_tokens.embedding.shape[0]
        # [IMG_0] follows the instruction's last token, wherever its padding begins.
        last_word = text_start + features.prompt.mask.sum(axis=1) - 1
        before_first = jnp.take_along_axis(hidden, last_word[:, None, None], axis=1)
        predictors = jnp.concatenate([before_first, hidden[:, -count:-1]], axis=1)
        loss = image_token_loss(predictors, self.language_model.lm_head, self.image_tokens)
        return hidden[:, -count:], loss

    def _sequence(self, features: Features, cues: Cues):
        """Embeddings [B T C], mask [B T] and the index of the instruction's first token."""
        embedding = self.language_model.embed_tokens[...]
        parts = [(self.mm_projector(features.patches), None)]
        if hasattr(self, "visual_cue_proj"):
            parts.append((self.visual_cue_proj(cues.visual), cues.visual_mask))
            parts.append((self.textual_cue_proj(cues.textual), cues.textual_mask))
        text_start = sum(x.shape[1] for x, _ in parts)
        parts.append((embedding[features.prompt.ids], features.prompt.mask))
        new_words = self.image_tokens.embedding[...]
        shape = (features.patches.shape[0], *new_words.shape)
        parts.append((jnp.broadcast_to(new_words, shape), None))
        masks = [jnp.ones(x.shape[:2], bool) if m is None else m for x, m in parts]
        tokens = jnp.concatenate([x for x, _ in parts], axis=1)
        return tokens, jnp.concatenate(masks, axis=1), text_start
