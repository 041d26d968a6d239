"""FRCE, QFormer and CME as torch modules; names and shapes of their tensors are the authors'.

The counterparts of frce/, qformer.py and cme.py in rb_jax/models, with the same settings, masks
(True where there is content) and switches: a branch that is switched off has no tensors.
Axis letters as in rb_jax/models/types.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from rb_jax.config import CMEConfig, FRCEConfig, ModelConfig, QFormerConfig
from rb_jax.port.torch.records import Cues, Features


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of q [B H Tq D] over k, v [B H Tk D]; a query with no key left gets zeros."""
    if key_mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    empty = ~key_mask.any(dim=1)
    # An empty row runs over all of its keys and is thrown away: NaN neither here nor in gradients.
    mask = (key_mask | empty[:, None])[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.masked_fill(empty[:, None, None, None], 0.0)


class Attention(nn.Module):
    """The tensors of torch.nn.MultiheadAttention: fused in_proj (q, k, v) and out_proj."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self,
        query: torch.Tensor,
        context: torch.Tensor | None = None,
        key_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query [B Tq C], context [B Tk C] (None: the query itself), key_mask [B Tk]."""
        context = query if context is None else context
        width, weight, bias = query.shape[-1], self.in_proj_weight, self.in_proj_bias
        q = F.linear(query, weight[:width], bias[:width])
        k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return self.out_proj(attend(q, k, v, key_mask).transpose(1, 2).flatten(2))


def mlp(width: int) -> nn.Sequential:
    """Feed-forward, four times as wide inside; the layers with tensors are numbers 0 and 3."""
    return nn.Sequential(
        nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width)
    )


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(*shape))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), key_mask=mask)
        return x + self.mlp(self.norm2(x))


class Extractor(nn.Module):
    """Projects tokens to the cue width and refines them: FRCE's patch or region branch."""

    def __init__(self, in_width: int, config: FRCEConfig, layers: int):
        super().__init__()
        self.proj_in = nn.Linear(in_width, config.width)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """tokens [B T C_in], mask [B T] -> [B T C]."""
        x = self.proj_in(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class ControllerBlock(nn.Module):
    """Objects attend to the visual cues, then a feed-forward layer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_q = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm_ff = nn.LayerNorm(width)
        self.ff = mlp(width)

    def forward(
        self, objects: torch.Tensor, cues: torch.Tensor, cue_mask: torch.Tensor
    ) -> torch.Tensor:
        x = objects + self.attn(self.norm_q(objects), self.norm_kv(cues), cue_mask)
        return x + self.ff(self.norm_ff(x))


class IDController(nn.Module):
    """R_T = FFN(CrossAttn(Q = objects, K = V = R_V)), several times."""

    def __init__(self, config: FRCEConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            ControllerBlock(config.width, config.heads) for _ in range(config.id_controller_layers)
        )
        self.out_norm = nn.LayerNorm(config.width)

    def forward(
        self, objects: torch.Tensor, cues: torch.Tensor, cue_mask: torch.Tensor
    ) -> torch.Tensor:
        """objects [B O C], cues [B V C], cue_mask [B V] -> [B O C]."""
        for layer in self.layers:
            objects = layer(objects, cues, cue_mask)
        return self.out_norm(objects)


class FRCE(nn.Module):
    """Features -> Cues (PAPER section 4.2)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        frce = config.frce
        if frce.patch_branch:
            self.patch_extractor = Extractor(config.vision.width, frce, frce.patch_layers)
            self.local_type_emb = learned(1, 1, frce.width)
        if frce.region_branch:
            self.region_extractor = Extractor(config.regions.width, frce, frce.region_layers)
            self.global_type_emb = learned(1, 1, frce.width)
        self.text_proj_in = nn.Linear(config.text.width, frce.width)
        if frce.id_controller:
            self.id_controller = IDController(frce)

    def forward(self, features: Features) -> Cues:
        """Without the ID Controller R_T is the projected object features, blind to the picture."""
        cues, masks = [], []
        if hasattr(self, "patch_extractor"):
            cues.append(self.patch_extractor(features.patches) + self.local_type_emb)
            masks.append(torch.ones_like(features.patches[..., 0], dtype=torch.bool))
        if hasattr(self, "region_extractor"):
            refined = self.region_extractor(features.regions, features.region_mask)
            cues.append(refined + self.global_type_emb)
            masks.append(features.region_mask)
        visual, visual_mask = torch.cat(cues, dim=1), torch.cat(masks, dim=1)
        textual = self.text_proj_in(features.objects)
        if hasattr(self, "id_controller"):
            textual = self.id_controller(textual, visual, visual_mask)
        return Cues(visual, visual_mask, textual, features.object_mask)


class QFormerBlock(nn.Module):
    """Self-attention among the queries, cross-attention to V, feed-forward; pre-norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.self_attn = Attention(width, heads)
        self.norm_cross_q = nn.LayerNorm(width)
        self.norm_cross_kv = nn.LayerNorm(width)
        self.cross_attn = Attention(width, heads)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = mlp(width)

    def forward(self, q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = q + self.self_attn(self.norm_self(q))
        q = q + self.cross_attn(self.norm_cross_q(q), self.norm_cross_kv(v))
        return q + self.ffn(self.norm_ffn(q))


class QFormer(nn.Module):
    """V -> V_hat (PAPER section 4.1)."""

    def __init__(self, in_width: int, config: QFormerConfig):
        super().__init__()
        self.queries = learned(1, config.queries, config.width)
        self.input_proj = nn.Linear(in_width, config.width)
        self.blocks = nn.ModuleList(
            QFormerBlock(config.width, config.heads) for _ in range(config.layers)
        )
        self.out_norm = nn.LayerNorm(config.width)

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """v [B I C_l] -> V_hat [B Q C]."""
        v = self.input_proj(v)
        q = self.queries.expand(len(v), -1, -1)
        for block in self.blocks:
            q = block(q, v)
        return self.out_norm(q)


class CrossAttention(nn.Module):
    """Pre-norm cross-attention with a residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_q = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.attn = Attention(width, heads)

    def forward(
        self, q: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return q + self.attn(self.norm_q(q), self.norm_kv(context), mask)


class FeedForward(nn.Module):
    """Pre-norm feed-forward with a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.ff = mlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ff(self.norm(x))


class MixedBlock(nn.Module):
    """Queries read V_hat, encoder tokens the cues, then queries the tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn_q_vhat = CrossAttention(width, heads)
        self.attn_e_r = CrossAttention(width, heads)
        self.attn_fuse = CrossAttention(width, heads)
        self.norm_fuse = nn.LayerNorm(width)
        self.ffn = FeedForward(width)

    def forward(self, q, v_hat, encoded, encoded_mask, cues, cue_mask):
        """V_bar [B Q C] and F2 [B E C]."""
        f1 = self.attn_q_vhat(q, v_hat)
        f2 = self.attn_e_r(encoded, cues, cue_mask)
        return self.ffn(self.norm_fuse(self.attn_fuse(f1, f2, encoded_mask))), f2


class Enhancer(nn.Module):
    """One modality's half of the CME."""

    def __init__(self, config: CMEConfig):
        super().__init__()
        self.queries = learned(1, config.queries, config.width)
        self.blocks = nn.ModuleList(
            MixedBlock(config.width, config.heads) for _ in range(config.blocks)
        )
        self.final_attn = CrossAttention(config.width, config.heads)
        self.final_norm = nn.LayerNorm(config.width)

    def forward(
        self,
        v_hat: torch.Tensor,
        encoded: torch.Tensor,
        encoded_mask: torch.Tensor,
        cues: torch.Tensor,
        cue_mask: torch.Tensor,
    ) -> torch.Tensor:
        """v_hat [B Q C], encoded [B E C], cues [B V C], masks -> R_bar [B Q2 C]."""
        q, f2 = self.queries.expand(len(v_hat), -1, -1), encoded
        for block in self.blocks:
            q, f2 = block(q, v_hat, encoded, encoded_mask, cues, cue_mask)
        context = torch.cat([f2, cues], dim=1)
        mask = torch.cat([encoded_mask, cue_mask], dim=1)
        return self.final_norm(self.final_attn(q, context, mask))


class CME(nn.Module):
    """The two enhancers (PAPER section 4.3); all inputs already have the CME's width."""

    def __init__(self, config: CMEConfig):
        super().__init__()
        self.visual_enhancer = Enhancer(config)
        self.text_enhancer = Enhancer(config)
