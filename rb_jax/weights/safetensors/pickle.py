"""Checkpoints that are pickles, read by torch without running what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rb_jax.errors import InputError
from rb_jax.weights.safetensors.header import (
    DTYPES,
    MAX_AXES,
    TensorInfo,
    name_problem,
    refuse,
    show,
)

# torch maps the file; it is opened anew after so many bytes, to let go of the pages touched.
REMAP_BYTES = 2**30


def read_pickle(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str], dict[str, int]]:
    """Tensors of one pickle, and no metadata and checksums; InputError lists what is no tensor."""
    infos, problems = {}, []
    for name, tensor in _load_pickle(path).items():
        problem = name_problem(name) if isinstance(name, str) else "a name is text"
        info = None if problem else _pickle_info(name, tensor, path)
        if info is None:
            problem = problem or "not a tensor of a supported kind"
            problems.append(f"{show(name)}: {problem}")
        infos[name] = info
    refuse(path, problems)
    return infos, {}, {}


def _load_pickle(path: Path) -> dict[Any, Any]:
    """The table of tensors in a pickle, which may be under 'state_dict' or 'model'."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path}: reading a pickle takes PyTorch: pip install torch") from error
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # a hostile pickle can make torch raise nearly anything
        raise InputError(
            f"{path}: damaged, older than PyTorch 1.6, or has more in it than tensors: "
            f"torch.load(weights_only=True) refuses it ({type(error).__name__})"
        ) from error
    if isinstance(loaded, dict):
        inner = (loaded.get(key) for key in ("state_dict", "model"))
        loaded = next((table for table in inner if isinstance(table, dict)), loaded)
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f"{path}: not a table of tensors")
    return loaded


def _pickle_info(name: str, tensor: Any, path: Path) -> TensorInfo | None:
    """None for what is no dense tensor, or repeats stored values to look larger than it is."""
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        return None
    dtypes = {f"torch.{dtype.name}": dtype for dtype in DTYPES.values()}
    dtype, shape = dtypes.get(str(tensor.dtype)), tuple(tensor.shape)
    if dtype is None or len(shape) > MAX_AXES or tensor.device.type != "cpu" or tensor.is_neg():
        return None
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return None
    return TensorInfo(name, dtype, shape, path, -1, tensor.nbytes)


class PickleReader:
    """Reads from pickles, keeping a mapping no longer than some of its pages are in use."""

    def __init__(self):
        self._tables: dict[Path, dict[Any, Any]] = {}
        self._touched = 0

    def read_bytes(self, info: TensorInfo, begin: int, size: int) -> np.ndarray:
        import torch

        if self._touched > REMAP_BYTES:
            self._tables, self._touched = {}, 0
        if info.file not in self._tables:
            self._tables[info.file] = _load_pickle(info.file)
        tensor = self._tables[info.file].get(info.name)
        if tensor is None or _pickle_info(info.name, tensor, info.file) != info:
            raise InputError(f"{info.file}: was changed while it was read")
        self._touched += size
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return data[begin : begin + size].copy()
