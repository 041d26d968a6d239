"""The MMDiT's blocks (flux/modules/layers.py), with BFL's names."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rb_jax.layers.attention import attention, merge_heads, split_heads
from rb_jax.layers.mlp import MLP, gelu_tanh
from rb_jax.layers.rope import rotate_interleaved

# Training from scratch starts every block as the identity (adaLN-Zero, arXiv 2212.09748).
ZEROS = nnx.initializers.zeros_init()


def modulate(x: Float[Array, "B T C"], shift, scale) -> Float[Array, "B T C"]:
    return (1 + scale) * x + shift


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-6, use_bias=False, use_scale=False, rngs=rngs)


class Shift(NamedTuple):
    """What a modulation gives one sub-layer; each [B 1 C]."""

    shift: jax.Array
    scale: jax.Array
    gate: jax.Array


class Modulation(nnx.Module):
    """adaLN: ``count`` x (shift, scale, gate) from the conditioning vector."""

    def __init__(self, width: int, count: int, rngs: nnx.Rngs):
        self.count = count
        self.lin = nnx.Linear(width, 3 * count * width, kernel_init=ZEROS, rngs=rngs)

    def __call__(self, vec: Float[Array, "B C"]) -> list[Shift]:
        out = jnp.split(self.lin(jax.nn.silu(vec))[:, None, :], 3 * self.count, axis=-1)
        return [Shift(*out[3 * i : 3 * i + 3]) for i in range(self.count)]


class QKNorm(nnx.Module):
    def __init__(self, head_width: int, rngs: nnx.Rngs):
        self.query_norm = nnx.RMSNorm(head_width, epsilon=1e-6, rngs=rngs)
        self.key_norm = nnx.RMSNorm(head_width, epsilon=1e-6, rngs=rngs)


class SelfAttention(nnx.Module):
    """Projections of one stream; the attention itself joins the streams."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.norm = QKNorm(width // heads, rngs)
        self.proj = nnx.Linear(width, width, rngs=rngs)

    def queries_keys_values(self, x: Float[Array, "B T C"]) -> tuple[jax.Array, ...]:
        q, k, v = (split_heads(y, self.heads) for y in jnp.split(self.qkv(x), 3, axis=-1))
        return self.norm.query_norm(q), self.norm.key_norm(k), v


class Stream(nnx.Module):
    """One modality's half of a double block."""

    def __init__(self, width: int, heads: int, mlp_width: int, rngs: nnx.Rngs):
        self.mod = Modulation(width, 2, rngs)
        self.norm1 = _norm(width, rngs)
        self.attn = SelfAttention(width, heads, rngs)
        self.norm2 = _norm(width, rngs)
        self.mlp = MLP(width, mlp_width, rngs, gelu_tanh)

    def finish(self, x, attended, mod1: Shift, mod2: Shift) -> Float[Array, "B T C"]:
        x = x + mod1.gate * self.attn.proj(attended)
        return x + mod2.gate * self.mlp(modulate(self.norm2(x), mod2.shift, mod2.scale))


class DoubleBlock(nnx.Module):
    """Image and conditioning streams with their own weights and one joint attention."""

    def __init__(self, width: int, heads: int, mlp_width: int, rngs: nnx.Rngs):
        self.img = Stream(width, heads, mlp_width, rngs)
        self.txt = Stream(width, heads, mlp_width, rngs)

    def __call__(self, img, txt, vec, angle):
        """img [B N C], txt [B M C], vec [B C], angle [M+N half] -> (img, txt)."""
        qkv, mods = [], []
        for stream, x in ((self.txt, txt), (self.img, img)):
            mod1, mod2 = stream.mod(vec)
            mods.append((mod1, mod2))
            x = modulate(stream.norm1(x), mod1.shift, mod1.scale)
            qkv.append(stream.attn.queries_keys_values(x))
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(*qkv, strict=True))
        q, k = rotate_interleaved(q, angle), rotate_interleaved(k, angle)
        attended = merge_heads(attention(q, k, v))
        split = txt.shape[1]
        txt = self.txt.finish(txt, attended[:, :split], *mods[0])
        img = self.img.finish(img, attended[:, split:], *mods[1])
        return img, txt


class SingleBlock(nnx.Module):
    """Both streams as one sequence, attention and feed-forward in parallel (arXiv 2302.05442)."""

    def __init__(self, width: int, heads: int, mlp_width: int, rngs: nnx.Rngs):
        self.heads, self.width = heads, width
        self.modulation = Modulation(width, 1, rngs)
        self.pre_norm = _norm(width, rngs)
        self.linear1 = nnx.Linear(width, 3 * width + mlp_width, rngs=rngs)
        self.norm = QKNorm(width // heads, rngs)
        self.linear2 = nnx.Linear(width + mlp_width, width, rngs=rngs)

    def __call__(self, x, vec, angle) -> Float[Array, "B T C"]:
        """x [B M+N C], vec [B C], angle [M+N half]."""
        (mod,) = self.modulation(vec)
        y = self.linear1(modulate(self.pre_norm(x), mod.shift, mod.scale))
        qkv, hidden = jnp.split(y, [3 * self.width], axis=-1)
        q, k, v = (split_heads(z, self.heads) for z in jnp.split(qkv, 3, axis=-1))
        q = rotate_interleaved(self.norm.query_norm(q), angle)
        k = rotate_interleaved(self.norm.key_norm(k), angle)
        attended = merge_heads(attention(q, k, v))
        out = self.linear2(jnp.concatenate([attended, gelu_tanh(hidden)], axis=-1))
        return x + mod.gate * out


class FinalLayer(nnx.Module):
    def __init__(self, width: int, out_width: int, rngs: nnx.Rngs):
        self.norm_final = _norm(width, rngs)
        self.linear = nnx.Linear(width, out_width, kernel_init=ZEROS, rngs=rngs)
        self.adaLN_modulation = nnx.Linear(width, 2 * width, kernel_init=ZEROS, rngs=rngs)

    def __call__(self, x: Float[Array, "B N C"], vec) -> Float[Array, "B N D"]:
        shift, scale = jnp.split(self.adaLN_modulation(jax.nn.silu(vec))[:, None], 2, axis=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))
