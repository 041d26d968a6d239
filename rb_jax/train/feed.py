"""Which batches training reads: made on the fly, or with latents computed ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int

from rb_jax.checkpoint import fingerprints
from rb_jax.config import Config, ConfigError
from rb_jax.data.cache import prepared
from rb_jax.data.cache.features import FeatureCache, read_manifest, weights_hash
from rb_jax.data.pipeline import loader, synthetic
from rb_jax.errors import InputError
from rb_jax.models.types import AnyBatch
from rb_jax.runtime.processes import primary_first, to_host
from rb_jax.sharding.mesh import process_rows
from rb_jax.train.initial import encoder_weights
from rb_jax.train.state import TrainState
from rb_jax.weights.params import merge_partial

T = TypeVar("T")
POLL_SECONDS = 0.1


class Interruptible(Generic[T]):
    """An iterator that is waited for only until there is a reason to stop.

    A thread takes the items, each when it is asked for. ``close`` ends it, without waiting, since
    it may hang in a file system.
    """

    def __init__(self, items: Iterator[T], stop: Callable[[], bool]):
        self._items, self._stop = items, stop
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._take, name="input", daemon=True).start()

    def _take(self) -> None:
        while self._asked.get():
            try:
                self._answers.put((next(self._items), None))
            except BaseException as error:
                self._answers.put((None, error))

    def next(self) -> T | None:
        """The next item, or None when the reason came first; then ask for no more."""
        self._asked.put(True)
        while True:
            try:
                item, error = self._answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self._stop():
                    return None
                continue
            if error is not None:
                raise error
            return item

    def close(self) -> None:
        self._asked.put(False)


def train_batches(
    config: Config,
    workdir: Path,
    graphdef: nnx.GraphDef,
    state: TrainState,
    mesh: jax.sharding.Mesh,
) -> Iterator[AnyBatch]:
    """This process's rows (``process_rows``) of the batches of steps state.step and on.

    With data.prepare every example is made once, before training, in ``workdir/prepared``,
    and the frozen autoencoder encodes it there (unless it is what the task trains). The first
    process does that while the others wait; where these do not see its folder, they do the same.
    Raises ConfigError when an autoencoder whose latents are to be kept is trained.
    """
    step, data = int(state.step), config.data
    rows = process_rows(mesh, config.train.batch_size)
    if data.name == "cache":
        check_encoders(config)
    if not data.prepare or data.name in ("synthetic", "cache"):
        return streamed(config, data.split, step, rows)
    encode, name = None, ""
    if config.train.task == "edit":
        encode, name = latent_encoder(config, graphdef, state)
    folder = Path(data.prepared_dir) if data.prepared_dir else workdir / "prepared"
    ready = primary_first(lambda: prepared.prepare(config, data.split, folder, encode, name))
    return ready.batches(config.train.batch_size, data.seed, step, rows)


def check_data(config: Config) -> None:
    """InputError when a data set that training and its evaluation read is not there or broken."""
    for split in (config.data.split, config.data.val_split):
        if config.data.name == "cache":
            FeatureCache(config.data.path, split).check(config)
        elif config.data.name != "synthetic":
            loader.open_checked(config, split, loader.Collator(config))


def streamed(
    config: Config, split: str, step: int = 0, rows: Int[np.ndarray, " R"] | None = None
) -> Iterator[AnyBatch]:
    """These rows (default: all) of the batches of steps ``step`` and on, made on the fly."""
    if config.data.name == "synthetic":
        return synthetic.batches(config, rows)
    if config.data.name == "cache":
        cache = FeatureCache(config.data.path, split)
        cache.check(config)
        data, threads = config.data, config.data.workers or 2
        return cache.batches(config.train.batch_size, data.seed, step, rows, threads)
    return loader.batches(config, split, step, rows)


def check_encoders(config: Config) -> None:
    """InputError when the cache's features come from other encoders than train.init_from has."""
    weights = encoder_weights(config)[1]
    cached = read_manifest(config.data.path, config.data.split).encoders
    if weights and weights_hash(weights) != cached:
        raise InputError(
            f"{config.data.path}: features of other encoders than those of "
            f"config.train.init_from={config.train.init_from!r}; compute the cache again"
        )


def latent_encoder(
    config: Config, graphdef: nnx.GraphDef, state: TrainState
) -> tuple[Callable[[np.ndarray], jax.Array], str]:
    """Pictures -> latents of the state's frozen autoencoder, and a name for its exact weights.

    Making the function is collective; calling it runs on one device of this process alone.
    """
    if any(path.startswith("autoencoder/") for path in state.params):
        raise ConfigError("config.data.prepare: the autoencoder is trained; freeze or clear")
    weights = {p: v for p, v in state.frozen.items() if p.startswith("autoencoder/")}
    values = fingerprints.of(weights)
    fingerprint = "-".join(values[path] for path in sorted(values))

    every = dict(state.params) | state.frozen
    shapes = {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in every.items()}
    device = jax.local_devices()[0]
    here = {p: jax.device_put(to_host(v), device) for p, v in weights.items()}

    @jax.jit
    def encode(weights, images):
        return merge_partial(graphdef, weights, shapes).encode_latents(images)

    return lambda images: encode(here, images), fingerprint
