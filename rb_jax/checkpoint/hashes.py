"""``manifest.sha256``: the SHA-256 of every file of a folder, in the format of ``sha256sum -c``.

A folder is whole when it holds exactly the files that are listed, each with its hash.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rb_jax.files import file_hash, sync_folder

NAME = "manifest.sha256"
THREADS = 8  # hashing lets go of the interpreter's lock


def write(folder: Path) -> None:
    """Lists and syncs to the disk all that is in ``folder``; raises OSError when the disk fails."""
    names = files(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(lambda name: file_hash(folder / name, sync=True), names))
    lines = [f"{digest}  {name}\n" for name, digest in zip(names, hashes, strict=True)]
    with (folder / NAME).open("x", encoding="utf-8", newline="\n") as file:
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())
    for parent, _, _ in os.walk(folder):
        sync_folder(Path(parent))


def problems(folder: Path, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with the files of ``folder``; empty if it is whole.

    Of ``share`` (i, n) only the hash of every n-th file, from the i-th on, is computed.
    """
    try:
        listed = _read(folder / NAME)
        there = files(folder)
    except (OSError, ValueError) as error:
        return [f"{NAME}: {_reason(error)}"]
    wrong = [f"{name}: missing" for name in sorted(listed.keys() - set(there))]
    wrong += [f"{name}: not in {NAME}" for name in sorted(set(there) - listed.keys())]
    mine = sorted(listed.keys() & set(there))[share[0] :: share[1]]

    def differs(name: str) -> str:
        try:
            same = file_hash(folder / name) == listed[name]
        except OSError as error:
            return f"{name}: {_reason(error)}"
        return "" if same else f"{name}: the SHA-256 is wrong"

    with ThreadPoolExecutor(THREADS) as pool:
        return wrong + [text for text in pool.map(differs, mine) if text]


def files(folder: Path) -> list[str]:
    """Paths of all files below ``folder`` but the manifest, relative to it, sorted."""
    paths = []
    for parent, _, names in os.walk(folder, onerror=_raise):
        paths += [(Path(parent) / name).relative_to(folder).as_posix() for name in names]
    return sorted(name for name in paths if name != NAME)


def _read(path: Path) -> dict[str, str]:
    """File -> hash; ValueError for what ``write`` would not have written."""
    text = path.read_bytes().decode("utf-8")
    lines = text.split("\n")
    if lines.pop() != "" or not lines:
        raise ValueError("cut short")
    listed = {}
    for line in lines:
        digest, gap, name = line[:64], line[64:66], line[66:]
        if gap != "  " or not name or name in listed:
            raise ValueError(f"cannot be read at {line[:80]!r}")
        listed[name] = digest
    return listed


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return "missing" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
    return "not text" if isinstance(error, UnicodeDecodeError) else str(error)


def _raise(error: OSError) -> None:
    raise error
