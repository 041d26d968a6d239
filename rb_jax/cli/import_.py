"""Reads a PyTorch checkpoint into a part of a model: FLUX.1, its autoencoder, CLIP, LLaVA, SAM, or
the authors' modules.

Every tensor comes in bit for bit; one that is left over, missing or of another shape is an error.

  rb-jax import --source=FLUX.1-dev/transformer --out=parts/flux
"""

from __future__ import annotations

from rb_jax.cli.flags import Flags

FAMILIES = ["flux", "flux_vae", "clip", "llava", "sam", "reasonbrain"]


def define(flags: Flags) -> None:
    flags.choice("family", FAMILIES, "What it is (default: found from the tensors' names).")
    flags.string(
        "source", "A .safetensors file, or a folder of them with its index.", required=True
    )
    flags.string("out", "Folder to write; it must not exist, or be empty.", required=True)
    flags.choice(
        "dtype",
        ["float32", "bfloat16", "float16"],
        "Stores floating tensors as this (default: as they are); losing bits is an error.",
    )
    flags.boolean("allow_rounding", "--dtype may lose bits.")
    flags.boolean("allow_pickle", "Read .pt and .bin files, with torch.load(weights_only=True).")
    flags.repeated("set", "GROUP.KEY=VALUE: a size that the files do not tell, e.g. frce.heads=8.")


def run(flags: Flags) -> int:
    from rb_jax.port.importing import import_checkpoint

    family, layout, part = import_checkpoint(
        flags.source,
        flags.out,
        family=flags.family,
        dtype=flags.dtype,
        allow_pickle=flags.allow_pickle,
        allow_rounding=flags.allow_rounding,
        settings=flags.set or [],
        progress=True,
    )
    print(f"{flags.out}: {family.name} in the {layout.name} layout")
    for group, inner in part.values.items():
        print(f"  {group}: " + ", ".join(f"{key}={value}" for key, value in inner.items()))
    return 0
