"""Evaluation during training: a validation loss and a picture of a few edits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from rb_jax.config import Config
from rb_jax.data.inputs.images import save_image
from rb_jax.models.pixels import to_uint8
from rb_jax.models.types import AnyBatch, Batch, FeatureBatch
from rb_jax.runtime.compiling import compiled, fast_compile
from rb_jax.runtime.processes import is_primary
from rb_jax.sharding.mesh import compiler_options, process_rows, replicated, shard_batch
from rb_jax.train import feed
from rb_jax.train.initial import encoder_weights
from rb_jax.train.metrics import RunLog, Window, image_grid
from rb_jax.train.state import TrainState
from rb_jax.train.step import eval_step, sample_step, shapes
from rb_jax.weights.params import cast_params, definition, merge_partial, model_class

VAL_BATCHES = 4
Decode = Callable[[Float[np.ndarray, "B H W C"]], UInt8[np.ndarray, "B Y X 3"]]


class Evaluator:
    """Always the same batches and the same randomness, so that two evaluations compare."""

    def __init__(self, config: Config, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
        self.config, self.mesh = config, mesh
        self.batches: list[AnyBatch] = []  # this process's rows; none until it is compiled
        # What is shown, if anything, whole on every process; of features, with a decoder.
        self.few: Batch | FeatureBatch | None = None
        self.decode: Decode | None = None
        # Replicated, so that every process can read the results.
        self.options = options_for(mesh)
        jit = functools.partial(jax.jit, out_shardings=replicated(mesh))
        self.loss: Any = jit(functools.partial(eval_step, graphdef, config))
        self.losses: dict[tuple, Any] = {}  # compiled, by the shapes of a batch
        self.sample: Any = jit(functools.partial(sample_step, graphdef, config))

    @property
    def ready(self) -> bool:
        return bool(self.batches)

    def compile(self, state: TrainState) -> None:
        """What an evaluation needs, made for the first one alone: a run's first step comes sooner.

        A signal would have to wait for it. Of several processes each must call this.
        """
        size = self.config.train.batch_size
        split, mine = self.config.data.val_split, process_rows(self.mesh, size)
        stream = feed.streamed(self.config, split, rows=mine)
        batches = [next(stream) for _ in range(VAL_BATCHES)]
        with jax.set_mesh(self.mesh):
            for rows in batches:
                if shapes(rows) not in self.losses:
                    batch = shard_batch(self.mesh, rows, size)
                    args = state, batch, jax.random.key(0)
                    lower = functools.partial(self.loss.lower, *args)
                    about = (self.config, model_class(self.config), args)
                    self.losses[shapes(rows)] = compiled(
                        lower, "the validation loss", self.options, about
                    )
            if count := min(self.config.train.eval_examples, size):
                few = next(feed.streamed(self.config, split, rows=np.arange(count)))
                assert isinstance(few, Batch | FeatureBatch), "no pictures in these batches"
                batch = shard_batch(self.mesh, few)
                if isinstance(few, FeatureBatch):
                    self.decode = latent_decoder(self.config, self.mesh, few.target_latent.shape)
                args = state, batch, jax.random.key(0)
                lower = functools.partial(self.sample.lower, *args)
                about = (self.config, model_class(self.config), args)
                self.sample = compiled(lower, "the sampler", self.options, about)
                self.few = few
        self.batches = batches

    def evaluate(
        self, workdir: Path, log: RunLog, state: TrainState, stops: Callable[[], bool]
    ) -> bool:
        """Logs the loss as kind "val", and source | edit | truth to samples/ and TensorBoard.

        False, with nothing logged, when ``stops`` (asked before each batch) said so.
        """
        step, size = int(state.step), self.config.train.batch_size
        window, rng, picture = Window(), jax.random.key(0), None
        for i, batch in enumerate(self.batches):
            if stops():
                return False
            sharded = shard_batch(self.mesh, batch, size)
            loss = self.losses[shapes(batch)]
            window.add(jax.device_get(loss(state, sharded, jax.random.fold_in(rng, i))))
        if self.few is not None:
            if stops():
                return False
            picture = self.picture(self.few, state, rng)
        log.write("val", step, window.means())
        if picture is not None:
            log.image("edits", step, picture)
            if is_primary():
                folder = workdir / "samples"
                with log.kept():
                    folder.mkdir(exist_ok=True)
                    save_image(folder / f"step_{step}.png", picture)
        return True

    def picture(
        self, few: Batch | FeatureBatch, state: TrainState, rng: jax.Array
    ) -> UInt8[np.ndarray, "H W 3"]:
        """A row for each example, source | edit | truth; of features all three are decoded."""
        edits = jax.device_get(self.sample(state, shard_batch(self.mesh, few), rng))
        if isinstance(few, FeatureBatch):
            assert self.decode is not None
            latents = few.features.source_latent, edits, few.target_latent
            return image_grid([self.decode(np.asarray(x, np.float32)) for x in latents])
        edits = to_uint8(edits)
        columns = [np.asarray(few.source), edits]
        if few.target is not None and self.config.train.task == "edit":
            columns.append(np.asarray(few.target))
        return image_grid(columns)


def options_for(mesh: jax.sharding.Mesh) -> dict[str, Any] | None:
    """Compiler options for programs that run now and then: on CPUs those that compile soonest."""
    return fast_compile({d.platform for d in mesh.devices.flat}, level=1) or compiler_options(mesh)


def latent_decoder(config: Config, mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> Decode:
    """Latents of this shape to pictures, by the autoencoder of config.train.init_from.

    Compiled here; every process must call this, and what it returns with the same latents.
    """
    other, weights = encoder_weights(config, ("autoencoder",))
    graphdef, shapes, _ = definition(other)

    def decode(weights, latents):
        weights = cast_params(other, weights)
        return merge_partial(graphdef, weights, shapes).autoencoder.decode(latents)

    everywhere = replicated(mesh)
    weights = jax.device_put(weights, everywhere)
    latents = jax.ShapeDtypeStruct(shape, np.float32, sharding=everywhere)
    jitted = jax.jit(decode, out_shardings=everywhere, compiler_options=options_for(mesh))
    with jax.set_mesh(mesh):
        run = jitted.lower(weights, latents).compile()
    return lambda z: to_uint8(jax.device_get(run(weights, jax.device_put(z, everywhere))))
