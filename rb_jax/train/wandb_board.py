"""The run's logs on Weights & Biases, for those who have the package."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from rb_jax.errors import InputError


class WandbBoard:
    """A run of a project that a later start in the same workdir goes on with.

    Where its data goes is the package's own affair (WANDB_MODE=offline keeps it in the workdir).
    InputError when it is not installed.
    """

    def __init__(self, project: str, workdir: Path, known_as: str):
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError:
            raise InputError("config.train.wandb: pip install wandb, or leave it empty") from None
        self._run = self._wandb.init(
            project=project,
            name=known_as.rpartition("/")[2],
            id=hashlib.sha256(known_as.encode()).hexdigest()[:16],
            dir=str(workdir),
            resume="allow",
        )

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def add_image(self, name: str, image: UInt8[np.ndarray, "H W 3"], step: int) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()
