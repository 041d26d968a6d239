"""Which batches training reads: made on the fly, or with latents computed ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
from flax import nnx

from rb_jax.config import Config, ConfigError
from rb_jax.data import loader, prepared
from rb_jax.train import checkpoint
from rb_jax.train.state import TrainState, merge
from rb_jax.types import Batch


def train_batches(
    config: Config, workdir: Path, graphdef: nnx.GraphDef, state: TrainState
) -> Iterator[Batch]:
    """This process's rows of the batches of steps state.step, state.step + 1, ...

    With data.cache_latents the frozen autoencoder sees every picture once, before training.
    Raises ConfigError when that autoencoder is trained.
    """
    step, data = int(state.step), config.data
    if config.train.task != "edit" or not data.cache_latents:
        return loader.batches(config, data.split, start_step=step)
    if any(path.startswith("autoencoder/") for path in state.params):
        raise ConfigError("config.data.cache_latents: the autoencoder is trained; freeze or clear")
    weights = {p: v for p, v in state.frozen.items() if p.startswith("autoencoder/")}
    sums = jax.device_get(checkpoint.checksums(weights))
    fingerprint = "-".join(f"{int(sums[path]):08x}" for path in sorted(sums))

    def encode(params, images):
        return merge(graphdef, params).encode_latents(images)

    jitted = jax.jit(encode)
    params = dict(state.params) | state.frozen
    ready = prepared.prepare(
        config, data.split, workdir / "prepared", lambda x: jitted(params, x), fingerprint
    )
    return ready.batches(
        config.train.batch_size, data.seed, step, jax.process_index(), jax.process_count()
    )
