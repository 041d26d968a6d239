"""Evaluation during training: a validation loss and a picture of a few edits."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from rb_jax.config import Config
from rb_jax.sharding.mesh import compiler_options, process_rows, replicated, shard_batch
from rb_jax.sharding.processes import is_primary
from rb_jax.train import feed
from rb_jax.train.metrics import RunLog, Window, image_grid, save_png, to_uint8
from rb_jax.train.state import TrainState
from rb_jax.train.step import eval_step, sample_step
from rb_jax.types import AnyBatch, Batch

VAL_BATCHES = 4


class Evaluator:
    """Always the same batches and the same randomness, so that two evaluations compare."""

    def __init__(self, config: Config, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh):
        self.config, self.mesh = config, mesh
        self.batches: list[AnyBatch] = []  # this process's rows
        self.few: Batch | None = None  # what is shown, whole on every process
        # Replicated, so that every process can read the results.
        jit = functools.partial(
            jax.jit, out_shardings=replicated(mesh), compiler_options=compiler_options(mesh)
        )
        self.loss = jit(functools.partial(eval_step, graphdef, config))
        self.sample = jit(functools.partial(sample_step, graphdef, config))

    def evaluate(self, workdir: Path, log: RunLog, state: TrainState) -> None:
        """Logs the loss as kind "val", and source | edit | truth to samples/ and TensorBoard."""
        step, size = int(state.step), self.config.train.batch_size
        if not self.batches:
            split, rows = self.config.data.val_split, process_rows(self.mesh, size)
            stream = feed.streamed(self.config, split, rows=rows)
            self.batches = [next(stream) for _ in range(VAL_BATCHES)]
        window, rng = Window(), jax.random.key(0)
        for i, batch in enumerate(self.batches):
            sharded = shard_batch(self.mesh, batch, size)
            with jax.set_mesh(self.mesh):
                losses = self.loss(state, sharded, jax.random.fold_in(rng, i))
            window.add(jax.device_get(losses))
        log.write("val", step, window.means())
        if self.config.train.eval_examples:
            picture = self.picture(state, rng)
            log.image("edits", step, picture)
            if is_primary():
                save_png(workdir / "samples" / f"step_{step}.png", picture)

    def picture(self, state: TrainState, rng: jax.Array) -> np.ndarray:
        """uint8 [H W 3]: a row for each example, source | edit | truth."""
        if self.few is None:
            count = min(self.config.train.eval_examples, self.config.train.batch_size)
            split, rows = self.config.data.val_split, np.arange(count)
            few = next(feed.streamed(self.config, split, rows=rows))
            assert isinstance(few, Batch), "config.train.eval_examples needs pictures"
            self.few = few
        few = self.few
        with jax.set_mesh(self.mesh):
            made = self.sample(state, shard_batch(self.mesh, few), rng)
        made = to_uint8(jax.device_get(made))
        columns = [np.asarray(few.source), made]
        if few.target is not None and self.config.train.task == "edit":
            columns.append(np.asarray(few.target))
        return image_grid(columns)
