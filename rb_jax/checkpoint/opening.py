"""Taking a workdir for a run: its lock, what a killed run left half, and where no run may be."""

from __future__ import annotations

import os

from etils import epath

from rb_jax.checkpoint.layout import FOLDER, FROZEN, children, is_unfinished
from rb_jax.checkpoint.lock import Lock
from rb_jax.checkpoint.manager import SAVING, Checkpoints
from rb_jax.errors import InputError, reason
from rb_jax.files import check_unsealed
from rb_jax.runtime.exits import EXIT_IO, RunError
from rb_jax.runtime.processes import is_primary, on_primary, say, wait_for_all
from rb_jax.storage import Unreachable, beginning, check_bucket, is_bucket, place, reaching
from rb_jax.weights.folder import STEM


def open_checkpoints(
    workdir: str | os.PathLike[str], keep: int = 0, keep_every: int = 0
) -> Checkpoints:
    """Those of a workdir, to be written by this run alone: what a killed one left half is removed.

    Raises InputError when another run is at work in it, and when it is no place for a run; RunError
    when it cannot be written now.
    """
    root = place(workdir, "workdir")
    lock = Lock(root)
    try:
        with beginning(root):
            on_primary(lambda: _begin(root, lock))
        with reaching(root):
            held = lock if is_primary() else None
            manager = Checkpoints(root / FOLDER, keep, keep_every, held)
    except (OSError, ValueError) as error:
        lock.release()
        if isinstance(error, Unreachable):
            raise RunError(EXIT_IO, str(error)) from error
        if isinstance(error, InputError):
            raise
        raise RunError(EXIT_IO, f"{root}: cannot be written ({reason(error)})") from error
    wait_for_all()
    return manager


def _check_no_weights(root: epath.Path) -> None:
    """Raises InputError for a weights folder, which a run would mix with its own files."""
    if (root / f"{STEM}.safetensors").exists():
        raise InputError(f"{root}: is a weights folder; choose another workdir")


def _begin(root: epath.Path, lock: Lock) -> None:
    with reaching(root):
        _check_no_weights(root)
        check_unsealed(root)
        if is_bucket(root):  # where there are no folders, and s3fs would make the bucket
            check_bucket(root)
        else:
            root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if not is_bucket(root):
            (root / FOLDER).mkdir(exist_ok=True)
        for path in [*children(root / FOLDER), *children(root / FROZEN)]:
            if SAVING in path.name:
                path.rmtree()
            elif is_bucket(root) and is_unfinished(path):
                say(f"{path} was not finished, and is removed")
                path.rmtree()
