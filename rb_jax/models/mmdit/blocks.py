"""The MMDiT's blocks (flux/modules/layers.py), with BFL's names."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.models.layers.attention import attention, merge_heads
from rb_jax.models.layers.lora import LoRALinear
from rb_jax.models.layers.mlp import gelu_tanh
from rb_jax.models.layers.norms import LayerNorm, RMSNorm
from rb_jax.models.layers.qk_norm_rope import normed_heads
from rb_jax.models.layers.remat import name
from rb_jax.models.mmdit.tokens import join, split
from rb_jax.sharding.activations import constrain

# Training from scratch starts every block as the identity (adaLN-Zero, arXiv 2212.09748).
ZEROS = nnx.initializers.zeros_init()


def modulate(x: Float[Array, "B T C"], shift, scale) -> Float[Array, "B T C"]:
    return (1 + scale) * x + shift


def _norm(width: int, rngs: nnx.Rngs) -> LayerNorm:
    return LayerNorm(width, epsilon=1e-6, use_bias=False, use_scale=False, rngs=rngs)


class Sizes(NamedTuple):
    """Of every block."""

    width: int
    heads: int
    mlp_width: int
    lora_rank: int = 0
    lora_alpha: float = 1.0

    def linear(self, in_width: int, out_width: int, rngs: nnx.Rngs) -> LoRALinear:
        return LoRALinear(in_width, out_width, self.lora_rank, self.lora_alpha, rngs, use_bias=True)


class ModulationOut(NamedTuple):
    """What a modulation gives one sub-layer; each [B 1 C]."""

    shift: jax.Array
    scale: jax.Array
    gate: jax.Array


class Modulation(nnx.Module):
    """adaLN: ``count`` x (shift, scale, gate) from the conditioning vector."""

    def __init__(self, width: int, count: int, rngs: nnx.Rngs):
        self.count = count
        self.lin = nnx.Linear(width, 3 * count * width, kernel_init=ZEROS, rngs=rngs)

    def __call__(self, vec: Float[Array, "B C"]) -> list[ModulationOut]:
        # A few rows against a large matrix: all rows go to every device's part of the matrix,
        # which then need not be gathered.
        out = constrain(self.lin(constrain(jax.nn.silu(vec), None, None)), None, "stationary")
        out = name(constrain(out, "batch", None), "modulation")
        parts = jnp.split(out[:, None, :], 3 * self.count, axis=-1)
        return [ModulationOut(*parts[3 * i : 3 * i + 3]) for i in range(self.count)]


class QKNorm(nnx.Module):
    def __init__(self, head_width: int, rngs: nnx.Rngs):
        self.query_norm = RMSNorm(head_width, epsilon=1e-6, rngs=rngs)
        self.key_norm = RMSNorm(head_width, epsilon=1e-6, rngs=rngs)


def _heads(
    qkv: Float[Array, "B T C3"], norm: QKNorm, angle
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normed and rotated queries and keys, and values; each [B T H D]."""
    q_scale, k_scale = norm.query_norm.scale, norm.key_norm.scale
    assert q_scale is not None and k_scale is not None
    heads = normed_heads(name(qkv, "qkv"), q_scale[...], k_scale[...], angle)
    q, k, v = (constrain(x, "batch", "tokens", "heads") for x in heads)
    return q, k, v


def _attend(q, k, v, mask) -> Float[Array, "B T C"]:
    """Joint attention; ``mask`` [T] is False for tokens that only fill up the mesh."""
    key_mask = None if mask is None else jnp.broadcast_to(mask, k.shape[:2])
    return merge_heads(attention(q, k, v, key_mask))


class SelfAttention(nnx.Module):
    """Projections of one stream; the attention itself joins the streams."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        width = sizes.width
        self.qkv = sizes.linear(width, 3 * width, rngs)
        self.norm = QKNorm(width // sizes.heads, rngs)
        self.proj = sizes.linear(width, width, rngs)

    def queries_keys_values(self, x: Float[Array, "B T C"], angle) -> tuple[jax.Array, ...]:
        return _heads(self.qkv(x), self.norm, angle)


class FeedForward(nnx.Module):
    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        self.fc1 = sizes.linear(sizes.width, sizes.mlp_width, rngs)
        self.fc2 = sizes.linear(sizes.mlp_width, sizes.width, rngs)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        hidden = name(constrain(self.fc1(x), "batch", "tokens", "mlp"), "mlp")
        return name(self.fc2(gelu_tanh(hidden)), "out")


class Stream(nnx.Module):
    """One modality's half of a double block."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        self.mod = Modulation(sizes.width, 2, rngs)
        self.norm1 = _norm(sizes.width, rngs)
        self.attn = SelfAttention(sizes, rngs)
        self.norm2 = _norm(sizes.width, rngs)
        self.mlp = FeedForward(sizes, rngs)

    def finish(
        self, x, attended, mod1: ModulationOut, mod2: ModulationOut
    ) -> Float[Array, "B T C"]:
        x = x + mod1.gate * name(self.attn.proj(attended), "proj")
        return x + mod2.gate * self.mlp(modulate(self.norm2(x), mod2.shift, mod2.scale))


class DoubleBlock(nnx.Module):
    """Image and conditioning streams with their own weights and one joint attention."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        self.img = Stream(sizes, rngs)
        self.txt = Stream(sizes, rngs)

    def __call__(self, img, txt, vec, angles, mask=None):
        """img [B N C], txt [B M C], vec [B C], mask [M+N] -> (img, txt).

        ``angles`` are those of txt [M half] and of img [N half].
        """
        qkv, mods = [], []
        for stream, x, angle in ((self.txt, txt, angles[0]), (self.img, img, angles[1])):
            mod1, mod2 = stream.mod(vec)
            mods.append((mod1, mod2))
            x = modulate(stream.norm1(x), mod1.shift, mod1.scale)
            qkv.append(stream.attn.queries_keys_values(x, angle))
        q, k, v = (join(*pair) for pair in zip(*qkv, strict=True))
        attended = split(_attend(q, k, v, mask), txt.shape[1])
        txt = self.txt.finish(txt, attended[0], *mods[0])
        img = self.img.finish(img, attended[1], *mods[1])
        return img, txt


class SingleBlock(nnx.Module):
    """Both streams as one sequence, attention and feed-forward in parallel (arXiv 2302.05442)."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        width = sizes.width
        self.modulation = Modulation(width, 1, rngs)
        self.pre_norm = _norm(width, rngs)
        self.linear1 = sizes.linear(width, 3 * width + sizes.mlp_width, rngs)
        self.norm = QKNorm(width // sizes.heads, rngs)
        self.linear2 = sizes.linear(width + sizes.mlp_width, width, rngs)

    def __call__(self, x, vec, angle, mask=None) -> Float[Array, "B T C"]:
        """x [B M+N C], vec [B C], angle [M+N half], mask [M+N]."""
        (mod,) = self.modulation(vec)
        y = modulate(self.pre_norm(x), mod.shift, mod.scale)
        qkv, hidden = self.linear1.parts(y, 3 * x.shape[-1])
        hidden = name(constrain(hidden, "batch", "tokens", "mlp"), "mlp")
        q, k, v = _heads(qkv, self.norm, angle)
        attended = _attend(q, k, v, mask)
        out = self.linear2.of_parts(attended, gelu_tanh(hidden))
        return x + mod.gate * name(out, "out")


class FinalLayer(nnx.Module):
    def __init__(self, width: int, out_width: int, rngs: nnx.Rngs):
        self.norm_final = _norm(width, rngs)
        self.linear = nnx.Linear(width, out_width, kernel_init=ZEROS, rngs=rngs)
        self.adaLN_modulation = nnx.Linear(width, 2 * width, kernel_init=ZEROS, rngs=rngs)

    def __call__(self, x: Float[Array, "B N C"], vec) -> Float[Array, "B N D"]:
        shift, scale = jnp.split(self.adaLN_modulation(jax.nn.silu(vec))[:, None], 2, axis=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))
