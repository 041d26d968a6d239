"""The new words [IMG_0] .. [IMG_I-1] of the language model's vocabulary (PAPER section 4.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.config import MLLMConfig


class ImageTokens(nnx.Module):
    """Embedding rows and head columns of the new words, apart from the old vocabulary's.

    Kept in parameters of their own so that a pretrained vocabulary stays bit-identical while the
    new rows train.
    """

    def __init__(self, config: MLLMConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.embedding = nnx.Param(init(rngs.params(), (config.image_tokens, config.width)))
        self.lm_head = nnx.Linear(config.width, config.image_tokens, use_bias=False, rngs=rngs)


def image_token_loss(
    hidden: Float[Array, "B I C"], old_head: nnx.Linear, image_tokens: ImageTokens
) -> Float[Array, " B"]:
    """L_MLLM (eq. A1): - sum_i log p([IMG_i] | everything before it), float32.

    ``hidden[:, i]`` is the state of the token just before [IMG_i]; the softmax runs over the old
    and the new words together.
    """
    logits = jnp.concatenate([old_head(hidden), image_tokens.lm_head(hidden)], axis=-1)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    count = hidden.shape[1]
    targets = old_head.out_features + jnp.arange(count)
    return -log_p[:, jnp.arange(count), targets].sum(axis=-1)
