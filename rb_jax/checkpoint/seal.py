"""``seal.json``: what belongs to a folder of arrays, written once all of it is there.

It lists every file with its size, the SHA-256 of the small ones, and the fingerprint of every
array. Files are checked before anything is read, arrays by what was read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rb_jax.errors import InputError, reason
from rb_jax.files import SEAL as NAME
from rb_jax.files import sync_file, sync_folder
from rb_jax.storage import THREADS, AnyPath, files, is_bucket

# Orbax writes these after the seal: when it was committed, and that it was.
LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
# Larger files hold nothing but arrays (and the tree of their chunks), which have fingerprints.
SMALL_BYTES = 2**20
Prints = Mapping[str, Mapping[str, str]]  # item -> array -> fingerprint


def write(folder: AnyPath, prints: Prints) -> None:
    """Seals ``folder``; on a disk all small files and names are synced. Raises OSError."""
    sizes = {name: size for name, size in files(folder).items() if not _later(name)}
    small = [name for name, size in sizes.items() if size <= SMALL_BYTES]
    hashes: dict[str, str | None] = dict.fromkeys(sizes)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes |= zip(small, pool.map(lambda name: _hash(folder / name), small), strict=True)
    content = {
        "files": {name: [sizes[name], hashes[name]] for name in sorted(sizes)},
        "arrays": {item: dict(prints[item]) for item in sorted(prints)},
    }
    (folder / NAME).write_text(_text(content))
    if not is_bucket(folder):
        for name in [*small, NAME]:
            sync_file(Path(folder / name))
        for parent, _, _ in os.walk(folder):
            sync_folder(Path(parent))


def problems(folder: AnyPath, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with the files of a sealed folder; empty if nothing is.

    Of ``share`` (i, n) only the hash of every n-th file, from the i-th on, is computed.
    """
    try:
        listed = _read(folder)["files"]
        there = {n: size for n, size in files(folder).items() if not _later(n)}
    except FileNotFoundError:
        return [f"{NAME}: missing"]
    except (OSError, ValueError) as error:
        _unless_passing(folder, error)
        return [f"{NAME}: {reason(error)}"]
    wrong = [f"{name}: missing" for name in sorted(set(listed) - set(there))]
    wrong += [f"{name}: not in {NAME}" for name in sorted(set(there) - set(listed))]
    for name in LATER:
        with contextlib.suppress(FileNotFoundError):
            if not _plausible(name, (folder / name).read_bytes()):
                wrong.append(f"{name}: cannot be read")

    def difference(name: str) -> str:
        size, digest = listed[name]
        if there[name] != size:
            return f"{name}: {there[name]} bytes, not {size}"
        try:
            same = digest is None or _hash(folder / name) == digest
        except OSError as error:
            _unless_passing(folder, error)
            return f"{name}: {reason(error)}"
        return "" if same else f"{name}: the SHA-256 is wrong"

    mine = sorted(set(listed) & set(there))[share[0] :: share[1]]
    with ThreadPoolExecutor(THREADS) as pool:
        return wrong + [text for text in pool.map(difference, mine) if text]


def _unless_passing(folder: AnyPath, error: Exception) -> None:
    """A store that cannot be asked now says nothing about what lies in it; a disk does."""
    if is_bucket(folder) and isinstance(error, OSError):
        raise error


def prints(folder: AnyPath) -> dict[str, dict[str, str]]:
    """Item -> array -> fingerprint. Raises InputError when the seal is absent or broken."""
    try:
        return _read(folder)["arrays"]
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/{NAME}: {reason(error)}") from error


def differences(folder: AnyPath, item: str, found: Mapping[str, str]) -> list[str]:
    """What of the arrays that were read is not as it was saved."""
    saved = prints(folder).get(item, {})
    return [
        f"{item}/{name}: its values are not those that were saved"
        for name in sorted(found)
        if found[name] != saved.get(name)
    ]


def _read(folder: AnyPath) -> dict[str, Any]:
    try:
        text = (folder / NAME).read_bytes().decode("utf-8")
        content = json.loads(text)
        del content["sha256"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError("cannot be read") from error
    if text != _text(content):
        raise ValueError("its own SHA-256 is wrong")
    return content


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(path: AnyPath) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _later(name: str) -> bool:
    return name == NAME or name in LATER


def _plausible(name: str, content: bytes) -> bool:
    """Whether it is what Orbax writes there; nothing of ours depends on what it says.

    Empty is how a file may be after the power failed, when the seal was already on the disk.
    """
    if not content:
        return True
    if name == LATER[1]:
        return content.startswith(b"Checkpoint commit was successful to ")
    try:
        return "item_handlers" in json.loads(content)
    except ValueError:
        return False
