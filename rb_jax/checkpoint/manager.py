"""Checkpoints of a run: the whole state, exactly, with the configuration that made it.

``workdir/checkpoints/<step>/`` holds ``state`` (Orbax, one array per name), ``metadata.json``
(configuration, version, step, and the loop's own small record) and ``manifest.sha256``. It is
written beside as ``<step>.saving`` and renamed once all is on the disk, so that a folder with a
number is a finished checkpoint, or a damaged one.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rb_jax.checkpoint import hashes
from rb_jax.config import Config, differing_keys
from rb_jax.errors import InputError, listed, reason
from rb_jax.files import sync_folder
from rb_jax.runtime.exits import EXIT_DIVERGED, EXIT_IO, RunError
from rb_jax.runtime.processes import anywhere, from_primary, is_primary, say, wait_for_all

FOLDER = "checkpoints"
STATE, METADATA = "state", "metadata.json"
SAVING, DELETING, DAMAGED = ".saving", ".deleting", ".damaged"
State = Any  # a pytree with the scalar ``step``, such as train.state.TrainState
STALE = re.compile(rf"\d+({re.escape(SAVING)}|{re.escape(DELETING)})")  # what a kill leaves behind


class Checkpoints:
    """The checkpoints in a folder; ``keep`` newest (0: all) and every ``keep_every``-th step stay.

    Of several processes all must call its methods, in the same order. Used as a context it waits
    for the last write at the end.
    """

    def __init__(self, folder: Path, keep: int = 0, keep_every: int = 0):
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.last: int | None = None  # the step that was saved or restored last
        self._writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._commit: Future[None] | None = None
        self._all_finite: Callable[[dict[str, Any]], jax.Array] = all_finite

    def compile(self, state: State) -> None:
        """Ahead of the first ``save`` of such a state, which may be in a hurry."""
        self._all_finite = all_finite.lower(flat(state)).compile()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._commit is None:
            return
        if error is None:
            self.wait()
        elif jax.process_count() == 1:  # others may be gone: no waiting for them
            self._commit.exception()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending; whether it is whole only ``problems`` tells."""
        return steps(self.folder)

    def save(self, state: State, config: Config, progress: dict[str, Any]) -> None:
        """Starts writing the state; the next step may reuse its buffers.

        ``progress`` is the loop's own record (JSON), handed back by ``restore``. Raises RunError
        when this or the write before fails; ``failed`` tells as soon as it has.
        """
        self.wait()
        step = int(state.step)
        partial = self.folder / f"{step}{SAVING}"
        arrays = flat(state)
        finite = self._all_finite(arrays)  # on the devices; the host does not wait for it
        record = {"version": _version(), "step": step, "config": dataclasses.asdict(config)}
        text = json.dumps(record | {"progress": progress})
        self._commit = Future()
        try:
            if is_primary():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._writer.save(partial / STATE, args=ocp.args.PyTreeSave(arrays))
        except Exception as error:  # a full disk shows as whatever broke first
            self._commit.set_exception(self._not_written(step, error))
            return
        self.last = step
        args = (self._commit, step, finite, text)
        threading.Thread(target=self._finish, args=args, name="commit", daemon=True).start()

    def failed(self) -> bool:
        """Whether a write has failed, so that ``wait`` raises; never waits."""
        commit = self._commit
        return commit is not None and commit.done() and commit.exception() is not None

    def wait(self) -> None:
        """Until nothing is being written; raises RunError when that failed."""
        commit = self._commit
        if commit is not None:
            commit.result()
            self._commit = None

    def newest_good(self) -> int | None:
        """The newest step whose files are all as they were written; None when there is none yet.

        Says which files of newer ones are not, and puts these aside as ``<step>.damaged``. Raises
        InputError when there are checkpoints, but none is good.
        """
        below, damaged = 2**31 - 1, []
        place = (jax.process_index(), jax.process_count())
        while True:
            mine = [step for step in self.steps() if step < below] if is_primary() else []
            below = from_primary(max(mine, default=-1))
            if below < 0:
                break
            damage = problems(self.folder / str(below), place)
            for text in damage[:8]:
                say(f"{self.folder}/{below} is damaged: {text}", everywhere=True)
            if not anywhere(bool(damage)):
                break
            damaged.append(below)
        if below < 0 and (damaged or anywhere(any(self.folder.glob(f"*{DAMAGED}")))):
            raise none_good(self.folder)
        for step in damaged:
            say(f"step {step} cannot be used: continuing from step {below} instead")
            if is_primary():
                aside = self.folder / f"{step}{DAMAGED}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
        wait_for_all()
        return None if below < 0 else below

    def restore(self, step: int, config: Config, like: State) -> tuple[State, dict[str, Any]]:
        """The state of a step that is good, laid out as ``like``, and the loop's record.

        ``like`` may be abstract. Raises InputError when the checkpoint's model differs (naming the
        keys of the configuration), when an array is missing, unexpected, of another shape or
        dtype.
        """
        folder = self.folder / str(step)
        metadata = read_metadata(folder)
        plain = dataclasses.asdict(config)
        differing = differing_keys(metadata["config"]["model"], plain["model"], "model.")
        if differing:
            raise InputError(f"{folder} was made with another model: {', '.join(differing)} differ")
        expected = flat(like)
        _check_arrays(folder, expected)
        args = {
            name: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
            for name, x in expected.items()
        }
        arrays = read_arrays(folder, args)
        self.last = step
        leaves = [arrays[name] for name in expected]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), metadata["progress"]

    def _finish(self, commit: Future, step: int, finite: jax.Array, text: str) -> None:
        """The background thread: all files to the disk, then the name that makes them count."""
        failure = None
        try:
            self._writer.wait_until_finished()
            if not bool(finite):
                text = f"the state of step {step} is not finite, and not saved; {self._left()}"
                raise RunError(EXIT_DIVERGED, text)
            if is_primary():
                partial = self.folder / f"{step}{SAVING}"
                (partial / METADATA).write_text(text, encoding="utf-8")
                hashes.write(partial)
                partial.rename(self.folder / str(step))
                sync_folder(self.folder)
                self._prune()
        except RunError as error:
            failure = error
        except BaseException as error:
            failure = self._not_written(step, error)
        if failure is None:
            commit.set_result(None)
            return
        if is_primary():
            shutil.rmtree(self.folder / f"{step}{SAVING}", ignore_errors=True)
        commit.set_exception(failure)

    def _prune(self) -> None:
        there = self.steps()
        for step in there[: -self.keep] if self.keep else []:
            if not self.keep_every or step % self.keep_every:
                old = self.folder / f"{step}{DELETING}"
                (self.folder / str(step)).rename(old)  # a kill must not leave half of one
                shutil.rmtree(old)

    def _not_written(self, step: int, error: BaseException) -> RunError:
        text = f"the checkpoint of step {step} could not be written ({reason(error)})"
        return RunError(EXIT_IO, f"{text}; {self._left()}")

    def _left(self) -> str:
        left = self.steps()
        return f"the last good one is of step {left[-1]}" if left else "there is no earlier one"


def open_checkpoints(workdir: str | Path, keep: int = 0, keep_every: int = 0) -> Checkpoints:
    """Those of a workdir, to be written by this run alone: what a killed one left half is removed.

    Raises RunError when that cannot be done, InputError when a new folder is on a file system that
    does not rename folders.
    """
    folder = Path(workdir).resolve() / FOLDER
    if is_primary():
        try:
            new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if STALE.fullmatch(path.name):
                    shutil.rmtree(path)
            if new:
                _check_renames(folder)
        except OSError as error:
            raise RunError(EXIT_IO, f"{folder}: cannot be written ({error.strerror})") from error
    wait_for_all()
    return Checkpoints(folder, keep, keep_every)


def _check_renames(folder: Path) -> None:
    """Now, and not when the first checkpoint has been written. Raises InputError."""
    before, after = folder / f"0{SAVING}", folder / f"0{DELETING}"
    before.mkdir()
    (before / METADATA).touch()
    try:
        before.rename(after)
    except OSError as error:
        shutil.rmtree(before)
        folder.rmdir()
        raise InputError(
            f"{folder}: folders cannot be renamed here ({error.strerror}), which checkpoints need; "
            "a mounted bucket must have a hierarchical namespace (tpu/README.md, Buckets)"
        ) from error
    shutil.rmtree(after)


def steps(folder: Path) -> list[int]:
    """The numbers among the names in ``folder``, ascending."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def problems(folder: Path, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with one checkpoint; of ``share`` see ``hashes.problems``."""
    wrong = hashes.problems(folder, share)
    if not wrong:
        try:
            step = read_metadata(folder)["step"]
        except InputError as error:
            return [str(error)]
        if str(step) != folder.name:
            return [f"{METADATA}: it is of step {step}"]
    return wrong


def read_metadata(folder: Path) -> dict[str, Any]:
    """The JSON part of one checkpoint."""
    try:
        return json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from error


def array_metadata(folder: Path) -> dict[str, Any]:
    """Name -> shape and dtype of each array of one checkpoint."""
    try:
        item: Any = _reader().metadata(folder / STATE).item_metadata
        return item.tree
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise unreadable(folder, error) from error


def read_arrays(folder: Path, restore_args: dict[str, Any]) -> dict[str, Any]:
    """The named arrays of one checkpoint, read as the arguments say."""
    item = dict.fromkeys(restore_args, 0)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    try:
        return _reader().restore(folder / STATE, args=args)
    except (ValueError, OSError, KeyError) as error:
        raise unreadable(folder, error) from error


def flat(state: State) -> dict[str, Any]:
    """Leaves by name: "params/<path>", "opt_state/1/0/mu/<path>", "step"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@jax.jit
def all_finite(arrays: dict[str, jax.Array]) -> jax.Array:
    """Whether every value of every floating array is."""
    floating = [x for x in arrays.values() if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floating]))


@jax.jit
def checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The sum of each array's bits modulo 2**32, on its own devices; one flipped bit shows."""

    def total(x):
        if x.dtype == bool:
            x = x.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    return {name: total(x) for name, x in arrays.items()}


def none_good(folder: Path) -> InputError:
    return InputError(
        f"{folder}: every checkpoint is damaged; bring one back from a copy, or delete the folder "
        "to start from the beginning"
    )


def unreadable(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder}: cannot be read ({reason(error)})")


def _check_arrays(folder: Path, expected: dict[str, Any]) -> None:
    tree = array_metadata(folder)
    differences = [f"missing {name}" for name in sorted(set(expected) - set(tree))]
    differences += [f"unexpected {name}" for name in sorted(set(tree) - set(expected))]
    for name in sorted(set(tree) & set(expected)):
        have = (tuple(tree[name].shape), str(tree[name].dtype))
        want = (tuple(expected[name].shape), str(expected[name].dtype))
        if have != want:
            differences.append(f"{name} is {have[1]}{list(have[0])}, not {want[1]}{list(want[0])}")
    if differences:
        raise InputError(f"{folder}: {listed(differences, '; ')}")


def _reader() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _version() -> str:
    try:
        return importlib.metadata.version("rb_jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
