"""AdamW with a warm-up; weight decay applies to matrices only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike

from rb_jax.config import Config
from rb_jax.train.state import Params

# Last names of the parameters that multiply activations. Names rather than ranks decide, because
# a stack of blocks gives every vector a leading layer axis.
MATRICES = ("kernel", "lora_a", "lora_b")


def make_schedule(config: Config) -> Callable[[ArrayLike], Array]:
    """Update number -> learning rate: linear warm-up, then constant or half a cosine.

    The cosine ends at train.steps; raising train.steps on resume stretches what is left of it.
    """
    opt, steps = config.optimizer, config.train.steps

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, (count + 1) / max(opt.warmup_steps, 1))
        if opt.schedule == "constant":
            return opt.learning_rate * warm
        progress = (count - opt.warmup_steps) / max(steps - 1 - opt.warmup_steps, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        return opt.learning_rate * warm * (opt.final_fraction + (1 - opt.final_fraction) * cosine)

    return schedule


def make_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, then AdamW; its state covers the trainable parameters only.

    ``clip_norm`` of 0 turns the clipping off. ``update`` takes the gradients' ``grad_norm``.
    """
    opt = config.optimizer
    rate: Any = make_schedule(config)
    adamw = optax.adamw(
        rate, opt.b1, opt.b2, opt.eps, mu_dtype=opt.moment_dtype,
        weight_decay=opt.weight_decay, mask=decayed,
    )  # fmt: skip
    chain = optax.chain(clip_by_norm(opt.clip_norm), adamw) if opt.clip_norm else adamw
    return optax.with_extra_args_support(chain)


def clip_by_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients to a global norm of at most ``limit``; the norm, measured once, is given."""

    def update(updates: Any, state: Any, params: Any = None, *, grad_norm: Array, **_: Any) -> Any:
        scale = limit / jnp.maximum(grad_norm, limit)
        return {path: (x * scale).astype(x.dtype) for path, x in updates.items()}, state

    def init(params: Any) -> Any:
        return optax.EmptyState()

    made: Any = update  # its own extra argument is not in optax's protocol
    return optax.GradientTransformationExtraArgs(init, made)


def decayed(params: Params) -> dict[str, bool]:
    return {path: path.rsplit("/", 1)[-1] in MATRICES for path in params}
