"""The one table of parameter layouts on the mesh.

A rule gives the axes of a parameter logical names, from the last axis backwards, so that the
leading axis of stacked layers needs none; activations.LOGICAL says which mesh axis splits a name.
A matrix that no rule matches, or whose named axis its mesh axis does not divide, is split over
``fsdp`` on its largest axis that it divides; vectors and LoRA's matrices are not split over it.

Weights that never change need no room but their own, so that where there is memory they are not
split over ``fsdp`` at all, and never gathered (``config.mesh.frozen``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rb_jax.paths import matches
from rb_jax.sharding.activations import LOGICAL, current_mesh
from rb_jax.sharding.chips import chip_of
from rb_jax.sharding.mesh import AnyMesh, kind_of

Tree = TypeVar("Tree")
Params = dict[str, Any]

# Pattern over paths -> logical names of the last axes. The first match counts.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Attention: into heads, and out of them.
    ("**/attn/qkv/kernel", ("embed", "heads")),
    ("**/attn/proj/kernel", ("heads", "embed")),
    ("**/q_proj/kernel", ("embed", "heads")),
    ("**/k_proj/kernel", ("embed", "heads")),
    ("**/v_proj/kernel", ("embed", "heads")),
    ("**/o_proj/kernel", ("heads", "embed")),
    ("**/out_proj/kernel", ("heads", "embed")),
    ("**/in_proj/kernel", ("embed", "heads")),
    # LoRA (and see WHOLE).
    ("**/o_proj/lora_a", ("heads", None)),
    ("**/o_proj/lora_b", (None, None)),
    ("**/lora_b", (None, "heads")),
    # Feed-forward: into the hidden width, and out of it.
    ("**/mlp/fc1/kernel", ("embed", "mlp")),
    ("**/mlp/fc2/kernel", ("mlp", "embed")),
    ("**/gate_proj/kernel", ("embed", "mlp")),
    ("**/up_proj/kernel", ("embed", "mlp")),
    ("**/down_proj/kernel", ("mlp", "embed")),
    # FLUX's parallel blocks: [q, k, v, mlp] side by side.
    ("mmdit/single_blocks/linear1/kernel", ("embed", "mlp")),
    ("mmdit/single_blocks/linear2/kernel", ("mlp", "embed")),
    # Modulations multiply one row per example: the rows move, the matrix stays.
    ("mmdit/**/lin/kernel", (None, "stationary")),
    # Vocabularies.
    ("mllm/language_model/embed_tokens", ("vocab", "embed")),
    ("mllm/language_model/lm_head/kernel", ("embed", "vocab")),
)
# Ends of the paths of matrices that fsdp does not split: too small to be worth gathering.
WHOLE = ("/lora_a", "/lora_b")
# Of a device's memory: what a training state with whole frozen weights may take, the rest being
# for activations and gradients.
WHOLE_STATE = 0.6


def partition(
    path: str, shape: tuple[int, ...], mesh: AnyMesh, unsharded: bool = False
) -> PartitionSpec:
    """How one parameter is split; every axis of ``shape`` stays whole or is divided evenly.

    ``unsharded`` leaves the fsdp axis out.
    """
    unsharded = unsharded or is_vector(path, shape) or path.endswith(WHOLE)
    axes: list[str | tuple[str, ...] | None] = [None] * len(shape)
    names = next((names for pattern, names in RULES if matches(pattern, path)), ())
    for i, name in enumerate(names, start=len(shape) - len(names)):
        if i >= 0 and name:
            wanted = tuple(axis for axis in LOGICAL[name] if not (unsharded and axis == "fsdp"))
            axes[i] = _splitting(wanted, shape[i], mesh)
    used = {axis for entry in axes for axis in (entry if isinstance(entry, tuple) else [entry])}
    if not unsharded and "fsdp" not in used and mesh.shape["fsdp"] > 1:
        free = [i for i in range(first_axis(path, shape), len(shape)) if axes[i] is None]
        even = [i for i in free if shape[i] % mesh.shape["fsdp"] == 0]
        if even:
            axes[max(even, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _splitting(wanted: tuple[str, ...], size: int, mesh: AnyMesh) -> str | tuple[str, ...] | None:
    """The axes of more than one device that together divide ``size``; fewer if not all do."""
    present = tuple(axis for axis in wanted if mesh.shape[axis] > 1)
    while present and size % math.prod(mesh.shape[axis] for axis in present):
        present = present[:-1]
    return present[0] if len(present) == 1 else present or None


def constrain_params(params: Params) -> Params:
    """Lays parameters inside a program (casts of them, and so their gradients) by the table."""
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return params
    return {
        path: jax.lax.with_sharding_constraint(x, partition(path, x.shape, mesh))
        for path, x in params.items()
    }


# Modules whose parameters have a leading axis of layers (rb_jax.models.layers.stack).
STACKED = ("**/layers/**", "**/blocks/**", "**/*_blocks/**", "**/*_layers/**", "**/*_mlps/**")


def first_axis(path: str, shape: tuple[int, ...]) -> int:
    """The first axis that is not the stack's."""
    return int(len(shape) > 1 and any(matches(pattern, path) for pattern in STACKED))


def is_vector(path: str, shape: tuple[int, ...]) -> bool:
    return len(shape) - first_axis(path, shape) < 2


def param_shardings(
    mesh: AnyMesh, shapes: Mapping[str, Any], frozen: str = "sharded"
) -> dict[str, NamedSharding]:
    """Path -> layout of every parameter. ``frozen`` is config.mesh.frozen where none trains."""

    def layouts(unsharded: bool) -> dict[str, NamedSharding]:
        return {
            path: NamedSharding(mesh, partition(path, tuple(x.shape), mesh, unsharded))
            for path, x in shapes.items()
        }

    return _settled(mesh, dict(shapes), layouts, frozen)


def state_shardings(mesh: AnyMesh, state: Tree, frozen: str = "sharded") -> Tree:
    """The layout of a training state (abstract or not): moments follow their parameters.

    ``frozen`` is config.mesh.frozen.
    """

    def layouts(unsharded: bool) -> Tree:
        def layout(path: tuple, leaf: Any) -> NamedSharding:
            shape, fixed = tuple(leaf.shape), unsharded and _is_frozen(path)
            return NamedSharding(mesh, partition(parameter_of(path), shape, mesh, fixed))

        return jax.tree_util.tree_map_with_path(layout, state)

    return _settled(mesh, state, layouts, frozen)


def _settled(mesh: AnyMesh, tree: Any, layouts: Callable[[bool], Tree], frozen: str) -> Tree:
    """``layouts(unsharded)`` as config.mesh.frozen says."""
    if frozen == "sharded" or (frozen == "auto" and not _room(mesh)):
        return layouts(False)
    everywhere = layouts(True)
    fits = frozen == "replicated" or bytes_per_device(tree, everywhere) <= _room(mesh)
    return everywhere if fits else layouts(False)


def _room(mesh: AnyMesh) -> float:
    """Bytes that a state with whole frozen weights may take on a device; 0 for none.

    On GPUs none: XLA would copy each layer's weights out of their stack there, which takes longer
    than NVLink does to gather them.
    """
    chip = chip_of(kind_of(mesh))
    return WHOLE_STATE * chip.hbm / chip.devices if chip and chip.is_tpu else 0.0


def bytes_per_device(tree: Any, layouts: Any) -> int:
    """Bytes that a tree of arrays (abstract or not) takes on each device in these layouts."""
    sizes = jax.tree.map(
        lambda x, layout: math.prod(layout.shard_shape(x.shape)) * x.dtype.itemsize, tree, layouts
    )
    return sum(jax.tree.leaves(sizes))


def _is_frozen(path: tuple) -> bool:
    """Whether an array of a training state belongs to the weights that never change."""
    return bool(path) and getattr(path[0], "name", "") == "frozen"


def parameter_of(path: tuple) -> str:
    """The parameter that an array of a training state belongs to; empty for its counters."""
    # The optimizer's moments and the average sit in dicts with the parameters' paths as keys.
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    return next((str(k) for k in reversed(keys) if isinstance(k, str) and "/" in k), "")
