"""Checkpoints of a run, kept by Orbax's own manager on a disk or in a bucket.

``workdir/checkpoints/<step>/`` holds the items ``params`` (what is trained), ``ema``,
``optimizer`` (Orbax, one array per name) and ``loop`` (JSON: the configuration that made it, the
step's scalars, the loop's own record), and ``seal.json``, written once all else is there. The
frozen parameters, which never change, are written once, to ``workdir/frozen/<hash>/``.

Orbax commits in the way of the storage: it renames a folder on a disk, and writes a last file into
one in a bucket. So a folder with a number (and that file, in a bucket) is a finished checkpoint,
or a damaged one.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import orbax.checkpoint as ocp
from etils import epath

from rb_jax.checkpoint import seal, writers
from rb_jax.checkpoint.barriers import Barriers
from rb_jax.checkpoint.fingerprints import Fingerprints
from rb_jax.checkpoint.layout import (
    COMMITTED,
    FOLDER,
    FROZEN,
    LOOP,
    Damaged,
    State,
    check_arrays,
    check_model,
    children,
    frozen_folder,
    frozen_problems,
    hash_of,
    is_aside,
    joined,
    none_good,
    problems,
    put_aside,
    read_arrays,
    read_loop,
    refuse_old,
    split,
    steps,
)
from rb_jax.checkpoint.lock import Lock
from rb_jax.config import Config
from rb_jax.errors import InputError, reason
from rb_jax.files import sync_file, sync_folder
from rb_jax.runtime.exits import EXIT_DIVERGED, EXIT_IO, RunError
from rb_jax.runtime.processes import (
    anywhere,
    from_primary,
    is_primary,
    on_primary,
    warn,
)
from rb_jax.runtime.progress import reminding
from rb_jax.storage import is_bucket, reaching

SAVING = ".orbax-checkpoint-tmp"
T = TypeVar("T")
FAILURE_SECONDS = 1.0  # between two looks at whether another process has failed


class Checkpoints:
    """The checkpoints in a folder; ``keep`` newest (0: all) and every ``keep_every``-th step stay.

    Of several processes all must call its methods, in the same order. Used as a context it waits
    for the last write at the end, and lets go of the lock.
    """

    def __init__(self, folder: epath.Path, keep: int = 0, keep_every: int = 0, lock: Any = None):
        self.folder = folder
        self.last: int | None = None  # the step that was saved or restored last
        self._lock: Lock | None = lock
        self._frozen = ""  # the hash of this run's frozen parameters, once they are there
        self._seals: dict[epath.Path, dict[str, Fingerprints]] = {}
        self._commit: Future[None] | None = None
        self._barriers = Barriers(FOLDER)
        self._orbax = writers.manager(
            folder, (keep, keep_every), self._before_commit, self._barriers
        )
        self._frozen_done: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self._commit is None:
                return
            if error is None:
                self.wait()
            elif jax.process_count() == 1:  # others may be gone: no waiting for them
                self._commit.exception()
        finally:
            if self._lock is not None:
                self._lock.release()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending; whether it is whole only reading tells."""
        return steps(self.folder)

    def save(self, state: State, config: Config, progress: dict[str, Any]) -> None:
        """Starts writing the state; the next step may reuse its buffers.

        ``progress`` is the loop's own record (JSON), handed back by ``restore``. Raises RunError
        when this or the write before fails; ``failed`` tells as soon as it has.
        """
        self.wait()
        step, self._commit = int(state.step), Future()
        self._barriers.begin()
        try:
            if not self._still_ours():
                raise self._taken_over()
            items, frozen, scalars = split(state)
            self._keep_frozen(frozen)
            prints = {item: Fingerprints(arrays) for item, arrays in items.items()}
            self._seals[_unfinished(self.folder, step)] = prints
            record = {"version": _version(), "config": dataclasses.asdict(config)}
            record |= {"scalars": scalars, "frozen": self._frozen, "progress": progress}
            args: dict[str, Any] = {n: ocp.args.PyTreeSave(x) for n, x in items.items()}
            args[LOOP] = ocp.args.JsonSave(json.loads(json.dumps(record)))
            self._orbax.save(step, args=ocp.args.Composite(**args), force=True)
        except Exception as error:  # a full disk shows as whatever broke first
            self._barriers.fail()
            self._commit.set_exception(self._not_written(step, error))
            return
        self.last = step
        watched = (self._commit, step, prints)
        threading.Thread(target=self._watch, args=watched, name="commit", daemon=True).start()

    def failed(self) -> bool:
        """Whether a write has failed, or another run has taken over; never waits."""
        idle = self._commit is None or self._commit.done()
        if self._lock is not None and self._lock.lost and idle:
            self._commit = Future()
            self._commit.set_exception(self._taken_over())
        commit = self._commit
        return commit is not None and commit.done() and commit.exception() is not None

    def wait(self) -> None:
        """Until nothing is being written; raises RunError when that failed."""
        commit = self._commit
        if commit is not None:
            with reminding("waiting for a checkpoint to be written"):
                commit.result()
            self._commit = None

    def restore_newest(
        self, config: Config, like: Callable[[], State], check: Callable[[dict[str, Any]], None]
    ) -> tuple[State, dict[str, Any]] | None:
        """The newest state that is all as it was saved, and the loop's record; None for neither.

        Says what is wrong with newer ones, and puts these aside: a disk's as ``<step>.damaged``; a
        bucket's, which cannot be renamed, lose the file that commits them. ``check``
        gets the configuration that made it, and may refuse. Raises InputError when there are
        checkpoints, but none is good, and as ``restore``.
        """
        there = together(lambda: self.steps() if is_primary() else [], self.folder)
        below, damaged = 2**31 - 1, []
        while True:
            below = from_primary(max((step for step in there if step < below), default=-1))
            if below < 0:
                break
            found = self._restored(below, config, like, check)
            if found is not None:
                self._put_aside(damaged, below)
                self.last = below
                return found
            damaged.append(below)
        aside = together(
            lambda: is_primary() and any(map(is_aside, children(self.folder))), self.folder
        )
        if damaged or anywhere(aside):
            raise none_good(self.folder)
        return None

    def _restored(
        self, step: int, config: Config, like: Any, check: Any
    ) -> tuple[State, dict[str, Any]] | None:
        """One step's state; None, having said why, when it is damaged."""
        folder = self.folder / str(step)

        def look() -> tuple[list[str], dict[str, Any]]:
            refuse_old(folder)
            wrong = problems(folder, _share())
            record = {} if wrong else read_loop(folder)
            if record.get("frozen"):
                wrong = frozen_problems(folder, record["frozen"], _share())
            return wrong, record

        wrong, record = together(look, folder)
        if self._damaged(step, wrong):
            return None
        check(record["config"])
        check_model(folder, record, config)
        expected, hash_ = like(), record["frozen"]
        items, frozen, _ = split(expected)
        items |= {FROZEN: frozen} if frozen else {}
        folders = {item: folder / item for item in items}
        if frozen:
            folders[FROZEN] = frozen_folder(folder, hash_)
        arrays: dict[str, dict[str, Any]] = {}

        def read() -> list[str]:
            check_arrays(folder, items, hash_)
            try:
                for item, places in items.items():
                    arrays[item] = read_arrays(folders[item], _as_laid_out(places))
            except Damaged as error:
                return [str(error)]
            return []

        if self._damaged(step, together(read, folder)):
            return None
        found = {item: Fingerprints(each) for item, each in arrays.items()}

        def compare() -> list[str]:
            wrong = []
            for item, prints in found.items():
                sealed = folders[item] if item == FROZEN else folder
                wrong += seal.differences(sealed, item, prints.values())
            return wrong

        if self._damaged(step, together(compare, folder)):
            return None
        self._frozen = hash_
        return joined(expected, arrays, record["scalars"]), record["progress"]

    def _damaged(self, step: int, wrong: list[str]) -> bool:
        """Whether any process found something, having said what this one did."""
        for text in wrong[:8]:
            warn(f"{self.folder}/{step} is damaged: {text}", everywhere=True)
        return anywhere(bool(wrong))

    def _put_aside(self, damaged: list[int], good: int) -> None:
        for step in damaged:
            warn(f"step {step} cannot be used: continuing from step {good} instead")
            on_primary(lambda path=self.folder / str(step): put_aside(path))
        if damaged:
            together(self._orbax.reload, self.folder)

    def _keep_frozen(self, frozen: dict[str, Any]) -> None:
        """Starts writing the frozen parameters, unless this run has; the next commit waits."""
        if self._frozen or not frozen:
            return
        prints = Fingerprints(frozen)
        if not prints.finite():
            raise RunError(EXIT_DIVERGED, "a frozen parameter is not finite; nothing is saved")
        self._frozen = hash_of(prints.values())
        folder = self.folder.parent / FROZEN / self._frozen
        if not is_bucket(folder):
            on_primary(lambda: folder.parent.mkdir(exist_ok=True))
        where = _unfinished(folder.parent, folder.name)
        self._seals[where] = {FROZEN: prints}
        barriers = Barriers(FROZEN)
        writer = writers.one(folder, lambda: self._seal(where), barriers)
        writer.save(folder, args=ocp.args.PyTreeSave(frozen), force=True)
        done = self._frozen_done = Future()

        def watch() -> None:
            try:
                writer.wait_until_finished()
                if is_primary() and not is_bucket(folder):
                    _sync(Path(folder), Path(folder.parent), Path(folder.parent.parent))
                done.set_result(None)
            except BaseException as error:
                for each in (barriers, self._barriers):
                    each.fail()
                done.set_exception(error)

        threading.Thread(target=watch, name="frozen", daemon=True).start()

    def _before_commit(self) -> None:
        """On the first process, when all have written and the folder has not its name yet."""
        if self._lock is not None and not self._lock.check():
            raise self._taken_over()
        if self._frozen_done is not None:
            self._frozen_done.result()
        self._seal(next(path for path in self._seals if path.parent == self.folder))

    def _seal(self, path: epath.Path) -> None:
        prints = self._seals[path]
        if not all(each.finite() for each in prints.values()):
            raise RunError(EXIT_DIVERGED, "not finite")
        seal.write(path, {item: each.values() for item, each in prints.items()})

    def _watch(self, commit: Future, step: int, prints: dict[str, Fingerprints]) -> None:
        """The background thread: notices when it is written, or why it is not."""
        failure = None
        try:
            if not all(each.finite() for each in prints.values()):
                text = f"the state of step {step} is not finite, and not saved; {self._left()}"
                failure = RunError(EXIT_DIVERGED, text)
            self._wait_for_orbax()
            if is_primary() and failure is None and not is_bucket(self.folder):
                _sync(Path(self.folder / str(step)), Path(self.folder))
        except BaseException as error:
            failure = failure or self._not_written(step, error)
        self._seals.clear()
        if failure is None:
            commit.set_result(None)
            return
        if is_primary():
            _remove(_unfinished(self.folder, step), self.folder / str(step))
        commit.set_exception(failure)

    def _wait_for_orbax(self) -> None:
        """Until the write has ended, here and where one of several processes cannot go on.

        Orbax's own threads may wait for hours for what a process that failed does not do.
        """
        ended: Future[None] = Future()

        def wait() -> None:
            try:
                self._orbax.wait_until_finished()
                ended.set_result(None)
            except BaseException as error:
                ended.set_exception(error)

        threading.Thread(target=wait, name="orbax", daemon=True).start()
        while jax.process_count() > 1:
            try:
                return ended.result(timeout=FAILURE_SECONDS)
            except TimeoutError:
                if ended.done():
                    break
                self._barriers.raise_if_failed()
        ended.result()

    def unlock(self) -> None:
        """Lets the next run in; for a process that ends without having saved anything."""
        if self._lock is not None:
            self._lock.release()

    def _still_ours(self) -> bool:
        """Whether the lock is, as the first process sees it; all must ask."""
        mine = True
        if self._lock is not None:
            try:
                mine = self._lock.check()
            except Exception:  # a network that fails now: the heartbeat asks again
                mine = not self._lock.lost
        return bool(from_primary(int(mine)))

    def _taken_over(self) -> RunError:
        by = f" ({self._lock.lost})" if self._lock is not None else ""
        text = f"another run has taken over {self.folder.parent}{by}"
        return RunError(EXIT_IO, f"{text}; nothing more is written by this one")

    def _not_written(self, step: int, error: BaseException) -> RunError:
        if isinstance(error, RunError):
            return error
        text = f"the checkpoint of step {step} could not be written ({reason(error)})"
        return RunError(EXIT_IO, f"{text}; {self._left()}")

    def _left(self) -> str:
        try:
            left = self.steps()
        except Exception:  # the same storage that just failed
            return "what was saved before is intact"
        return f"the last good one is of step {left[-1]}" if left else "there is no earlier one"


def together(action: Callable[[], T], where: epath.Path) -> T:
    """What ``action`` gives here; when it fails on one of the processes, all raise."""
    result, error = None, None
    try:
        with reaching(where):
            result = action()
    except Exception as caught:
        error = caught
    if anywhere(error is not None):
        raise error or InputError(f"{where}: another process failed; its output says why")
    return cast(T, result)


def _unfinished(parent: epath.Path, name: object) -> epath.Path:
    """Where Orbax writes a folder until it commits it."""
    return parent / (f"{name}" if is_bucket(parent) else f"{name}{SAVING}")


def _sync(*folders: Path) -> None:
    """Brings to the disk what Orbax wrote after the seal, and the names in these folders."""
    for name in seal.LATER:
        if (folders[0] / name).exists():
            sync_file(folders[0] / name)
    for folder in folders:
        sync_folder(folder)


def _remove(*paths: epath.Path) -> None:
    """What a failed save left; a finished checkpoint is left alone."""
    for path in paths:
        try:
            finished = (path / COMMITTED).exists()
            if path.exists() and not finished:
                path.rmtree()
        except Exception:  # the same storage that just failed; the next start removes it
            continue


def _as_laid_out(places: dict[str, Any]) -> dict[str, Any]:
    return {
        name: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
        for name, x in places.items()
    }


def _share() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()


def _version() -> str:
    try:
        return importlib.metadata.version("rb_jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
