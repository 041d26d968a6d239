"""Converts a data set to shards of records; goes on where it was stopped.

Layouts: reason50k, magicbrush, emu_edit, reasonedit, editworld, ultraedit, instructpix2pix, folder.
Those in Parquet files need the extra [data].

  rb-jax data import --from=magicbrush --source=MagicBrush --out=data/magicbrush
"""

from __future__ import annotations

from pathlib import Path

from rb_jax.cli.flags import Flags
from rb_jax.files import check_writable


def define(flags: Flags) -> None:
    flags.string("from", "Layout of the source.", required=True)
    flags.string("source", "Folder of the data set, as it was fetched.", required=True)
    flags.string("out", "Folder for the shards; other splits of the data set stay.", required=True)
    flags.string("split", "Split to convert (default: the layout's, mostly train).")
    flags.integer("max_rejects", "Unusable items after which to stop (default: 1 in 100, or 10).")
    flags.job(shard_examples=1000)


def run(flags: Flags) -> int:
    check_writable(Path(flags.out))
    from rb_jax.data.importers.importing import import_dataset

    manifest = import_dataset(
        getattr(flags, "from"),
        flags.source,
        flags.out,
        flags.split,
        max_rejects=flags.max_rejects,
        **flags.divided(),
    )
    if manifest is None:
        print(f"{flags.out}: this process is done; other processes are not")
        return 0
    for note in manifest.notes:
        print(f"note: {note}")
    print(
        f"{flags.out}: {manifest.examples} examples of {manifest.split} in "
        f"{len(manifest.shards)} shards, {manifest.rejects} items rejected"
    )
    return 0
