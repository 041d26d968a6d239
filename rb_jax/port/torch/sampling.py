"""The flow model's inputs and the sampler: models/mmdit/latents.py and models/flow/ in torch.

Latents are [B H W C]; t = 1 is noise and t = 0 is data, velocity is eps - x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from rb_jax.config import FlowConfig

MIN_TIME = 0.05  # the smallest denominator of a velocity, as in training


def pack(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """[B H W C] to tokens [B N D]; D = C x patch x patch, channel slowest as in FLUX."""
    batch, height, width, channels = latents.shape
    x = latents.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)


def unpack(tokens: torch.Tensor, height: int, width: int, patch: int) -> torch.Tensor:
    """Inverse of ``pack`` for a latent of ``height`` x ``width``."""
    x = tokens.reshape(len(tokens), height // patch, width // patch, -1, patch, patch)
    return x.permute(0, 1, 4, 2, 5, 3).reshape(len(tokens), height, width, -1)


def position_ids(height: int, width: int, patch: int, image: int = 0) -> torch.Tensor:
    """(image, row, column) of each token, [N 3]; ``image`` is 0 for z_t, 1 for a source."""
    rows, columns = torch.meshgrid(
        torch.arange(height // patch), torch.arange(width // patch), indexing="ij"
    )
    return torch.stack([torch.full_like(rows, image), rows, columns], dim=-1).reshape(-1, 3)


def schedule(config: FlowConfig, steps: int, tokens: int) -> torch.Tensor:
    """``steps + 1`` times from 1 to 0, shifted for ``tokens`` image tokens."""
    t = torch.linspace(1.0, 0.0, steps + 1)
    if not config.shift:
        return t
    slope = (config.max_shift - config.base_shift) / (config.max_tokens - config.base_tokens)
    factor = math.exp(config.base_shift + slope * (tokens - config.base_tokens))
    return factor * t / (1 + (factor - 1) * t)


def euler(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    times: torch.Tensor,
) -> torch.Tensor:
    """Follows dz/dt = velocity(z, t) through ``times`` [T], from noise [B H W C]."""
    z = noise
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        z = z + (t_next - t) * velocity(z, t)
    return z


def true_cfg(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (arXiv 2207.12598); scale 1 is the conditional velocity."""
    return unconditional + scale * (conditional - unconditional)


def velocity_of_data(x0: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The velocity that a prediction of the data implies (arXiv 2511.13720); t is [B]."""
    return (z_t - x0) / t.clamp_min(MIN_TIME)[:, None, None, None]


def draw_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Noise [B H W C] for a seed, the same on every device; row i depends on seed and i alone.

    It is not the noise that JAX draws for the seed.
    """
    rows = [np.random.default_rng([seed, i]) for i in range(shape[0])]
    return torch.from_numpy(np.stack([r.standard_normal(shape[1:], np.float32) for r in rows]))
