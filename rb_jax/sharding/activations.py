"""Layouts of activations on the mesh that surrounds a trace (``jax.set_mesh``).

Without a mesh nothing here does anything: the same model code runs on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from rb_jax.sharding.mesh import BATCH_AXES, kind_of

# Logical name of an axis, of an activation or a parameter -> the mesh axes that may split it: all
# of them together, or the first alone.
LOGICAL = {
    "batch": BATCH_AXES,
    "tokens": ("context",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "stationary": ("fsdp", "tensor"),
}


def current_mesh() -> AbstractMesh | None:
    """The mesh of ``jax.set_mesh``, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or "context" not in mesh.shape else mesh


def platform() -> str:
    """``tpu``, ``gpu`` or ``cpu``: of the mesh's devices, which may be absent; else JAX's own."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return device.platform if device is not None else jax.default_backend()


def device_kind() -> str:
    """The name of the mesh's chip, e.g. ``TPU v5p``; empty without a mesh."""
    return kind_of(jax.sharding.get_abstract_mesh())


def axis_size(axis: str) -> int:
    """Devices along one axis of the mesh; 1 without a mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape[axis]


def spec(shape: tuple[int, ...], *names: str | None) -> PartitionSpec:
    """The layout of an activation by its axes' names; an axis that does not divide stays whole."""
    mesh = current_mesh()
    axes: list[tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=False):
        wanted = LOGICAL[name] if name and mesh is not None else ()
        parts = math.prod(mesh.shape[axis] for axis in wanted) if mesh is not None else 1
        axes.append(wanted if parts > 1 and size % parts == 0 else None)
    return PartitionSpec(*axes)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Lays ``x`` out by the names of its leading axes (None: on every device)."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(x.shape, *names))


def per_device(
    function: Callable[..., Any],
    in_specs: tuple[PartitionSpec, ...],
    out_specs: Any,
) -> Callable[..., Any]:
    """``function`` on each device's part of its arguments: for kernels no compiler can split."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
