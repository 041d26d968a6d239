"""The compiled training steps of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from rb_jax.config import Config
from rb_jax.runtime.compiling import compiled
from rb_jax.runtime.programs import recalled
from rb_jax.sharding.mesh import compiler_options
from rb_jax.train.state import TrainState
from rb_jax.train.step import model_flops, shapes
from rb_jax.weights.params import model_class


@dataclasses.dataclass
class Stepper:
    """The compiled steps, one for each shape of batch, and what is known about their cost."""

    config: Config
    jitted: Any
    mesh: jax.sharding.Mesh
    peak: float  # FLOP/s of all devices
    compiled: dict[tuple, tuple[Callable, float]] = dataclasses.field(default_factory=dict)

    def knows(self, batch: Any) -> bool:
        return shapes(batch) in self.compiled

    def compile(self, state: TrainState, batch: Any) -> None:
        """Makes the step for this batch's shapes."""
        about = (self.config, model_class(self.config), state, batch)
        with jax.set_mesh(self.mesh):
            step = compiled(
                lambda: self.jitted.lower(state, batch),
                "the training step",
                compiler_options(self.mesh),
                about,
            )
        flops = recalled("FLOPs of a step", about, lambda: model_flops(self.config, batch))
        self.compiled[shapes(batch)] = step, flops

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict]:
        return self.compiled[shapes(batch)][0](state, batch)

    def flops(self, batch: Any) -> float:
        """Model FLOPs of a step on a batch of this shape."""
        return self.compiled[shapes(batch)][1]
