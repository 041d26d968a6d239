"""Layer and RMS norms with gradients of their own: a backward pass finds the input and two columns.

What differentiation makes of the formulas keeps half a dozen arrays of the input's size for each
norm, and many more operations to compile. Forward-mode differentiation is not defined.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.LayerNorm):
    """nnx.LayerNorm over the last axis."""

    def __call__(self, x: Float[Array, "*B C"], **_: Any) -> Float[Array, "*B C"]:
        scale = None if self.scale is None else self.scale[...]
        return layer_norm(x, scale, None if self.bias is None else self.bias[...], self.epsilon)


class RMSNorm(nnx.RMSNorm):
    """nnx.RMSNorm over the last axis."""

    def __call__(self, x: Float[Array, "*B C"], **_: Any) -> Float[Array, "*B C"]:
        assert self.scale is not None
        return rms_norm(x, self.scale[...], self.epsilon)


def layer_norm(
    x: Float[Array, "*B C"],
    scale: Float[Array, " C"] | None,
    bias: Float[Array, " C"] | None,
    epsilon: float,
) -> Float[Array, "*B C"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias; statistics in float32."""
    return _layer_norm(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, epsilon):
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    x32 = x.astype(jnp.float32)
    mean = _mean(x32)
    variance = _mean(x32 * x32) - mean * mean
    rate = jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    y = (x32 - mean) * rate
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return y.astype(_dtype(x, scale, bias)), (x, mean, rate, scale, bias)


def _layer_norm_backward(epsilon, kept, grad):
    x, mean, rate, scale, bias = kept
    normed, grad = (x.astype(jnp.float32) - mean) * rate, grad.astype(jnp.float32)
    d_scale = None if scale is None else _over_rows(grad * normed, scale)
    d_bias = None if bias is None else _over_rows(grad, bias)
    grad = grad if scale is None else grad * scale
    dx = rate * (grad - _mean(grad) - normed * _mean(grad * normed))
    return dx.astype(x.dtype), d_scale, d_bias


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def rms_norm(
    x: Float[Array, "*B C"], scale: Float[Array, " C"], epsilon: float
) -> Float[Array, "*B C"]:
    """x / sqrt(mean of squares + epsilon) * scale; statistics in float32."""
    return _rms_norm(x, scale, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rms_norm(x, scale, epsilon):
    return _rms_norm_forward(x, scale, epsilon)[0]


def _rms_norm_forward(x, scale, epsilon):
    x32 = x.astype(jnp.float32)
    rate = jax.lax.rsqrt(_mean(x32 * x32) + epsilon)
    return (x32 * (rate * scale)).astype(_dtype(x, scale)), (x, rate, scale)


def _rms_norm_backward(epsilon, kept, grad):
    x, rate, scale = kept
    normed, grad = x.astype(jnp.float32) * rate, grad.astype(jnp.float32)
    d_scale = _over_rows(grad * normed, scale)
    grad = grad * scale
    return (rate * (grad - normed * _mean(grad * normed))).astype(x.dtype), d_scale


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def _mean(x: Float[Array, "*B C"]) -> Float[Array, "*B 1"]:
    return jnp.mean(x, axis=-1, keepdims=True)


def _over_rows(x: Float[Array, "*B C"], like: Float[Array, " C"]) -> Float[Array, " C"]:
    return x.sum(axis=tuple(range(x.ndim - 1))).astype(like.dtype)


def _dtype(*arrays: jax.Array | None) -> Any:
    return jnp.result_type(*(x for x in arrays if x is not None))
