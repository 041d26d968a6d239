"""Small pictures as files, and folders of edits made of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rb_jax.data.formats.records import EditRecord
from rb_jax.data.formats.shards import Records

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


def picture(seed: int, kind: str = "PNG", width: int = 7, height: int = 5) -> bytes:
    """A picture file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def record(number: int = 0, **changes: Any) -> EditRecord:
    values: dict[str, Any] = dict(
        id=f"r{number}",
        dataset="folder",
        instruction=f"What if glass {number} fell?",
        source=picture(2 * number),
        target=picture(2 * number + 1, "JPEG"),
        category="physical",
        objects=("glass", "böse Fee"),
        turn=3,
        target_caption="splinters",
    )
    return EditRecord(**values | changes)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def folder(root: Path, count: int, **changes: Any) -> Path:
    """A folder for the layout ``folder``, with ``count`` lines."""
    rows = []
    for n in range(count):
        put(root / f"a/{n}.png", picture(2 * n))
        put(root / f"b/{n}.jpg", picture(2 * n + 1, "JPEG"))
        row = {"instruction": f"fell {n}?", "source": f"a/{n}.png", "target": f"b/{n}.jpg"}
        rows.append(json.dumps(row | {"category": "physical" if n % 3 else ""} | changes))
    put(root / "train.jsonl", "\n".join(rows) + "\n")
    return root


def every(out: Path, split: str = "train") -> list[EditRecord]:
    records = Records(out, split, verify=True)
    return [records[n] for n in range(len(records))]


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
