"""Checkpoints with flipped bits, cut and deleted files; disks that fill up while one is written."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

from rb_jax.checkpoint import layout, seal
from rb_jax.runtime.exits import EXIT_IO
from rb_jax.storage import AnyPath, files
from tests.torture import child
from tests.torture.stops import Peace

EXIT_BAD_INPUT = 2  # also of the weights that do not fit at the end


def damage(peace: Peace, flips: int, cuts: int, seed: int) -> dict:
    """Each in place, looked at and undone; a silent one is damage that nothing was said about.

    What of a change in a file that Orbax wrote after the seal nothing reads is harmless: then the
    state that is loaded must be the same, bit for bit.
    """
    draw = random.Random(seed)
    folder = peace.workdir / "checkpoints"
    folder = folder / str(layout.steps(folder)[-1])
    if layout.problems(folder):
        raise RuntimeError(f"{folder} is damaged before anything was done to it")
    frozen = layout.frozen_folder(folder, layout.read_loop(folder)["frozen"])
    paths = [folder / name for name in sorted(files(folder))]
    paths += [frozen / name for name in sorted(files(frozen))]
    silent, harmless = [], 0

    def attempt(path: AnyPath, content: bytes | None, what: str) -> None:
        nonlocal harmless
        before = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        try:
            if not layout.problems(folder) and not layout.frozen_problems(folder, frozen.name):
                harmless += path.name in seal.LATER
                if path.name not in seal.LATER or child.final_hash(peace.workdir) != peace.hash:
                    silent.append(f"{path}: {what}")
        finally:
            path.write_bytes(before)

    for _ in range(flips):
        path = draw.choice(paths)
        content = bytearray(path.read_bytes())
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        attempt(path, bytes(content), f"bit {bit}")
    for _ in range(cuts):
        path = draw.choice(paths)
        content = path.read_bytes()
        size = draw.randrange(len(content))
        attempt(path, content[:size], f"cut to {size}")
    for path in paths:
        attempt(path, None, "deleted")
    counts = {"bit flips": flips, "truncations": cuts, "deleted files": len(paths)}
    return counts | {"of no consequence": harmless, "wrong": silent}


def full_disks(peace: Peace, folder: Path, count: int) -> dict:
    """Trains on ``count`` small disks, then goes on with what was saved where there is room."""
    mount = folder / "disk"
    mount.mkdir(parents=True)
    place = peace.workdir / "checkpoints"
    one = _size(place / str(layout.steps(place)[-1]))
    others = _size(peace.workdir) - _size(place)
    failed, wrong = 0, []
    for i in range(count):
        # From little more than the first checkpoint to all that a run needs at a time.
        size = int(2 * one + others / 4 + i / count * (2 * one + others))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=True)
        moved = folder / f"room_{i}"
        try:
            code = child.finish(child.start(peace.config, mount / "run", said=f"{moved}.log"))
            log = Path(f"{moved}.log").read_text()
            shutil.copytree(mount / "run", moved)
        finally:
            subprocess.run(["umount", "-l", mount], check=True)
        failed += code == EXIT_IO
        if code not in (0, EXIT_BAD_INPUT, EXIT_IO) or "rb-jax: " not in log and code:
            wrong.append(f"{size} bytes: status {code}: {log[-300:]}")
        good = layout.steps(moved / "checkpoints")
        if not good or any(layout.problems(moved / "checkpoints" / str(s)) for s in good):
            wrong.append(f"{size} bytes: no good checkpoint, {good}")
            continue
        child.run(peace.config, moved)
        if child.final_hash(moved) != peace.hash:
            wrong.append(f"{size} bytes: another final state")
    return {"disks": count, "of them too small": failed, "wrong": wrong}


def _size(folder: Path) -> int:
    """Bytes on a disk of 4 KB blocks."""
    files = [p for p in folder.rglob("*")]
    return sum(4096 * -(-os.path.getsize(p) // 4096) if p.is_file() else 4096 for p in files)
