"""FLUX's KL autoencoder (flux/modules/autoencoder.py; names of diffusers' AutoencoderKL).

Images are float [B Y X 3] in [-1, 1]; latents are [B H W C], channels last, already shifted and
scaled to about unit variance: z = scale_factor * (mean - shift_factor).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rb_jax.config import AutoencoderConfig, Config
from rb_jax.models.layers.attention import attention
from rb_jax.models.pixels import to_float
from rb_jax.models.types import Batch


def _norm(channels: int, groups: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=groups, epsilon=1e-6, rngs=rngs)


def _conv(in_channels: int, channels: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(in_channels, channels, (3, 3), rngs=rngs)


class ResnetBlock(nnx.Module):
    def __init__(self, in_channels: int, channels: int, groups: int, rngs: nnx.Rngs):
        self.norm1 = _norm(in_channels, groups, rngs)
        self.conv1 = _conv(in_channels, channels, rngs)
        self.norm2 = _norm(channels, groups, rngs)
        self.conv2 = _conv(channels, channels, rngs)
        if in_channels != channels:
            self.conv_shortcut = nnx.Linear(in_channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class AttentionBlock(nnx.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int, groups: int, rngs: nnx.Rngs):
        self.group_norm = _norm(channels, groups, rngs)
        self.to_q = nnx.Linear(channels, channels, rngs=rngs)
        self.to_k = nnx.Linear(channels, channels, rngs=rngs)
        self.to_v = nnx.Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        h = self.group_norm(x).reshape(batch, height * width, 1, channels)
        h = attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out(h).reshape(x.shape)


class MidBlock(nnx.Module):
    def __init__(self, channels: int, groups: int, rngs: nnx.Rngs):
        self.resnet_1 = ResnetBlock(channels, channels, groups, rngs)
        self.attention = AttentionBlock(channels, groups, rngs)
        self.resnet_2 = ResnetBlock(channels, channels, groups, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return self.resnet_2(self.attention(self.resnet_1(x)))


class Level(nnx.Module):
    """The resnets of one resolution, with an optional convolution to the next one."""

    def __init__(self, widths: list[int], groups: int, resample: str, rngs: nnx.Rngs):
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.resnets = nnx.List([ResnetBlock(a, b, groups, rngs) for a, b in pairs])
        self.resample = resample
        last = widths[-1]
        if resample == "down":
            self.downsampler = nnx.Conv(last, last, (3, 3), strides=2, padding="VALID", rngs=rngs)
        elif resample == "up":
            self.upsampler = _conv(last, last, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        for resnet in self.resnets:
            x = resnet(x)
        if self.resample == "down":
            # FLUX pads right and bottom only.
            x = self.downsampler(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))
        elif self.resample == "up":
            x = self.upsampler(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        return x


class Encoder(nnx.Module):
    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        widths = [config.channels * m for m in config.channel_mult]
        groups, last = config.norm_groups, len(widths) - 1
        self.conv_in = _conv(3, config.channels, rngs)
        self.down_blocks = nnx.List()
        previous = config.channels
        for i, width in enumerate(widths):
            level = [previous] + [width] * config.num_res_blocks
            self.down_blocks.append(Level(level, groups, "" if i == last else "down", rngs))
            previous = width
        self.mid_block = MidBlock(previous, groups, rngs)
        self.conv_norm_out = _norm(previous, groups, rngs)
        self.conv_out = _conv(previous, 2 * config.latent_channels, rngs)

    def __call__(self, x: Float[Array, "B Y X 3"]) -> Float[Array, "B H W C2"]:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        widths = [config.channels * m for m in reversed(config.channel_mult)]
        groups, last = config.norm_groups, len(widths) - 1
        self.conv_in = _conv(config.latent_channels, widths[0], rngs)
        self.mid_block = MidBlock(widths[0], groups, rngs)
        self.up_blocks = nnx.List()
        previous = widths[0]
        for i, width in enumerate(widths):
            level = [previous] + [width] * (config.num_res_blocks + 1)
            self.up_blocks.append(Level(level, groups, "" if i == last else "up", rngs))
            previous = width
        self.conv_norm_out = _norm(previous, groups, rngs)
        self.conv_out = _conv(previous, 3, rngs)

    def __call__(self, z: Float[Array, "B H W C"]) -> Float[Array, "B Y X 3"]:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Autoencoder(nnx.Module):
    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)

    def moments(
        self, images: Float[Array, "B Y X 3"]
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W C"]]:
        """Mean and log-variance of the posterior, unscaled, float32."""
        x = self.encoder(images.astype(self.encoder.conv_in.kernel.dtype))
        mean, logvar = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def encode(self, images: Float[Array, "B Y X 3"]) -> Float[Array, "B H W C"]:
        """The posterior's mean, shifted and scaled."""
        mean, _ = self.moments(images)
        return self.config.scale_factor * (mean - self.config.shift_factor)

    def decode(self, latents: Float[Array, "B H W C"]) -> Float[Array, "B Y X 3"]:
        z = latents / self.config.scale_factor + self.config.shift_factor
        return self.decoder(z.astype(self.decoder.conv_in.kernel.dtype)).astype(jnp.float32)


class AutoencoderTrainer(nnx.Module):
    """The autoencoder as a training task of its own: reconstruct source and target."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.kl_weight = config.train.kl_weight
        self.autoencoder = Autoencoder(config.model.autoencoder, rngs)

    def loss(
        self, batch: Batch, rng: jax.Array, rows: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """L1 + squared error of the reconstruction + ``kl_weight`` x KL to the unit Gaussian."""
        images = (
            batch.source if batch.target is None else jnp.concatenate([batch.source, batch.target])
        )
        images = to_float(images)
        mean, logvar = self.autoencoder.moments(images)
        rows = jnp.arange(len(batch.source)) if rows is None else rows
        numbers = rows if batch.target is None else jnp.concatenate([2 * rows, 2 * rows + 1])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, numbers)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        z = mean + jnp.exp(0.5 * logvar) * noise
        out = self.autoencoder.decoder(z.astype(self.autoencoder.decoder.conv_in.kernel.dtype))
        error = out.astype(jnp.float32) - images
        mse, l1 = jnp.mean(error**2), jnp.mean(jnp.abs(error))
        kl = 0.5 * jnp.mean(jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3)))
        metrics = {"mse": mse, "l1": l1, "kl": kl, "latent_std": mean.std()}
        return l1 + mse + self.kl_weight * kl, metrics

    def reconstruct(self, batch: Batch) -> Float[Array, "B Y X 3"]:
        autoencoder = self.autoencoder
        return autoencoder.decode(autoencoder.encode(to_float(batch.source)))
