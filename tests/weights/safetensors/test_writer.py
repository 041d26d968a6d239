"""Checkpoints written as a stream, and folders that appear whole or not at all."""

import errno
import json
import math
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from rb_jax.errors import InputError
from rb_jax.files import new_folder
from rb_jax.weights.safetensors import (
    header,
    reader,
    writer,
)
from rb_jax.weights.safetensors.reader import TensorFiles
from rb_jax.weights.safetensors.writer import TensorSpec, write_tensors


def arrays_of_every_dtype(shape, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for code, dtype in header.DTYPES.items():
        raw = np.frombuffer(rng.bytes(math.prod(shape) * dtype.itemsize), np.uint8)
        raw = raw % 2 if code == "BOOL" else raw
        arrays[f"part/{code}"] = raw.copy().view(dtype).reshape(shape)
    return arrays


def write(folder, arrays, produce=None, **options):
    specs = [TensorSpec(name, array.dtype, array.shape) for name, array in arrays.items()]
    return write_tensors(folder, "model", specs, produce or (lambda n: [arrays[n]]), **options)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


SHAPES = [(), (0,), (3, 0, 2), (7,), (5, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shard_bytes", [10**9, 20])
@pytest.mark.parametrize("checksums", [False, True])
def test_reads_back_what_was_written(tmp_path, shape, shard_bytes, checksums):
    arrays = arrays_of_every_dtype(shape)
    metadata = {"format": "pt", "note": 'two\n"lines", ü'}
    paths = write(tmp_path, arrays, metadata=metadata, checksums=checksums, shard_bytes=shard_bytes)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    files = TensorFiles.open(tmp_path)
    assert list(files) == list(arrays) and files.metadata == metadata
    assert set(files.checksums) == (set(arrays) if checksums else set())
    reader.verify(files)
    assert all(same(files.read(name), array) for name, array in arrays.items())
    assert all(int.from_bytes(p.read_bytes()[:8], "little") % 8 == 0 for p in paths[:1])


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_library_reads_it(tmp_path, shape):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    arrays = arrays_of_every_dtype(shape)
    [path] = write(tmp_path, arrays, metadata={"format": "pt"}, checksums=True)
    loaded = load_file(path)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        tensor = loaded[name]
        assert str(tensor.dtype) == f"torch.{array.dtype.name}"
        assert tuple(tensor.shape) == array.shape
        raw = tensor.clone(memory_format=torch.contiguous_format).untyped_storage()
        assert bytes(raw) == array.tobytes()


def test_numpy_library_reads_it(tmp_path):
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array(True), "c": np.zeros(0, np.int8)}
    [path] = write(tmp_path, arrays)
    loaded = safetensors.numpy.load_file(path)
    assert all(same(loaded[name], array) for name, array in arrays.items())
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() is None


def test_parts_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 7)
    stack = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    parts = [stack[0], stack[1:3], stack[3:3], *stack[3:].reshape(-1, 2)]
    write(tmp_path, {"x": stack}, lambda name: iter(parts), checksums=True)
    files = TensorFiles.open(tmp_path)
    reader.verify(files)
    np.testing.assert_array_equal(files.read("x"), stack)


def test_shards_hold_what_fits_in_order(tmp_path):
    sizes = {"a": 30, "b": 30, "c": 40, "d": 250, "e": 0, "f": 1, "g": 99, "h": 100}
    arrays = {name: np.full(size, i, np.uint8) for i, (name, size) in enumerate(sizes.items())}
    paths = write(tmp_path, arrays, shard_bytes=100, checksums=True)
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert [path.name for path in paths] == [*names, "model.safetensors.index.json"]
    index = json.loads(paths[-1].read_text())
    assert index["metadata"] == {"total_size": 550}
    places = [names.index(shard) for shard in index["weight_map"].values()]
    assert list(index["weight_map"]) == list(sizes) and places == [0, 0, 0, 1, 2, 2, 2, 3]
    assert [list(TensorFiles.open(path)) for path in paths[:-1]] == [
        ["a", "b", "c"],
        ["d"],
        ["e", "f", "g"],
        ["h"],
    ]
    files = TensorFiles.open(tmp_path)
    reader.verify(files)
    assert all(same(files.read(name), array) for name, array in arrays.items())


def test_damage_after_writing_is_found(tmp_path):
    arrays = arrays_of_every_dtype((5, 3))
    [path] = write(tmp_path, arrays, checksums=True)
    content = bytearray(path.read_bytes())
    at = TensorFiles.open(path)["part/BF16"].offset + 3
    content[at] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match="checksum of 'part/BF16' is wrong"):
        reader.verify(TensorFiles.open(path))


X = np.arange(6.0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([X.astype(np.float32)], "x: got float32, not float64"),
        ([X[:5]], "x: got 40 bytes or more, not 48"),
        ([], "x: got 0 bytes or more, not 48"),
        ([X, X[:1]], "x: got 56 bytes or more, not 48"),
        ([np.arange(12.0)[::2]], "x: got float64, not C-contiguous"),
    ],
)
@pytest.mark.parametrize("checksums", [False, True])
def test_production_against_its_spec(tmp_path, parts, message, checksums):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, {"w": X, "x": X}, lambda n: [X] if n == "w" else parts, shard_bytes=48)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("../x", X.dtype, (6,)), "../x: a name is no absolute path"),
        (TensorSpec("w", X.dtype, (6,)), "w: is there twice"),
        (TensorSpec("x", np.dtype(np.complex64), (6,)), "x: dtype complex64 is not supported"),
        (TensorSpec("x", np.dtype(">f8"), (6,)), "x: dtype >f8 is not supported"),
        (TensorSpec("x", X.dtype, (-6,)), "x: shape"),
        (TensorSpec("x", X.dtype, (1,) * 17), "x: shape"),
    ],
)
def test_specs_that_no_file_can_hold(tmp_path, spec, message):
    specs = [TensorSpec("w", X.dtype, (6,)), spec]
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path, "model", specs, lambda name: [X])
    assert not list(tmp_path.iterdir())


def test_errors_of_the_producer_come_through_and_leave_nothing(tmp_path):
    def produce(name):
        yield X[:3]
        raise InputError("source: was cut off while it was read")

    with pytest.raises(InputError, match="^source: was cut off"):
        write(tmp_path, {"x": X}, produce)
    assert not list(tmp_path.iterdir())


def test_existing_file_is_kept(tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write(tmp_path, {"x": X})
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "missing", {"x": X})


def test_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the full disk: the same error at the same place."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / "out"
    big = {"a": np.zeros(1000, np.uint8), "b": np.zeros(2**21, np.uint8)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
    try:
        with (
            pytest.raises(InputError, match=r"model.*safetensors: cannot be written") as caught,
            new_folder(target) as folder,
        ):
            write(folder, big, shard_bytes=2000, checksums=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_small_disk_is_refused_at_once(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 47})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"needs 0.0 GB, 0.0 GB are free"):
        write(tmp_path, {"x": X})


# Folders.


def files_in(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_new_folder_appears_at_the_end(tmp_path):
    target = tmp_path / "deep" / "out"
    with new_folder(target) as folder:
        (folder / "a").write_text("1")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("2")
        assert not target.exists() and folder.parent.parent == target.parent
    assert list(target.parent.iterdir()) == [target]
    assert (target / "a").read_text() == "1" and (target / "sub" / "b").read_text() == "2"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("old", [None, "empty", "full"])
def test_failure_leaves_the_target_as_it_was(tmp_path, error, old):
    target = tmp_path / "out"
    if old:
        target.mkdir()
    if old == "full":
        (target / "a").write_text("old")
    with pytest.raises(error), new_folder(target, replace=old == "full") as folder:
        (folder / "a").write_text("new")
        raise error
    assert list(tmp_path.iterdir()) == ([target] if old else [])
    assert not old or files_in(target) == ({"a": "old"} if old == "full" else {})


def test_full_disk_in_the_callers_own_file(tmp_path):
    with pytest.raises(InputError, match="out: cannot be written .*No space left"):  # noqa: SIM117
        with new_folder(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_targets_that_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("x")
    for name, message in [
        ("file", "exists and is not a folder"),
        ("full", "exists and is not empty; choose another --out"),
        ("file/below", "file: is not a folder"),
    ]:
        with pytest.raises(InputError, match=message), new_folder(tmp_path / name):
            raise AssertionError
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full"}


def test_replacing(tmp_path):
    target = tmp_path / "out"
    for i in range(3):
        with new_folder(target, replace=True) as folder:
            (folder / f"{i}").write_text("x")
        assert files_in(target) == {f"{i}": "x"} and list(tmp_path.iterdir()) == [target]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with new_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("x")
    assert files_in(tmp_path / "empty") == {"a": "x"} and (tmp_path / "link").is_symlink()


def test_old_folder_is_restored_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    rename = Path.rename

    def failing(self, other):
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(InputError, match="Input/output error"):  # noqa: SIM117
        with new_folder(target, replace=True) as folder:
            (folder / "a").write_text("new")
    assert files_in(target) == {"a": "old"} and list(tmp_path.iterdir()) == [target]


def test_folder_filled_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(InputError, match="cannot be written"):  # noqa: SIM117
        with new_folder(target):
            target.mkdir()
            (target / "a").write_text("another program's")
    assert files_in(target) == {"a": "another program's"}
