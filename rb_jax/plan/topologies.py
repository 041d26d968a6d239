"""Names of hardware to plan for, ``v5p:4x4x4`` or ``h200:64``, and their devices for a mesh."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
from typing import Any

from jax.sharding import AbstractDevice

from rb_jax.errors import InputError
from rb_jax.sharding.chips import CHIPS, Chip

# Slice shapes of each TPU: powers of two for the flat ones, cubes of 4 for the tori.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x12",
    "8x8x16",
    "8x16x16",
    "16x16x16",
)
SHAPES: dict[str, tuple[str, ...]] = {
    "v4": _CUBES[:11],
    "v5e": _FLAT,
    "v5p": _CUBES[:11],
    "v6e": _FLAT,
    "tpu7x": _CUBES,
}
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that a job runs on: ``slices`` times ``dims``."""

    name: str
    chip: Chip
    dims: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.dims) * self.slices

    @property
    def devices(self) -> int:
        """JAX devices: two a chip on tpu7x, one elsewhere."""
        return self.chips * self.chip.devices

    @property
    def device(self) -> AbstractDevice:
        """What each of them is, for an abstract mesh."""
        platform = "tpu" if self.chip.is_tpu else "gpu"
        return AbstractDevice(self.chip.kinds[0], None, platform)

    @property
    def hosts(self) -> int:
        per_host = min(8, math.prod(self.dims)) if not self.chip.is_tpu else 4
        return self.slices * max(1, math.prod(self.dims) // per_host)


def names() -> list[str]:
    """Every name that ``parse`` accepts."""
    tpus = [f"{chip}:{shape}" for chip, shapes in SHAPES.items() for shape in shapes]
    gpus = [name for name, chip in CHIPS.items() if not chip.is_tpu]
    return tpus + [f"{gpu}:{count}" for gpu in gpus for count in GPU_COUNTS]


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of a name; InputError, with names near it, when there is none."""
    if slices < 1:
        raise InputError(f"slices={slices}: must be positive")
    if name not in names():
        near = difflib.get_close_matches(name.lower(), names(), n=4, cutoff=0.3) or ["v5p:2x2x1"]
        raise InputError(f"topology {name!r} is not known; near it: {', '.join(near)}")
    chip, shape = name.split(":")
    dims = tuple(int(n) for n in shape.split("x"))
    if slices > 1 and not CHIPS[chip].is_tpu:
        raise InputError(f"slices={slices}: only TPUs come in slices; ask for more GPUs instead")
    return Topology(name, CHIPS[chip], dims, slices)


def devices(topology: Topology) -> list[Any]:
    """The topology's devices, for ``jax.sharding.Mesh``; none of them has to exist.

    Call it in a process of its own (``rb_jax.plan.compiling``): the compiler's library reads its
    flags once. Raises InputError when that library is missing or does not know the topology.
    """
    from jax.experimental import topologies  # the plugin loads here

    try:
        if topology.chip.is_tpu:
            described = topologies.get_topology_desc(platform="tpu", **_tpu_arguments(topology))
        else:
            described = topologies.get_topology_desc(**_gpu_arguments(topology))
    except Exception as error:  # noqa: BLE001 - whatever the plugin raises
        reason = missing(topology.chip) or str(error).splitlines()[0]
        raise InputError(f"topology {topology.name}: {reason}") from error
    return list(described.devices)


def missing(chip: Chip) -> str:
    """What to install so that the chip can be compiled for; empty when it is there."""
    if chip.is_tpu:
        module, extra, packages = "libtpu", "plan", "libtpu"
    else:
        module, extra = "jax_plugins.xla_cuda13", "plan-gpu"
        packages = "jax-cuda13-plugin and jax-cuda13-pjrt"
    try:
        if importlib.util.find_spec(module):
            return ""
    except ModuleNotFoundError:  # the package that the module is in
        pass
    return f"compiling for it needs {packages}, the extra [{extra}]: pip install '.[{extra}]'"


def _tpu_arguments(topology: Topology) -> dict[str, Any]:
    arguments: dict[str, Any] = {"topology_name": topology.name, "num_slices": topology.slices}
    if topology.chips == topology.slices:  # a host of one chip, where four are usual
        arguments["chips_per_host_bounds"] = (1, 1, 1)
    if topology.chip.name == "v4":
        arguments["chip_config_name"] = "megacore"
    return arguments


# Facts of XLA's GpuTargetConfigProto beside the chip's own: compute capability, megabytes of L2,
# GHz, float32 units and KiB of shared memory of a multiprocessor (CUDA C programming guide,
# "compute capabilities", and NVIDIA's architecture papers).
_GPU_FACTS: dict[str, tuple[tuple[int, int], int, float, int, int]] = {
    "a100": ((8, 0), 40, 1.41, 64, 164),
    "h100": ((9, 0), 50, 1.98, 128, 228),
    "h200": ((9, 0), 50, 1.98, 128, 228),
    "b200": ((10, 0), 126, 1.97, 128, 228),
}
CUDNN = (9, 10, 0)  # the version to compile for


def gpu_target_config(chip: Chip) -> str:
    """XLA's description of a GPU, a text GpuTargetConfigProto."""
    capability, l2, clock, units, shared = _GPU_FACTS[chip.name]
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": shared * 1024,
        "shared_memory_per_block_optin": (shared - 1) * 1024,
        "threads_per_core_limit": 2048,
        "core_count": chip.sms,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.hbm_rate),
        "l2_cache_size": l2 * 2**20,
        "clock_rate_ghz": clock,
        "device_memory_size": int(chip.hbm),
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    facts = " ".join(f"{key}: {value}" for key, value in fields.items())
    major, minor, patch = CUDNN
    return (
        f"gpu_device_info {{ {facts} cuda_compute_capability "
        f"{{ major: {capability[0]} minor: {capability[1]} }} }} "
        f'platform_name: "CUDA" device_description_str: "NVIDIA {chip.name.upper()}" '
        f"dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}"
    )


def _gpu_arguments(topology: Topology) -> dict[str, Any]:
    per_host = min(topology.chips, GPUS_PER_HOST)
    return {
        "topology_name": topology.name,
        "platform": "cuda",
        "target_config": gpu_target_config(topology.chip),
        "topology": f"1x{topology.chips // per_host}x{per_host}",
    }
