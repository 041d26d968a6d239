"""The device mesh ``data x fsdp x tensor x context``, and how a batch is laid out on it.

``data`` and ``fsdp`` both divide the examples; ``fsdp`` also divides the parameters, ``tensor`` the
heads and hidden widths, ``context`` the tokens of the flow model. With several slices ``data`` runs
over the network between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
)
from jaxtyping import Int

from rb_jax.config import MeshConfig, ModelConfig
from rb_jax.errors import InputError
from rb_jax.runtime.compiling import cpu_level
from rb_jax.sharding import xla_flags

AXES = ("data", "fsdp", "tensor", "context")
BATCH_AXES = ("data", "fsdp")
# XLA propagates the layouts; JAX 0.11 would have them in types unless told otherwise.
_TYPES = (AxisType.Auto,) * len(AXES)
# Beyond this many devices shards of parameters get small and their gathers long.
MAX_FSDP = 64
Tree = TypeVar("Tree")
AnyMesh = Mesh | AbstractMesh


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of these devices (default: all there are); neighbours on the torus stay neighbours.

    Raises InputError when the axes do not multiply to the number of devices.
    """
    config = config or MeshConfig()
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    if config.slices > 1:
        inside = (shape[0] // config.slices, *shape[1:])
        between = (config.slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, between, devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "cpu":
        grid = np.asarray(devices).reshape(shape)
    else:
        # 64 of 16 x 16 chips are 4 of its rows: an axis of the torus may be cut.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=_TYPES)


def abstract_mesh(shape: Sequence[int], device: AbstractDevice | None = None) -> AbstractMesh:
    """A mesh of devices that need not be there; ``device`` is what each of them is."""
    return AbstractMesh(tuple(shape), AXES, axis_types=_TYPES, abstract_device=device)


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, int, int, int]:
    """Sizes of the axes for ``count`` devices, the -1 filled; InputError with valid ones near."""
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes[:2] == [-1, -1]:
        sizes[1] = _most_fsdp(count // config.slices, math.prod(max(n, 1) for n in sizes[2:]))
    if sizes.count(-1) > 1:
        raise InputError("config.mesh: only one axis can be -1, or data and fsdp both")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if count % known:
            raise InputError(
                f"config.mesh: {_shown(sizes)} does not divide {count} devices; the given axes may "
                f"multiply to {' or '.join(map(str, near_divisors(known, count)))}"
            )
        sizes[sizes.index(-1)] = count // known
    elif known != count:
        raise InputError(
            f"config.mesh: {_shown(sizes)} are {known} devices and there are {count}; "
            "set one axis to -1 to fill"
        )
    if sizes[0] % config.slices:
        raise InputError(
            f"config.mesh.data={sizes[0]}: not a multiple of the {config.slices} slices"
        )
    return (sizes[0], sizes[1], sizes[2], sizes[3])


def _most_fsdp(devices: int, others: int) -> int:
    """Devices of a slice that share the parameters when the configuration leaves it open."""
    free = max(devices // others, 1)
    return max(n for n in range(1, min(free, MAX_FSDP) + 1) if free % n == 0)


def near_divisors(value: int, count: int) -> list[int]:
    """The divisors of ``count`` next below and above ``value``."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    below = [d for d in divisors if d <= value][-1:]
    return below + [d for d in divisors if d > value][:1]


def kind_of(mesh: AnyMesh) -> str:
    """The name of the mesh's chip, e.g. ``TPU v5p``; empty for an abstract mesh of nothing."""
    if isinstance(mesh, Mesh):
        return mesh.devices.flat[0].device_kind
    device = mesh.abstract_device
    return "" if device is None else device.device_kind


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all that divide the examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_divisor(mesh: AnyMesh) -> int:
    """Into how many parts the examples of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """XLA's options for the mesh's chip (rb_jax.sharding.xla_flags).

    A CPU's compile time is mostly LLVM's; its first level gives programs as fast as the default's
    third in three quarters of the time.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return cpu_level(1) or None
    return xla_flags.options(device.device_kind) or None


def check_batch_size(mesh: AnyMesh, batch_size: int) -> None:
    """Raises InputError when the devices cannot share the batch equally."""
    parts = batch_divisor(mesh)
    if batch_size % parts:
        below = batch_size // parts * parts
        near = [str(n) for n in (below, below + parts) if n]
        raise InputError(
            f"config.train.batch_size={batch_size} is not a multiple of data x fsdp = {parts}; "
            f"use {' or '.join(near)}"
        )


def check_heads(mesh: AnyMesh, model: ModelConfig) -> None:
    """Raises InputError when the tensor axis does not divide the large stages' heads."""
    parts = mesh.shape["tensor"]
    for stage, heads in (("mmdit", model.mmdit.heads), ("mllm", model.mllm.kv_heads)):
        if heads % parts:
            near = " or ".join(str(n) for n in near_divisors(parts, heads))
            raise InputError(
                f"config.mesh.tensor={parts} does not divide model.{stage}'s {heads} heads; "
                f"use {near}"
            )


def process_rows(mesh: Mesh, count: int) -> Int[np.ndarray, " R"]:
    """Which of a global batch's ``count`` examples the devices of this process need, ascending.

    Not always a share of its own, nor in the processes' order: where tensor or context reach over
    several processes, these need the same examples.
    """
    layout = _examples_sharding(mesh, count).addressable_devices_indices_map((count,))
    return np.unique(np.concatenate([np.arange(count)[index] for index in layout.values()]))


def shard_batch(mesh: Mesh, batch: Tree, count: int | None = None) -> Tree:
    """Host arrays -> global arrays of ``count`` examples, of which ``batch`` has ``process_rows``.

    Without ``count`` the batch is whole, the same on every process. The leading axis is split over
    data and fsdp where they divide it, else every device gets all.
    """
    given = jax.tree.leaves(batch)[0].shape[0]
    total = given if count is None else count
    rows, sharding = process_rows(mesh, total), _examples_sharding(mesh, total)
    if given == total:
        rows = np.arange(total)
    elif given != len(rows):
        raise ValueError(f"this process needs {len(rows)} of {total} examples, not {given}")

    def place(x: np.ndarray) -> jax.Array:
        def piece(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            return x[slice(*np.searchsorted(rows, (start, stop)))]

        return jax.make_array_from_callback((total, *x.shape[1:]), sharding, piece)

    return jax.tree.map(place, batch)


def _examples_sharding(mesh: Mesh, count: int) -> NamedSharding:
    return batch_sharding(mesh) if count % batch_divisor(mesh) == 0 else replicated(mesh)


def _shown(sizes: Sequence[int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
