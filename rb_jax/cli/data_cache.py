"""Runs the frozen encoders once over a data set; training then reads their features.

The model needs no encoders then, and a step spends no time on them. The command goes on with what
is missing, and says at its end how to train from the cache.

  rb-jax data cache --data=data/magicbrush --checkpoint=model --out=data/features
"""

from __future__ import annotations

from pathlib import Path

from rb_jax.cli.flags import Flags
from rb_jax.files import check_writable


def define(flags: Flags) -> None:
    flags.string(
        "data", "Folder of records (rb-jax data import) or in Reason50K's layout.", required=True
    )
    flags.string(
        "checkpoint", "Weights folder or workdir of the whole model, or 'shipped'.", required=True
    )
    flags.string("out", "Folder for the features; other splits in it stay.", required=True)
    flags.string("split", "Split to encode.", "train")
    flags.integer("batch_size", "Examples encoded together.", 16)
    flags.job(shard_examples=256)
    flags.compiling()


def run(flags: Flags) -> int:
    check_writable(Path(flags.out))
    from rb_jax.data.cache.encode import cache_features

    manifest = cache_features(
        flags.data,
        flags.checkpoint,
        flags.out,
        flags.split,
        batch_size=flags.batch_size,
        **flags.divided(),
    )
    if manifest is None:
        print(f"{flags.out}: this process is done; other processes are not")
        return 0
    size = sum(shard.bytes for shard in manifest.shards)
    print(
        f"{flags.out}: features of {manifest.examples} examples of {manifest.split} in "
        f"{len(manifest.shards)} shards, {size / 1e9:.2f} GB; when train and val are there:\n"
        f"  rb-jax train --config=from_checkpoint:{flags.checkpoint} --workdir=RUN "
        f"--config.data.name=cache --config.data.inputs=features --config.data.path={flags.out}"
    )
    return 0
