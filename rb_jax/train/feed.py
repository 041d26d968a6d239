"""Which batches training reads: made on the fly, or with latents computed ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
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

    With data.prepare every example is made once, before training, in ``workdir/prepared``,
    and the frozen autoencoder encodes it there (unless it is what the task trains). Raises
    ConfigError when an autoencoder whose latents are to be kept is trained.
    """
    step, data = int(state.step), config.data
    place = (jax.process_index(), jax.process_count())
    if not data.prepare:
        return loader.batches(config, data.split, step, *place)
    encode, name = None, ""
    if config.train.task == "edit":
        encode, name = latent_encoder(config, graphdef, state)
    folder = Path(data.prepared_dir) if data.prepared_dir else workdir / "prepared"
    ready = prepared.prepare(config, data.split, folder, encode, name)
    return ready.batches(config.train.batch_size, data.seed, step, *place)


def latent_encoder(
    config: Config, graphdef: nnx.GraphDef, state: TrainState
) -> tuple[Callable[[np.ndarray], jax.Array], str]:
    """Pictures -> latents of the state's frozen autoencoder, and a name for its exact weights."""
    if any(path.startswith("autoencoder/") for path in state.params):
        raise ConfigError("config.data.prepare: the autoencoder is trained; freeze or clear")
    weights = {p: v for p, v in state.frozen.items() if p.startswith("autoencoder/")}
    sums = jax.device_get(checkpoint.checksums(weights))
    fingerprint = "-".join(f"{int(sums[path]):08x}" for path in sorted(sums))

    params = dict(state.params) | state.frozen
    encode = jax.jit(lambda params, x: merge(graphdef, params).encode_latents(x))
    return lambda images: encode(params, images), fingerprint
