"""A model with the interface of ReasonBrain and next to nothing inside, which compiles at once."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rb_jax.config import Config
from rb_jax.models.flow.training import row_keys
from rb_jax.runtime import logging
from rb_jax.weights import params


class Pixels(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Linear(3, 5, rngs=rngs)


class FakeBrain(nnx.Module):
    """Predicts the target's mean colour from the source's and from the instruction's tokens."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.autoencoder = Pixels(rngs)
        self.text = nnx.Embed(config.model.text.vocab_size, 7, rngs=rngs)
        self.mllm = nnx.List([nnx.Linear(7, 11, rngs=rngs), nnx.Linear(11, 5, rngs=rngs)])
        self.mmdit = nnx.Linear(10, 3, rngs=rngs)

    def encode_latents(self, images):
        return jax.lax.stop_gradient(self.autoencoder.encoder(images[:, ::8, ::8] / 255.0))

    def predict(self, batch):
        latent = batch.source_latent
        latent = self.encode_latents(batch.source) if latent is None else latent
        text = self.text(batch.text.ids).mean(axis=1)
        text = self.mllm[1](jnp.tanh(self.mllm[0](text)))
        return self.mmdit(jnp.concatenate([latent.astype(text.dtype).mean((1, 2)), text], -1))

    def loss(self, batch, rng, rows=None):
        keys = row_keys(rng, batch.source.shape[0], rows)
        noise = 0.1 * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        error = self.predict(batch) + noise - batch.target.mean((1, 2)) / 255.0
        return jnp.mean(error**2), {"loss_flow": jnp.mean(error**2), "l1": jnp.abs(error).mean()}

    def sample(self, batch, rng):
        colour = jnp.tanh(self.predict(batch))[:, None, None]
        return jnp.broadcast_to(colour, batch.source.shape).astype(jnp.float32)


class FakeFlow(nnx.Module):
    """The interface of the flow model alone: one linear layer from noise to the latent."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        channels = config.model.autoencoder.latent_channels
        self.mmdit = nnx.Linear(channels, channels, rngs=rngs)

    def loss(self, batch, rng, rows=None):
        target = batch.target_latent
        keys = row_keys(rng, target.shape[0], rows)
        noise = jax.vmap(lambda key: jax.random.normal(key, target.shape[1:]))(keys)
        error = jnp.mean((self.mmdit(noise) - target) ** 2)
        return error, {"loss_flow": error}


class Trainer(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.autoencoder = Pixels(rngs)


# In the place of rb_jax.weights.params.MODELS.
MODELS = {"edit": FakeBrain, "mmdit": FakeFlow, "autoencoder": Trainer}


def use(monkeypatch):
    """Lets the training code find these models where it looks for the real ones, and speak."""
    logging.setup()
    monkeypatch.setattr(params, "MODELS", MODELS)


def config(**train) -> Config:
    """A few steps of the fake model on streamed ReasonWorld pictures."""
    base = Config()
    values = dict(steps=6, batch_size=8, autoencoder_from="", log_every=2, eval_every=4)
    values |= dict(checkpoint_every=3, eval_examples=3) | train
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, count=37, prepare=False),
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=2, learning_rate=1e-2),
        train=dataclasses.replace(base.train, **values),
    )
