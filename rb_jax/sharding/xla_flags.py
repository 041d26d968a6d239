"""The compiler flags of every chip, for the launchers and for Python.

python3 rb_jax/sharding/xla_flags.py v5p             the flags, as one string
python3 rb_jax/sharding/xla_flags.py v5p --variable  the environment variable they belong in
python3 rb_jax/sharding/xla_flags.py --explain       what every flag does, on which chips it is set

Training and the planner hand them to the compiler themselves (rb_jax.sharding.mesh); the launchers
set them for whatever else compiles. CHIP may also be an accelerator type, v5litepod-256. An unknown
flag ends the process as soon as the compiler loads, so every flag here is tried by the tests. Needs
nothing but Python.
"""

from __future__ import annotations

import argparse
import sys
from importlib import metadata

V4, V5E, V5P, V6E, V7X = TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
H100, H200, B200 = GPUS = ("h100", "h200", "b200")
NAMES = TPUS + GPUS

# Part of a JAX device kind -> chip; the first that fits.
KINDS = (
    ("v5 lite", V5E),
    ("v5e", V5E),
    ("v5", V5P),
    ("v4", V4),
    ("v6", V6E),
    ("7x", V7X),
    ("h100", H100),
    ("h200", H200),
    ("b200", B200),
)
_ON = "true"
_OFF = "false"
_MIB = 2**20


def _all(chips: tuple[str, ...], value: str) -> dict[str, str]:
    return dict.fromkeys(chips, value)


# flag: (what it does, {chip: value}); a chip that is not named keeps the compiler's default.
FLAGS: dict[str, tuple[str, dict[str, str]]] = {
    "xla_enable_async_all_gather": (
        "splits all-gathers (the weights of FSDP) into a start and a wait",
        _all(TPUS, _ON),
    ),
    "xla_tpu_prefer_async_allgather_to_allreduce": (
        "keeps all-gathers on a 3D torus from becoming all-reduces, which send twice as much",
        _all(TPUS, _ON),
    ),
    "xla_tpu_overlap_compute_collective_tc": (
        "lets the TensorCore compute while it drives a transfer",
        _all(TPUS, _ON),
    ),
    "xla_tpu_enable_async_collective_fusion": (
        "fuses running transfers with the products beside them",
        _all(TPUS, _ON),
    ),
    "xla_tpu_enable_async_collective_fusion_multiple_steps": (
        "spreads one such transfer over several products",
        _all(TPUS, _ON),
    ),
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": (
        "fuses all-gathers this way",
        _all(TPUS, _ON),
    ),
    # Only these chips have SparseCores; a transfer can only be in one place.
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": (
        "lets the SparseCores run reduce-scatters (the gradients of FSDP) beside the TensorCores",
        _all((V5P, V6E, V7X), _ON),
    ),
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": (
        "the same over several axes of the torus, instead of all-reduces that send twice as much",
        _all((V5P, V6E, V7X), _ON),
    ),
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": (
        "the same for all-reduces (the gradients of the data axis)",
        _all((V5P, V6E, V7X), _ON),
    ),
    "xla_tpu_enable_data_parallel_all_reduce_opt": (
        "overlaps the gradients' all-reduce between slices (DCN) with the backward pass",
        _all(TPUS, _ON),
    ),
    "xla_tpu_data_parallel_opt_different_sized_ops": (
        "the same when the gradients differ in size",
        _all(TPUS, _ON),
    ),
    # With them the 19 B model's step had not compiled after half an hour; without, in six minutes.
    "xla_tpu_enable_windowed_einsum_for_all_gather": (
        "false keeps products whole that would be cut to run beside their all-gather",
        {V6E: _OFF},
    ),
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": (
        "the same beside their reduce-scatter",
        {V6E: _OFF},
    ),
    "xla_gpu_enable_latency_hiding_scheduler": (
        "moves the start of a transfer up and its wait down, over other work",
        _all(GPUS, _ON),
    ),
    "xla_gpu_enable_triton_gemm": (
        "false leaves matrix products to cuBLAS, the faster one for large bf16 products",
        _all(GPUS, _OFF),
    ),
    "xla_gpu_enable_while_loop_double_buffering": (
        "unrolls the scan over blocks by two, so that transfers cross from block to block",
        _all(GPUS, _ON),
    ),
    "xla_gpu_enable_pipelined_all_gather": (
        "gathers the next block's weights during this block (FSDP)",
        _all(GPUS, _ON),
    ),
    "xla_gpu_enable_pipelined_reduce_scatter": (
        "scatters the last block's gradients during this block (FSDP)",
        _all(GPUS, _ON),
    ),
    "xla_gpu_enable_pipelined_all_reduce": (
        "the same for the data axis",
        _all(GPUS, _ON),
    ),
    # About one block of FLUX in bfloat16, more where there is memory for it.
    "xla_gpu_all_gather_combine_threshold_bytes": (
        "joins all-gathers up to this size into one NCCL call",
        {H100: str(256 * _MIB), H200: str(512 * _MIB), B200: str(512 * _MIB)},
    ),
    "xla_gpu_reduce_scatter_combine_threshold_bytes": (
        "the same for reduce-scatters",
        {H100: str(256 * _MIB), H200: str(512 * _MIB), B200: str(512 * _MIB)},
    ),
    "xla_gpu_all_reduce_combine_threshold_bytes": (
        "the same for all-reduces",
        {H100: str(256 * _MIB), H200: str(512 * _MIB), B200: str(512 * _MIB)},
    ),
}


# flag: the first jaxlib (major, minor) without it.
REMOVED = {
    "xla_gpu_enable_pipelined_all_gather": (0, 11),
    "xla_gpu_enable_pipelined_reduce_scatter": (0, 11),
    "xla_gpu_enable_pipelined_all_reduce": (0, 11),
}


def chip_name(name: str) -> str:
    """The chip of its own name or an accelerator type's: v5litepod-16 is v5e. Raises ValueError."""
    chip = {"v5litepod": V5E, "v7x": V7X}.get(name.split("-")[0], name.split("-")[0])
    if chip not in NAMES:
        raise ValueError(f"unknown chip {name!r}: one of {', '.join(NAMES)}")
    return chip


def flags(chip: str) -> list[str]:
    """--name=value of every flag that the chip sets and the installed compiler knows."""
    return [f"--{name}={value}" for name, value in _chosen(chip).items()]


def options(device_kind: str) -> dict[str, bool | int]:
    """The flags as compiler options for a JAX device kind such as ``TPU v5`` or ``NVIDIA H200``."""
    kind = device_kind.lower()
    chip = next((chip for part, chip in KINDS if part in kind), None)
    return {name: _typed(value) for name, value in _chosen(chip).items()} if chip else {}


def _chosen(chip: str) -> dict[str, str]:
    """Flag -> value; without jaxlib, those that every supported one knows."""
    try:
        major, minor = metadata.version("jaxlib").split(".")[:2]
        installed = int(major), int(minor)
    except metadata.PackageNotFoundError:
        installed = None
    return {
        name: values[chip]
        for name, (_, values) in FLAGS.items()
        if chip in values and (name not in REMOVED or (installed and installed < REMOVED[name]))
    }


def _typed(value: str) -> bool | int:
    """XLA takes options as what they are, where flags are text."""
    return value == _ON if value in (_ON, _OFF) else int(value)


def variable(chip: str) -> str:
    """Where the flags go: the TPU compiler reads its own, once, when it loads."""
    return "LIBTPU_INIT_ARGS" if chip in TPUS else "XLA_FLAGS"


def explain() -> str:
    lines = []
    for name, (meaning, values) in FLAGS.items():
        chips: dict[str, list[str]] = {}
        for chip, value in values.items():
            chips.setdefault(value, []).append(chip)
        set_to = "; ".join(f"{value} on {' '.join(on)}" for value, on in chips.items())
        lines.append(f"--{name}\n    {meaning}\n    {set_to}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compiler flags of a chip.")
    parser.add_argument(
        "chip", nargs="?", help=f"one of {', '.join(NAMES)}, or an accelerator type"
    )
    parser.add_argument("--variable", action="store_true", help="print the variable's name")
    parser.add_argument("--explain", action="store_true", help="print what every flag does")
    args = parser.parse_args(argv)
    if args.explain:
        print(explain())
        return 0
    if args.chip is None:
        parser.error("needs a chip, or --explain")
    try:
        chip = chip_name(args.chip)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(variable(chip) if args.variable else " ".join(flags(chip)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
