"""Plain NumPy in float64, one example at a time, that the model's parts are checked against.

Masking is done by leaving tokens out, and layers are run by a loop: neither as the model does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Tree = dict[str, Any]

erf = np.vectorize(math.erf)


def tree(params: Mapping[str, Any], prefix: str, layer: int | None = None) -> Tree:
    """Parameters under a path as nested dicts; ``layer`` takes one slice of stacked blocks."""
    nested: Tree = {}
    for path, value in params.items():
        if not path.startswith(prefix + "/"):
            continue
        *groups, name = path[len(prefix) + 1 :].split("/")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        array = np.asarray(value, np.float64)
        place[name] = array if layer is None else array[layer]
    assert nested, prefix
    return nested


def linear(p: Tree, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0.0)


def layer_norm(p: Tree, x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return normal * p.get("scale", 1.0) + p.get("bias", 0.0)


def rms_norm(p: Tree, x: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mlp(p: Tree, x: np.ndarray, activation=gelu) -> np.ndarray:
    return linear(p["fc2"], activation(linear(p["fc1"], x)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool = False) -> np.ndarray:
    """[Tq H D], [Tk Hk D] -> [Tq H D]; query head h reads key head h // (H / Hk)."""
    out = np.zeros_like(q)
    if not len(k):
        return out
    group = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        keys, values = k[:, head // group], v[:, head // group]
        for i in range(len(q)):
            last = i + 1 if causal else len(k)
            scores = keys[:last] @ q[i, head] / math.sqrt(q.shape[-1])
            out[i, head] = softmax(scores) @ values[:last]
    return out


def heads(x: np.ndarray, count: int) -> np.ndarray:
    return x.reshape(len(x), count, x.shape[-1] // count)


def multihead(p: Tree, query: np.ndarray, context: np.ndarray, count: int) -> np.ndarray:
    """torch.nn.MultiheadAttention: in_proj holds the q, k and v projections side by side."""
    kernels, biases = np.split(p["in_proj"]["kernel"], 3, 1), np.split(p["in_proj"]["bias"], 3)
    inputs = (query, context, context)
    q, k, v = (heads(x @ w + b, count) for x, w, b in zip(inputs, kernels, biases, strict=True))
    return linear(p["out_proj"], attention(q, k, v).reshape(len(query), -1))


def rotate(pairs: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Complex numbers [T H half] turned by [T half]."""
    return pairs * np.exp(1j * angle)[:, None]


def rotate_interleaved(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    turned = rotate(x[..., 0::2] + 1j * x[..., 1::2], angle)
    return np.stack([np.real(turned), np.imag(turned)], -1).reshape(x.shape)


def rotate_half(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    turned = rotate(x[..., :half] + 1j * x[..., half:], angle)
    return np.concatenate([np.real(turned), np.imag(turned)], -1)


def frequencies(dim: int, theta: float = 10_000.0) -> np.ndarray:
    return np.array([theta ** (-2 * i / dim) for i in range(dim // 2)])


def conv(p: Tree, x: np.ndarray, stride: int = 1, pad=(1, 1)) -> np.ndarray:
    """[H W C] with the kernel [h w C D]; ``pad`` is the same before and after on both axes."""
    x = np.pad(x, (pad, pad, (0, 0)))
    side = p["kernel"].shape[0]
    rows, columns = (range(0, n - side + 1, stride) for n in x.shape[:2])
    windows = np.array([[x[i : i + side, j : j + side] for j in columns] for i in rows])
    return np.einsum("ijabc,abcd->ijd", windows, p["kernel"]) + p.get("bias", 0.0)


def group_norm(p: Tree, x: np.ndarray, groups: int) -> np.ndarray:
    parts = x.reshape(*x.shape[:2], groups, -1)
    centred = parts - parts.mean((0, 1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((0, 1, 3), keepdims=True) + 1e-6)
    return normal.reshape(x.shape) * p["scale"] + p["bias"]
