"""Puts imported parts and new modules together to one whole model that train and edit take.

A stage that the configuration freezes and no part brings would stay random for good: that is
refused, unless --allow_random_frozen says that it is meant.

  rb-jax assemble --config=mine.py --parts=parts/flux,parts/vae,parts/clip,parts/llava --out=model
"""

from __future__ import annotations

from rb_jax.cli.flags import Flags


def define(flags: Flags) -> None:
    flags.config()
    flags.words("parts", "Folders that rb-jax import wrote, comma-separated.", required=True)
    flags.string("out", "Folder to write; it must not exist, or be empty.", required=True)
    flags.boolean("allow_random_frozen", "Frozen stages may have random weights, for tests.")


def run(flags: Flags) -> int:
    from rb_jax.port.assemble import assemble

    whole = assemble(
        flags.checked_config(),
        flags.parts,
        flags.out,
        allow_random_frozen=flags.allow_random_frozen,
        progress=True,
    )
    for folder, stages in whole.parts.items():
        print(f"{', '.join(stages) or 'nothing'} from {folder}")
    print(f"new parameters in {', '.join(whole.fresh) or 'nothing'}")
    if whole.unused:
        print(f"left out: {', '.join(sorted({p.split('/')[0] for p in whole.unused}))}")
    print(f"{flags.out}: train it with --config=from_checkpoint:{flags.out}")
    return 0
