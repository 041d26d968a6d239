"""Files and folders that appear whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rb_jax.errors import InputError, reason

PARTIAL = ".partial"  # how the name of an unfinished file ends; it begins with a dot
SEAL = "seal.json"  # a folder that has it is a checkpoint, whole as it is


@contextlib.contextmanager
def writing(path: Path, *also: type[Exception]) -> Iterator[None]:
    """Turns what goes wrong on the disk (OSError, and ``also``) into InputError."""
    try:
        yield
    except (OSError, *also) as error:
        raise InputError(f"{path}: cannot be written ({reason(error)})") from error


@contextlib.contextmanager
def whole_file(path: Path, aside: Path | None = None, sync: bool = True) -> Iterator[Path]:
    """Where to write a file that takes its name after the body, or never.

    It is written beside ``path``, or in the folder ``aside`` of the same disk. With ``sync`` its
    bytes are on the disk before it has its name. A body that writes nothing leaves nothing.
    OSError while renaming becomes InputError.
    """
    partial = (aside or path.parent) / f".{uuid.uuid4().hex}{PARTIAL}"
    try:
        yield partial
        if partial.exists():
            with writing(path):
                if sync:
                    sync_file(partial)
                os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, aside: Path | None = None) -> None:
    """Writes a small file in UTF-8, whole or not at all; InputError if it cannot be."""
    with whole_file(path, aside) as partial, writing(path):
        partial.write_text(text, encoding="utf-8", newline="\n")


def to_json(value: Any) -> str:
    """Strict JSON: a number that is not finite becomes null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes it at the end of the ``with`` block.

    Its files are synced to the disk first. After any error in the block it is removed, and
    ``target`` is as it was. Raises InputError as ``check_new_folder``, and when the disk is full or
    fails. With ``replace`` an old folder goes once the new one is complete.
    """
    target = target.resolve()
    check_new_folder(target, replace=replace)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        with writing(target):
            new.mkdir()
            yield new
            _sync_all(new)
            _swap(new, target, old if replace else None)
            sync_folder(target.parent)
    finally:
        if target.exists() or not old.exists():  # else ``old`` is the only copy there is
            shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(target: Path, *, replace: bool = False) -> None:
    """InputError if ``new_folder`` could not make this one: asked before long work, not after.

    That is when ``target`` is a file, when it is a folder with something in it (unless ``replace``)
    and when nothing can be written beside it.
    """
    target = target.resolve()
    with writing(target):
        if target.exists() and not target.is_dir():
            raise InputError(f"{target}: exists and is not a folder; choose another --out")
        if target.exists() and not replace and any(target.iterdir()):
            raise InputError(f"{target}: exists and is not empty; choose another --out")
    check_writable(target.parent)


def check_writable(folder: Path) -> None:
    """InputError if nothing can be written in a folder, or in what it would be made in."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if nearest == folder and not folder.is_dir():
        raise InputError(f"{folder}: is not a folder")
    if not nearest.is_dir():
        raise InputError(f"{nearest}: is not a folder, so {folder} cannot be one")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written (no permission for {nearest})")
    check_unsealed(folder.resolve())


def check_unsealed(folder: Any) -> None:
    """Raises InputError for a folder (pathlib's or epath's) in a checkpoint, or that is one.

    Anything more in it would damage it.
    """
    for each in (folder, *folder.parents):
        if (each / SEAL).exists():
            raise InputError(
                f"{folder}: lies in a checkpoint ({each}), to which nothing may be added; choose "
                "another folder"
            )


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        (sync_file if path.is_file() else sync_folder)(path)
    sync_folder(folder)


def _swap(new: Path, target: Path, old: Path | None) -> None:
    """Moves ``target``, if it is there, to ``old`` and ``new`` to ``target``, or neither.

    Without ``old`` only an empty ``target`` can be replaced: the system refuses others.
    """
    try:
        if old and target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old and old.exists() and not target.exists():
            old.rename(target)
        raise


def file_hash(path: Path, sync: bool = False) -> str:
    """SHA-256 in hexadecimal; ``sync`` also brings the file to the disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest


def sync_file(path: Path) -> None:
    """Brings a file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Brings a folder's names to the disk, so that renames in it last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True, create: bool = True) -> Iterator[None]:
    """Holds a lock file alone; the system lets go of it when the process ends, however it does.

    Raises BlockingIOError if another has it and ``wait`` is off, OSError if it cannot be opened.
    """
    handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
