"""Optimizers of the field by name, and how their learning rate moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike

from rb_jax.config import Config, ConfigError, OptimizerConfig
from rb_jax.paths import matches
from rb_jax.sharding.rules import first_axis
from rb_jax.weights.params import Params

Rate = Callable[[ArrayLike], Array]
# Last names of the parameters that multiply activations. Names rather than ranks decide, because
# a stack of blocks gives every vector a leading layer axis.
MATRICES = ("kernel", "lora_a", "lora_b")


def make_schedule(config: Config) -> Rate:
    """Update number -> learning rate: linear warm-up, then config.optimizer.schedule.

    ``constant``; ``cosine``, half a wave down to final_fraction of the peak at train.steps; or
    ``wsd`` (warm-up, stable, decay: arXiv 2404.06395), constant and in the last decay_fraction of
    the steps linearly down to final_fraction. Raising train.steps on resume stretches what is left
    of the last two.
    """
    opt, steps = config.optimizer, config.train.steps

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, (count + 1) / max(opt.warmup_steps, 1))
        if opt.schedule == "constant":
            return opt.learning_rate * warm
        begin = opt.warmup_steps
        if opt.schedule == "wsd":
            begin = max(begin, steps - round(opt.decay_fraction * steps))
        progress = jnp.clip((count - begin) / max(steps - 1 - begin, 1), 0, 1)
        left = 1 - progress
        if opt.schedule == "cosine":
            left = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return opt.learning_rate * warm * (opt.final_fraction + (1 - opt.final_fraction) * left)

    return schedule


def make_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, then config.optimizer.name, then each group's own rate.

    Its state covers the trainable parameters only. ``clip_norm`` of 0 turns the clipping off.
    ``update`` takes the gradients' ``grad_norm``.
    """
    opt = config.optimizer
    steps: list[Any] = [OPTIMIZERS[opt.name](opt, make_schedule(config))]
    if opt.clip_norm:
        steps.insert(0, clip_by_norm(opt.clip_norm))
    if opt.rates:
        steps.append(scale_groups(opt.rates))
    return optax.with_extra_args_support(optax.chain(*steps) if steps[1:] else steps[0])


def _adamw(opt: OptimizerConfig, rate: Any) -> optax.GradientTransformation:
    """arXiv 1711.05101."""
    return optax.adamw(
        rate,
        opt.b1,
        opt.b2,
        opt.eps,
        mu_dtype=opt.moment_dtype,
        weight_decay=opt.weight_decay,
        mask=decayed,
    )


def _lion(opt: OptimizerConfig, rate: Any) -> optax.GradientTransformation:
    """arXiv 2302.06675; its rate is about a tenth of AdamW's."""
    return optax.lion(
        rate,
        opt.b1,
        opt.b2,
        mu_dtype=opt.moment_dtype,
        weight_decay=opt.weight_decay,
        mask=decayed,
    )


def _adafactor(opt: OptimizerConfig, rate: Any) -> optax.GradientTransformation:
    """arXiv 1804.04235, without momentum: rows and columns of the second moment."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(opt.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(rate),
    )


def _muon(opt: OptimizerConfig, rate: Any) -> optax.GradientTransformation:
    """Muon on the matrices of the blocks, at AdamW's scale (arXiv 2502.16982); AdamW elsewhere."""
    return optax.contrib.muon(
        rate,
        beta=opt.momentum,
        weight_decay=opt.weight_decay,
        mu_dtype=opt.moment_dtype,
        adam_b1=opt.b1,
        adam_b2=opt.b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=hidden_matrices,
    )


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Any], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
}


def clip_by_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients to a global norm of at most ``limit``; the norm, measured once, is given."""

    def update(updates: Any, state: Any, params: Any = None, *, grad_norm: Array, **_: Any) -> Any:
        scale = limit / jnp.maximum(grad_norm, limit)
        return {path: (x * scale).astype(x.dtype) for path, x in updates.items()}, state

    def init(params: Any) -> Any:
        return optax.EmptyState()

    function: Any = update  # its own extra argument is not in optax's protocol
    return optax.GradientTransformationExtraArgs(init, function)


def scale_groups(rates: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies the updates of the paths that a pattern matches; the first match counts.

    ``init`` raises ConfigError for a pattern that matches nothing.
    """

    def factor(path: str) -> float:
        return next((factor for pattern, factor in rates if matches(pattern, path)), 1.0)

    def init(params: Any) -> Any:
        for pattern, _ in rates:
            if not any(matches(pattern, path) for path in params):
                raise ConfigError(
                    f"config.optimizer.rates: pattern {pattern!r} matches no trained parameter"
                )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return {path: x * factor(path) for path, x in updates.items()}, state

    return optax.GradientTransformation(init, update)


def decayed(params: Params) -> dict[str, bool]:
    return {path: path.rsplit("/", 1)[-1] in MATRICES for path in params}


def hidden_matrices(params: Any) -> Any:
    """The stacked kernels [layers, in, out] of blocks; None for all else."""
    one = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    shapes = {path: getattr(x, "shape", ()) for path, x in params.items()}  # optax masks some
    return {
        path: one
        if path.endswith("/kernel") and len(shape) == 3 and first_axis(path, shape)
        else None
        for path, shape in shapes.items()
    }
