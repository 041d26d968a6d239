"""Checkpoints of a run: the whole state, exactly, with the configuration that made it.

``workdir/checkpoints/<step>/`` holds the item ``state`` (Orbax, one array a name) and the item
``metadata`` (JSON: configuration, version, step, checksums, and the loop's own small record).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rb_jax.config import Config, ConfigError, differing_keys, from_stored
from rb_jax.errors import InputError
from rb_jax.train.state import Params, TrainState

FOLDER = "checkpoints"


def open_checkpoints(workdir: str | Path, keep: int | None = None) -> ocp.CheckpointManager:
    """The checkpoints of a workdir, at most ``keep`` of them; writes happen in the background."""
    return _manager(Path(workdir).resolve() / FOLDER, keep, create=True)


def save(
    manager: ocp.CheckpointManager, state: TrainState, config: Config, progress: dict[str, Any]
) -> None:
    """Starts writing the state; it is copied first, so the next step may reuse its buffers.

    ``progress`` is the loop's own record (JSON), handed back by ``restore``. An earlier write that
    failed in the background raises here.
    """
    arrays = flat(state)
    sums = jax.device_get(checksums(arrays))
    metadata = {
        "version": _version(),
        "step": int(state.step),
        "config": dataclasses.asdict(config),
        "progress": progress,
        "checksums": {name: int(value) for name, value in sums.items()},
    }
    items = ocp.args.Composite(
        state=ocp.args.PyTreeSave(arrays), metadata=ocp.args.JsonSave(metadata)
    )
    manager.save(int(state.step), args=items, force=True)


def restore(
    manager: ocp.CheckpointManager, config: Config, like: TrainState
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest state and the loop's record, laid out as ``like``; None when there is none yet.

    ``like`` may be abstract. Raises InputError when the checkpoint's model differs (naming the
    keys of the configuration), when an array is missing, unexpected, of another shape or dtype,
    and when what was read is not what was written.
    """
    step = manager.latest_step()
    if step is None:
        return None
    metadata = read_metadata(manager, step)
    where = f"{manager.directory}/{step}"
    differing = differing_keys(metadata["config"]["model"], _plain(config)["model"], "model.")
    if differing:
        raise InputError(f"{where} was made with another model: {', '.join(differing)} differ")
    expected = flat(like)
    _check_arrays(manager, step, expected)
    args = {
        name: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
        for name, x in expected.items()
    }
    arrays = _read(manager, step, {name: 0 for name in expected}, args)
    _verify(arrays, metadata, where)
    leaves = [arrays[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), metadata["progress"]


def find(folder: str | Path) -> tuple[Path, int | None] | None:
    """Where the checkpoints are and which step is meant (None: the newest), or None if nowhere.

    ``folder`` may be a workdir, its checkpoints folder, or one checkpoint.
    """
    folder = Path(folder).resolve()
    if folder.name.isdigit() and (folder / "state").is_dir():
        return folder.parent, int(folder.name)
    for place in (folder / FOLDER, folder):
        if place.is_dir() and any(p.name.isdigit() for p in place.iterdir()):
            return place, None
    return None


def load_ema(folder: str | Path) -> tuple[Config, Params]:
    """Configuration and weights (NumPy; trainable ones as their running average) of a checkpoint.

    Raises InputError when there is none, or it cannot be read.
    """
    found = find(folder)
    if found is None:
        raise InputError(f"{folder}: no checkpoint in it")
    with _manager(found[0], None, create=False) as manager:
        step = manager.latest_step() if found[1] is None else found[1]
        if step not in manager.all_steps():
            raise InputError(f"{folder}: no finished checkpoint in it")
        metadata = read_metadata(manager, step)
        averaged = any(n.startswith("ema/") for n in metadata["checksums"])
        trained = "ema/" if averaged else "params/"
        names = [n for n in metadata["checksums"] if n.startswith((trained, "frozen/"))]
        numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        arrays = _read(manager, step, {name: 0 for name in names}, numpy)
    _verify(arrays, metadata, str(folder))
    try:
        config = from_stored(metadata["config"])
    except ConfigError as error:
        raise InputError(f"{folder}: {error}") from error
    return config, {name.split("/", 1)[1]: value for name, value in arrays.items()}


def read_metadata(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON item of one checkpoint."""
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    try:
        return manager.restore(step, args=args)["metadata"]
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(manager, step, error) from error


def flat(state: TrainState) -> dict[str, Any]:
    """Leaves by name: "params/<path>", "opt_state/1/0/mu/<path>", "step"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@jax.jit
def checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The sum of each array's bits modulo 2**32, where the array lies; one flipped bit shows."""

    def total(x):
        if x.dtype == bool:
            x = x.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    return {name: total(x) for name, x in arrays.items()}


def _manager(folder: Path, keep: int | None, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep or None, create=create, read_only=not create, step_prefix=None
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "metadata": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def _read(manager, step: int, names: dict[str, int], restore_args: dict) -> dict[str, Any]:
    args = ocp.args.PyTreeRestore(item=names, restore_args=restore_args, partial_restore=True)
    try:
        return manager.restore(step, args=ocp.args.Composite(state=args))["state"]
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(manager, step, error) from error


def _check_arrays(manager: ocp.CheckpointManager, step: int, expected: dict[str, Any]) -> None:
    try:
        tree = manager.item_metadata(step).state.tree
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise _unreadable(manager, step, error) from error
    problems = [f"missing {name}" for name in sorted(set(expected) - set(tree))]
    problems += [f"unexpected {name}" for name in sorted(set(tree) - set(expected))]
    for name in sorted(set(tree) & set(expected)):
        have = (tuple(tree[name].shape), str(tree[name].dtype))
        want = (tuple(expected[name].shape), str(expected[name].dtype))
        if have != want:
            problems.append(f"{name} is {have[1]}{list(have[0])}, not {want[1]}{list(want[0])}")
    if problems:
        more = f"; and {len(problems) - 8} more" if problems[8:] else ""
        raise InputError(f"{manager.directory}/{step}: {'; '.join(problems[:8])}{more}")


def _verify(arrays: dict[str, Any], metadata: dict[str, Any], where: str) -> None:
    found = jax.device_get(checksums(arrays))
    damaged = [name for name, value in found.items() if int(value) != metadata["checksums"][name]]
    if damaged:
        raise InputError(f"{where}: damaged, the checksum of {', '.join(damaged[:8])} is wrong")


def _unreadable(manager: ocp.CheckpointManager, step: int, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0]
    return InputError(f"{manager.directory}/{step}: cannot be read ({reason})")


def _plain(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _version() -> str:
    try:
        return importlib.metadata.version("rb_jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
