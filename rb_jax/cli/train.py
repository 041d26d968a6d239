"""Trains a model, or continues what is in the workdir.

Checkpoints, metrics, TensorBoard, samples and at the end the weights go to the workdir; the same
command again continues a stopped run with exactly the next batch. Several processes join by
themselves on Cloud TPU, GKE and Slurm, elsewhere by three flags that go together.

  rb-jax train --config=reasonworld --workdir=runs/mine
  rb-jax train --config=reasonworld --workdir=runs/mine --config.train.batch_size=16
"""

from __future__ import annotations

import os
from pathlib import Path

from rb_jax.cli.flags import Flags
from rb_jax.files import check_writable
from rb_jax.runtime.exits import installed
from rb_jax.storage import is_bucket


def define(flags: Flags) -> None:
    flags.config()
    text = "Folder of the run, on a disk or gs://BUCKET/RUN or s3://BUCKET/RUN."
    flags.string("workdir", text, required=True)
    found = "(default: found on Cloud TPU and Slurm)."
    flags.string("coordinator_address", f"HOST:PORT of the first of several processes {found}")
    flags.integer("num_processes", f"How many processes train together {found}")
    flags.integer("process_id", f"Which of them this is, from 0 {found}")
    flags.compiling()


def run(flags: Flags) -> int:
    with installed() as signals:  # ahead of all that takes time
        config = flags.checked_config()
        if not is_bucket(flags.workdir):
            check_writable(Path(flags.workdir))
        from rb_jax.runtime import distributed

        # First of all: JAX must not have looked for devices yet.
        distributed.start(
            os.environ, flags.coordinator_address, flags.num_processes, flags.process_id
        )
        from rb_jax.train.loop import train

        return train(config, flags.workdir, signals)
