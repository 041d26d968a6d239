"""The stock LLaVA fed with FRCE's cues (rb_jax/models/mllm/llava.py in torch).

Sequence (PAPER section 4.1): [ IA(E_I(I)) | R_V | R_T | instruction | IMG_0 .. IMG_I-1 ].
"""

from __future__ import annotations

from typing import Any

import torch

from rb_jax.config import MLLMConfig
from rb_jax.port.torch.records import Cues, Text


def visual_guidance(
    llava: Any, config: MLLMConfig, patches: torch.Tensor, prompt: Text, cues: Cues
) -> tuple[torch.Tensor, torch.Tensor]:
    """V [B I C], the last hidden states at the [IMG] positions, and L_MLLM of each example [B].

    ``llava`` is transformers' LlavaForConditionalGeneration; ``cues`` already have its width, and
    have no tokens in a model without FRCE.
    """
    count, rows = config.image_tokens, len(patches)
    table = llava.get_input_embeddings().weight
    new_words = table[config.vocab_size :].expand(rows, -1, -1)
    parts = [
        (llava.model.multi_modal_projector(patches), None),
        (cues.visual, cues.visual_mask),
        (cues.textual, cues.textual_mask),
        (table[prompt.ids], prompt.mask),
        (new_words, None),
    ]
    text_start = sum(x.shape[1] for x, _ in parts[:3])
    tokens = torch.cat([x for x, _ in parts], dim=1)
    masks = [torch.ones_like(x[..., 0], dtype=torch.bool) if m is None else m for x, m in parts]
    mask = torch.cat(masks, dim=1)
    # Positions count the tokens that are there, so that padding between two parts shifts nothing.
    hidden = llava.model.language_model(
        inputs_embeds=tokens,
        attention_mask=mask.long(),
        position_ids=(mask.long().cumsum(dim=1) - 1).clamp_min(0),
        use_cache=False,
    ).last_hidden_state
    # [IMG_0] follows the instruction's last token, wherever its padding begins.
    last_word = text_start + prompt.mask.sum(dim=1) - 1
    before_first = hidden[torch.arange(rows, device=hidden.device), last_word]
    predictors = torch.cat([before_first[:, None], hidden[:, -count:-1]], dim=1)
    return hidden[:, -count:], image_token_loss(llava.lm_head(predictors), config.vocab_size)


def image_token_loss(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """L_MLLM (eq. A1) of each row: - sum_i log p([IMG_i] | everything before it), float32.

    ``logits`` [B I vocab_size + I] at position i predict [IMG_i], word ``vocab_size + i``.
    """
    log_p = logits.float().log_softmax(dim=-1)
    return -log_p[..., vocab_size:].diagonal(dim1=1, dim2=2).sum(dim=1)
