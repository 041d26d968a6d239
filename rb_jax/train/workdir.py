"""What a workdir holds of earlier commands, and the weights that a finished run leaves in it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from rb_jax.checkpoint.manager import Checkpoints
from rb_jax.config import Config, differing_keys
from rb_jax.errors import InputError, listed
from rb_jax.runtime.exits import EXIT_IO, RunError
from rb_jax.runtime.processes import say, wait_for_all
from rb_jax.runtime.progress import working
from rb_jax.train.initial import distributed, initial_weights, whole_model
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import TrainState, abstract_state, ema_params, init_state
from rb_jax.weights.folder import CONFIG, save_weights

# What may change between two commands on one workdir; everything else would make the checkpoint
# lie about how it was made.
CHANGEABLE = (
    "train.log_every",
    "train.eval_every",
    "train.eval_examples",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.step_timeout",
    "train.max_skipped",
    "train.wandb",
    "profile.steps",
    "data.workers",
    "data.prepared_dir",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.context",
    "mesh.slices",
    "mesh.frozen",
)


def check_workdir(config: Config, workdir: object, there: dict[str, Any]) -> None:
    """Raises InputError naming the keys in which the run there was configured otherwise.

    How often to log, evaluate and save may change, and train.steps may be raised.
    """
    asked = dataclasses.asdict(config)
    raised = config.train.steps > there["train"].get("steps", 0)
    keys = [k for k in differing_keys(there, asked) if k not in CHANGEABLE]
    keys = [k for k in keys if not (k == "train.steps" and raised)]
    if keys:
        each = [f"{k} is {_at(there, k)!r} there, not {_at(asked, k)!r}" for k in keys]
        only = " (train.steps may be raised, not lowered)" if "train.steps" in keys else ""
        raise InputError(
            f"{workdir} holds a run of another configuration: {listed(each, '; ')}{only}; choose "
            "another workdir or the same values"
        )


def _at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(lambda found, name: (found or {}).get(name), key.split("."), values)


def start(
    config: Config, manager: Checkpoints, mesh: jax.sharding.Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """The newest good checkpoint's state and the loop's record, or a fresh state and {}."""
    tx = make_optimizer(config)
    restored = manager.restore_newest(
        config,
        lambda: abstract_state(config, tx, mesh),
        lambda there: check_workdir(config, manager.folder.parent, there),
    )
    if restored is not None:
        say(f"continuing from {manager.folder} at step {manager.last}")
        return restored
    weights = distributed(initial_weights(config), mesh)
    with working("initialising the parameters"):
        return init_state(config, tx, weights, mesh), {}


def write_weights(workdir: epath.Path, config: Config, state: TrainState) -> None:
    """The running average, and the encoders it started with; returns when it is written."""
    try:
        save_weights(workdir / "weights", *whole_model(config, ema_params(state)))
    except InputError as error:  # a full disk is no bad input here: the same command goes on
        raise RunError(EXIT_IO, f"{error}; the checkpoints are intact") from error
    wait_for_all()


def weights_step(workdir: epath.Path) -> int | None:
    """The last step of the run that wrote ``weights/``, if they are whole."""
    try:
        stored = json.loads((workdir / "weights" / CONFIG).read_bytes())
        return int(stored["train"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
