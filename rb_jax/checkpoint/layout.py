"""What a checkpoint is made of, where it lies, and what is wrong with one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rb_jax.checkpoint import orbax_buckets, seal
from rb_jax.config import Config, differing_keys
from rb_jax.errors import InputError, listed, reason
from rb_jax.storage import AnyPath, Unreachable, is_bucket

FOLDER, FROZEN = "checkpoints", "frozen"
PARAMS, EMA, OPTIMIZER, LOOP = "params", "ema", "optimizer", "loop"
# The arrays of a state by the first part of their names, and the item each goes to.
ITEMS = {"params": PARAMS, "ema": EMA, "opt_state": OPTIMIZER}
DAMAGED = ".damaged"
COMMITTED = "commit_success.txt"  # Orbax's last file in a bucket
# What a checkpoint of rb_jax 0.1 is made of: the first, and one of the others at least.
OLD = ("state", "metadata.json", "manifest.sha256")
# What tensorstore says of a store that fails now, not of what lies in it.
PASSING = (
    "UNAVAILABLE",
    "DEADLINE",
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "retry attempts failed",
)
State = Any  # a pytree of the fields of train.state.TrainState


def handler() -> ocp.PyTreeCheckpointHandler:
    """Of one item of arrays, which each process commits in one transaction.

    With Orbax's default, a limit of 96 GB, every array has its own, and each writes the same small
    object again, which a store allows about once a second.
    """
    return ocp.PyTreeCheckpointHandler(handler_impl=ocp.BasePyTreeCheckpointHandler())


def atomicity(folder: AnyPath) -> Any:
    """How Orbax tells a finished folder; it knows by itself for gs:// and disks."""
    if is_bucket(folder):
        orbax_buckets.enable()
    if not str(folder).startswith("s3://"):
        return None
    return ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)


def put_aside(path: epath.Path) -> None:
    """Keeps a damaged checkpoint for whoever wants to look at it, out of the way of others."""
    if is_bucket(path):
        (path / DAMAGED.removeprefix(".")).write_text("some of this is not as it was written\n")
        (path / COMMITTED).unlink(missing_ok=True)
        return
    aside = path.with_name(path.name + DAMAGED)
    aside.rmtree(missing_ok=True)
    path.rename(aside)


def is_aside(path: epath.Path) -> bool:
    if not is_bucket(path):
        return path.name.endswith(DAMAGED)
    return _is_step(path.name) and (path / DAMAGED.removeprefix(".")).exists()


def is_unfinished(path: epath.Path) -> bool:
    """Of a step's folder in a bucket: that it was not committed, and is not kept as damaged."""
    return _is_step(path.name) and not (path / COMMITTED).exists() and not is_aside(path)


def steps(folder: AnyPath) -> list[int]:
    """The numbers among the names in ``folder``, ascending; in a bucket, the finished ones."""
    found = [path for path in children(folder) if _is_step(path.name)]
    if is_bucket(folder):
        found = [path for path in found if (path / COMMITTED).exists()]
    return sorted(int(path.name) for path in found)


def _is_step(name: str) -> bool:
    return name.isdecimal() and str(int(name)) == name


def children(folder: AnyPath) -> list[epath.Path]:
    """What is in a folder; nothing if it is absent."""
    try:
        return sorted(epath.Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def problems(folder: AnyPath, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with the files of one checkpoint; of ``share`` see ``seal.problems``."""
    wrong = seal.problems(folder, share)
    if not wrong:
        try:
            step = read_loop(folder)["scalars"]["step"]["value"]
        except InputError as error:
            return [str(error)]
        if str(step) != folder.name:
            return [f"{LOOP}: it is of step {step}"]
    return wrong


def frozen_folder(checkpoint: AnyPath, hash_: str) -> epath.Path:
    """Where the frozen parameters are that a checkpoint refers to."""
    return epath.Path(checkpoint).parent.parent / FROZEN / hash_


def frozen_problems(checkpoint: AnyPath, hash_: str, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with the files of the frozen parameters of a checkpoint."""
    folder = frozen_folder(checkpoint, hash_)
    wrong = seal.problems(folder, share)
    if not wrong and hash_of(seal.prints(folder)[FROZEN]) != hash_:
        wrong = [f"{seal.NAME}: it is of other parameters"]
    return [f"{FROZEN}/{hash_}/{text}" for text in wrong]


def hash_of(prints: Mapping[str, str]) -> str:
    """One hash of many arrays, from their fingerprints."""
    text = json.dumps(dict(prints), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_old(folder: AnyPath) -> None:
    """Raises InputError for a checkpoint of rb_jax 0.1, which had another layout."""
    if (folder / OLD[0]).exists() and any((folder / name).exists() for name in OLD[1:]):
        raise InputError(
            f"{folder}: a checkpoint of rb_jax 0.1, which this version does not read; start a new "
            "workdir from the run's weights/ with --config.train.init_from (a run without them: "
            "docs/reliability.md, Checkpoints of 0.1)"
        )


def read_loop(folder: AnyPath) -> dict[str, Any]:
    """The JSON part of one checkpoint."""
    try:
        return json.loads((folder / LOOP / "metadata").read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from error


def array_metadata(folder: AnyPath) -> dict[str, Any]:
    """Name -> shape and dtype of each array of one item's folder."""
    try:
        item: Any = _reader(folder).metadata(epath.Path(folder))
        return item.tree
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise unreadable(folder, error) from error


def read_arrays(folder: AnyPath, restore_args: dict[str, Any]) -> dict[str, Any]:
    """The named arrays of one item's folder, read as the arguments say."""
    if not restore_args:
        return {}
    item = dict.fromkeys(restore_args, 0)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    try:
        return _reader(folder).restore(epath.Path(folder), args=args)
    except (ValueError, OSError, KeyError) as error:
        if is_bucket(folder) and any(word in str(error) for word in PASSING):
            raise Unreachable(f"{folder}: cannot be reached ({reason(error)})") from error
        raise unreadable(folder, error) from error


def items_of(folder: AnyPath) -> list[str]:
    """Which items of arrays one checkpoint has."""
    return [item for item in ITEMS.values() if (folder / item).is_dir()]


def split(state: State) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """A state as items of arrays by name, the frozen parameters, and its scalars for JSON.

    The scalars of an abstract state are left out.
    """
    items: dict[str, dict[str, Any]] = {}
    frozen, scalars = {}, {}
    for name, leaf in flat(state).items():
        first, _, rest = name.partition("/")
        if first == FROZEN:
            frozen[rest] = leaf
        elif first in ITEMS:
            items.setdefault(ITEMS[first], {})[rest] = leaf
        elif not isinstance(leaf, jax.ShapeDtypeStruct):
            value = np.asarray(jax.device_get(leaf))
            scalars[name] = {"value": value.item(), "dtype": str(value.dtype)}
    return items, frozen, scalars


def flat(state: State) -> dict[str, Any]:
    """Leaves by name: "params/<path>", "opt_state/1/0/mu/<path>", "step"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def joined(like: State, arrays: dict[str, dict[str, Any]], scalars: dict[str, Any]) -> State:
    """The inverse of ``split``, in the structure and layout of ``like``."""

    def leaves() -> Iterator[Any]:
        for name, leaf in flat(like).items():
            first, _, rest = name.partition("/")
            item = FROZEN if first == FROZEN else ITEMS.get(first)
            if item is not None:
                yield arrays[item][rest]
                continue
            value = np.asarray(scalars[name]["value"], leaf.dtype)
            sharding = getattr(leaf, "sharding", None)
            if sharding is None:
                yield jax.numpy.asarray(value)
            else:
                yield jax.make_array_from_callback((), sharding, lambda _, v=value: v)

    return jax.tree.unflatten(jax.tree.structure(like), list(leaves()))


def none_good(folder: AnyPath) -> InputError:
    return InputError(
        f"{folder}: every checkpoint is damaged, or none of rb_jax; bring one back from a copy, or "
        "choose another workdir (move this one away) to start from the beginning"
    )


class Damaged(InputError):
    """Something of a checkpoint is not as it was written."""


def unreadable(folder: AnyPath, error: Exception) -> Damaged:
    return Damaged(f"{folder}: cannot be read ({reason(error)})")


def check_model(folder: epath.Path, record: dict[str, Any], config: Config) -> None:
    plain = dataclasses.asdict(config)
    differing = differing_keys(record["config"]["model"], plain["model"], "model.")
    if differing:
        raise InputError(f"{folder} was made with another model: {', '.join(differing)} differ")


def check_arrays(folder: epath.Path, items: dict[str, dict[str, Any]], hash_: str) -> None:
    """Raises InputError when an array is missing, unexpected, of another shape or dtype."""
    there = {item: array_metadata(folder / item) for item in items_of(folder)}
    if hash_:
        there[FROZEN] = array_metadata(frozen_folder(folder, hash_))
    have_all = {f"{item}/{name}": x for item, tree in there.items() for name, x in tree.items()}
    want_all = {f"{item}/{name}": x for item, tree in items.items() for name, x in tree.items()}
    differences = [f"missing {name}" for name in sorted(set(want_all) - set(have_all))]
    differences += [f"unexpected {name}" for name in sorted(set(have_all) - set(want_all))]
    for name in sorted(set(have_all) & set(want_all)):
        have = (tuple(have_all[name].shape), str(have_all[name].dtype))
        want = (tuple(want_all[name].shape), str(want_all[name].dtype))
        if have != want:
            differences.append(f"{name} is {have[1]}{list(have[0])}, not {want[1]}{list(want[0])}")
    if differences:
        raise InputError(f"{folder}: {listed(differences, '; ')}")


def _reader(folder: AnyPath) -> ocp.PyTreeCheckpointHandler:
    """Without Orbax's checkpointer around it: its barriers would hang when one process fails."""
    atomicity(folder)
    return handler()
