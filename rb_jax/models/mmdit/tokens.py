"""The two streams of the MMDiT as one sequence whose tokens are split over ``context``.

With the tokens of each stream split in k equal parts, the joint sequence is
[txt part 0, img part 0, txt part 1, img part 1, ...]: every device joins what it has. Attention
does not care about the order, since positions are in the rotation of queries and keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rb_jax.sharding.activations import axis_size


def join(txt: Float[Array, "B M *C"], img: Float[Array, "B N *C"]) -> Float[Array, "B M+N *C"]:
    """Both streams, part by part; M and N are multiples of the context axis."""
    parts = axis_size("context")
    if parts == 1:
        return jnp.concatenate([txt, img], axis=1)
    cut = [x.reshape(x.shape[0], parts, -1, *x.shape[2:]) for x in (txt, img)]
    return jnp.concatenate(cut, axis=2).reshape(txt.shape[0], -1, *txt.shape[2:])


def split(x: Float[Array, "B T *C"], count: int) -> tuple[jax.Array, jax.Array]:
    """Inverse of ``join`` for ``count`` text tokens."""
    parts = axis_size("context")
    if parts == 1:
        return x[:, :count], x[:, count:]
    cut = x.reshape(x.shape[0], parts, -1, *x.shape[2:])
    txt, img = cut[:, :, : count // parts], cut[:, :, count // parts :]
    txt, img = (y.reshape(x.shape[0], -1, *x.shape[2:]) for y in (txt, img))
    return txt, img


def pad_tokens(x: Float[Array, "B T *C"]) -> Float[Array, "B T2 *C"]:
    """Zeros behind the tokens until their number is a multiple of the context axis."""
    more = -x.shape[1] % axis_size("context")
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) if more else x


def padding_mask(txt: int, img: int) -> Bool[Array, " T"] | None:
    """True at the joint sequence's own tokens, False at padding; None where there is none."""
    parts = axis_size("context")
    if txt % parts == 0 and img % parts == 0:
        return None
    return join(*(pad_tokens(jnp.ones((1, count), bool)) for count in (txt, img)))[0]
