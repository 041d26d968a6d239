"""What a safetensors file says of itself, with none of it believed before it is checked.

The format is a length (8 bytes, little endian), that many bytes of JSON, and the tensors' bytes.
Every limit is tested before the number is used, and all that is wrong is listed at once.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rb_jax.errors import InputError, listed

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MAX_HEADER_BYTES = 100_000_000
MAX_MARKS = 4_000_000
MAX_TENSOR_BYTES = 2**48
MAX_AXES = 16
MAX_NAME = 1024
MAX_LISTED = 8
CHECKSUMS = "crc32"  # key of the header's metadata: JSON, tensor name -> eight hex digits


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is: ``size`` bytes from byte ``offset`` of ``file`` (-1 in a pickle)."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str], dict[str, int]]:
    """Tensors in the order of their bytes, metadata, and checksums of one safetensors file.

    Raises InputError listing what is wrong with it, OSError when it cannot be read.
    """
    with open(path, "rb") as file:
        available = os.fstat(file.fileno()).st_size - 8
        length = int.from_bytes(file.read(8), "little")
        if available < 0 or length > min(available, MAX_HEADER_BYTES):
            raise InputError(f"{path}: cut off, or not a safetensors file")
        raw = file.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        raise InputError(f"{path}: damaged, or not a safetensors file")
    header, problems = parse_json(raw, path)
    metadata = header.pop("__metadata__", {})
    data_size = available - length
    for name, entry in header.items():
        problem = name_problem(name) or _entry_problem(entry, data_size)
        if problem:
            problems.append(f"{show(name)}: {problem}")
    if not problems:  # else the gaps that broken entries leave would be listed too
        problems = _layout_problems(header, data_size)
    checksums = None
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
        problems.append("__metadata__: not a table of text")
    else:
        checksums = _parse_checksums(metadata.pop(CHECKSUMS, None), header)
        if checksums is None:
            problems.append(f"__metadata__: {CHECKSUMS} is not the checksums of these tensors")
    refuse(path, problems)
    infos = {
        name: TensorInfo(
            name,
            DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
            path,
            8 + length + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
    infos = dict(sorted(infos.items(), key=lambda item: item[1].offset))
    return infos, metadata, checksums or {}


def parse_json(raw: bytes, path: Path) -> tuple[dict[str, Any], list[str]]:
    """A JSON object and the keys that it has twice; numbers but natural ones come as None.

    Raises InputError for anything else, and for more commas and brackets than any checkpoint has:
    a list of empty lists takes thirty times its length in memory.
    """
    twice: list[str] = []
    if len(raw) > MAX_HEADER_BYTES or sum(map(raw.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise InputError(f"{path}: the list of tensors is too long")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=partial(_table, twice),
            parse_int=lambda text: int(text) if text.isdecimal() and len(text) < 20 else None,
            parse_float=lambda text: None,
            parse_constant=lambda text: None,
        )
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: damaged, its list of tensors is not JSON") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: damaged, its list of tensors is not a JSON object")
    return value, twice


def _table(twice: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice += [f"{show(key)}: is there twice" for key, n in counts.items() if n > 1]
    return result


def name_problem(name: str) -> str | None:
    """What is wrong with a tensor's name, or None; names become paths and lines of messages."""
    if not name or len(name) > MAX_NAME:
        return f"a name has 1 to {MAX_NAME} characters"
    if not name.isprintable() or "\\" in name:
        return "a name has no control characters and no backslash"
    if name.startswith("/") or ".." in name.split("/"):
        return "a name is no absolute path and has no '..' in it"
    return None


def _entry_problem(entry: Any, data_size: int) -> str | None:
    """What is wrong with a tensor's dtype, shape and data_offsets, or None."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "must have dtype, shape and data_offsets, nothing else"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"dtype {show(dtype)} is not supported"
    if not _is_naturals(shape) or len(shape) > MAX_AXES:
        return f"shape must be at most {MAX_AXES} non-negative integers"
    size = DTYPES[dtype].itemsize
    for axis in shape:
        # An empty axis must not hide the others: NumPy refuses their product too.
        size *= max(axis, 1)
        if size > MAX_TENSOR_BYTES:
            return "its shape is larger than any tensor"
    if not _is_naturals(offsets) or len(offsets) != 2:
        return "data_offsets must be two non-negative integers"
    begin, end = offsets
    if not begin <= end <= data_size:
        return f"data_offsets {begin}, {end} are not within the file's {data_size} bytes of data"
    size = 0 if 0 in shape else size
    if size != end - begin:
        return f"{dtype} {shape} takes {size} bytes, data_offsets give it {end - begin}"
    return None


def _layout_problems(header: dict[str, Any], data_size: int) -> list[str]:
    """Overlaps, gaps and what is left at the end; every byte must belong to one tensor."""
    problems, position = [], 0
    for (begin, end), name in sorted((e["data_offsets"], name) for name, e in header.items()):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "has a gap before it"
            problems.append(f"{show(name)}: {what}")
        position = max(position, end)
    if position != data_size:
        problems.append(f"{data_size - position} bytes after the last tensor")
    return problems


def _parse_checksums(text: str | None, names: Iterable[str]) -> dict[str, int] | None:
    """Name -> CRC-32 from the metadata; None unless it has one for each tensor."""
    if text is None:
        return {}
    try:
        table = json.loads(text)
        values = {name: int(digits, 16) for name, digits in table.items()}
    except (ValueError, RecursionError, TypeError, AttributeError):
        return None
    return values if set(values) == set(names) else None


def _is_naturals(value: Any) -> bool:
    """Whether it is a list of integers, none of which is negative after ``parse_json``."""
    return isinstance(value, list) and all(type(item) is int for item in value)


def _is_text(value: Any) -> bool:
    """Whether it is a string without half a surrogate pair, which is no valid UTF-8."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def refuse(path: Path, problems: list[str]) -> None:
    """Raises InputError with the problems of a file, if there are any."""
    if problems:
        raise InputError(f"{path}: {listed(problems, '; ')}")


def show(value: Any) -> str:
    """A value from the file, fit for one line of a message; a list may be endless or too deep."""
    text = repr(value) if isinstance(value, str) else f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"
