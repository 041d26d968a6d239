"""How activations lie on the mesh, where the compiler should not have to guess.

Reads the mesh that surrounds the trace (``jax.set_mesh``); without one nothing happens.
"""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec

from rb_jax.sharding.mesh import BATCH_AXES

LOGICAL = {"batch": BATCH_AXES, "tokens": ("context",), "heads": ("tensor",), "width": ("tensor",)}


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Splits the leading axes of ``x`` as named; an axis that cannot be split evenly stays whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    axes: list[tuple[str, ...] | None] = []
    for name, size in zip(names, x.shape, strict=False):
        wanted = LOGICAL[name] if name else ()
        parts = math.prod(mesh.shape[axis] for axis in wanted)
        axes.append(wanted if parts > 1 and size % parts == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
