"""Checkpoints from other programs, whole, damaged and hostile."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import rb_jax
from rb_jax.errors import InputError
from rb_jax.weights.safetensors import header, reader
from rb_jax.weights.safetensors.reader import TensorFiles

DTYPES = header.DTYPES
PACKAGE = Path(rb_jax.__file__).parent


def packed(header, data=b""):
    """A safetensors file: ``header`` is text, bytes, or what becomes JSON."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).bytes(count)


def save(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({name: np.arange(3.0) for name in names}, path)


def refusal(path, **options):
    """The message with which a checkpoint is refused, one line that starts with its path."""
    with pytest.raises(InputError) as caught:
        TensorFiles.open(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Round trips with the original library.


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (5, 3), (2, 3, 1, 5)])
def test_reads_every_dtype_that_torch_saves(tmp_path, shape):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    wanted, tensors = {}, {}
    for i, (code, dtype) in enumerate(DTYPES.items()):
        size = int(np.prod(shape))
        raw = np.frombuffer(random_bytes(size * dtype.itemsize, i), np.uint8)
        raw = raw % 2 if code == "BOOL" else raw
        wanted[code] = raw.tobytes()
        kind = getattr(torch, dtype.name)
        tensors[code] = torch.tensor(raw.tolist(), dtype=torch.uint8).view(kind).reshape(shape)
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})

    files = TensorFiles.open(tmp_path / "x.safetensors")
    assert set(files) == set(DTYPES) and len(files) == len(DTYPES)
    assert files.metadata == {"format": "pt"} and files.checksums == {}
    assert files.nbytes == sum(map(len, wanted.values()))
    for code, dtype in DTYPES.items():
        array = files.read(code)
        assert (
            (array.dtype, array.shape) == (dtype, shape) == (files[code].dtype, files[code].shape)
        )
        assert array.tobytes() == wanted[code]
        assert array.flags.writeable


def test_reads_what_numpy_saves(tmp_path):
    arrays = {
        "a/b": np.arange(15, dtype=np.float32).reshape(5, 3),
        "a.0": np.array(7, np.int64),
        "Grüße 你": np.array([True, False, True]),
        "z": np.zeros((0, 4), np.float16),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    files = TensorFiles.open(str(tmp_path))
    for name, array in arrays.items():
        np.testing.assert_array_equal(files.read(name), array)
    assert "a/b" in files and "a/c" not in files
    info = files["a/b"]
    whole = (tmp_path / "model.safetensors").read_bytes()
    assert whole[info.offset : info.offset + info.size] == arrays["a/b"].tobytes()
    assert info.file == tmp_path / "model.safetensors"


def test_rows_are_slices_of_the_leading_axis(tmp_path):
    arrays = {
        "x": np.arange(60, dtype=np.int16).reshape(5, 4, 3),
        "s": np.array(1),
        "z": np.ones(0),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    files = TensorFiles.open(tmp_path)
    for start, stop in [(0, 5), (1, 3), (4, 5), (2, 2), (5, 5)]:
        np.testing.assert_array_equal(files.read_rows("x", start, stop), arrays["x"][start:stop])
    assert files.read_rows("z", 0, 0).shape == (0,)
    for name, start, stop in [("x", -1, 2), ("x", 3, 6), ("x", 3, 2), ("s", 0, 1)]:
        with pytest.raises(ValueError, match="no rows"):
            files.read_rows(name, start, stop)
    with pytest.raises(KeyError):
        files.read("y")


def test_weights_that_come_with_the_package_have_good_checksums():
    files = TensorFiles.open(PACKAGE / "assets" / "reasonworld_vae")
    assert set(files.checksums) == set(files)
    reader.verify(files)


def test_file_that_changes_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, "a", "b")
    files = TensorFiles.open(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match="cut off"):
        files.read("b")
    path.unlink()
    with pytest.raises(InputError, match="cannot read 'a'.*No such file"):
        files.read("a")


# The header.

BROKEN = {
    "empty file": (b"", "cut off"),
    "no length": (b"1234567", "cut off"),
    "length beyond the file": ((50).to_bytes(8, "little") + b"{}", "cut off"),
    "length of 2**63": (b"\xff" * 8 + b"{}", "cut off"),
    "no header": (bytes(8), "not a safetensors file"),
    "leading space": (packed(" {}"), "not a safetensors file"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "not JSON"),
    "UTF-16": (packed('{"a": 1}'.encode("utf-16")), "not a safetensors file"),
    "cut off JSON": (packed('{"a": '), "not JSON"),
    "more after the JSON": (packed("{} {}"), "not JSON"),
    "control character": (packed('{"a\n": 1}'), "not JSON"),
    "deep nesting": (packed('{"a":' + "[" * 100_000), "not JSON"),
    "endless lists": (packed('{"a":[' + "[]," * 2_000_000 + "[]]}"), "too long"),
    "name twice": (
        packed('{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2), bytes(4)),
        "'a': is there twice",
    ),
    "dtype twice": (
        packed('{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
        "'dtype': is there twice",
    ),
    "metadata is a list": (packed({"__metadata__": []}), "__metadata__: not a table of text"),
    "metadata is null": (packed({"__metadata__": None}), "__metadata__"),
    "metadata is a number": (packed({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata is a float": (packed({"__metadata__": {"a": 1.5}}), "__metadata__"),
    "metadata is half a pair": (packed('{"__metadata__":{"a":"\\ud800"}}'), "__metadata__"),
    "checksums are no table": (packed({"__metadata__": {"crc32": "[1]"}}), "crc32"),
    "checksums are no JSON": (packed({"__metadata__": {"crc32": "["}}), "crc32"),
    "checksums of others": (packed({"__metadata__": {"crc32": '{"a":"00000000"}'}}), "crc32"),
    "entry is a list": (packed({"a": []}), "'a': must have dtype, shape and data_offsets"),
    "entry is null": (packed({"a": None}), "'a': must have"),
    "nothing in it": (packed({"a": {}}), "'a': must have"),
    "more in it": (packed({"a": entry() | {"x": 1}}, bytes(4)), "nothing else"),
    "unknown dtype": (packed({"a": entry("C64")}, bytes(4)), "'a': dtype 'C64' is not supported"),
    "dtype is a list": (packed({"a": entry(["U8"])}, bytes(4)), "'a': dtype <list>"),
    "shape is text": (packed({"a": entry() | {"shape": "4"}}, bytes(4)), "'a': shape"),
    "negative axis": (packed({"a": entry(shape=(-2, -2))}, bytes(4)), "'a': shape"),
    "minus zero": (packed('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "'a': shape"),
    "axis is true": (packed({"a": entry(shape=(4, True))}, bytes(4)), "'a': shape"),
    "axis is a float": (packed({"a": entry(shape=(4.0,))}, bytes(4)), "'a': shape"),
    "axis is NaN": (packed({"a": entry(shape=(float("nan"),))}, bytes(4)), "'a': shape"),
    "axis of 5000 digits": (
        packed('{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,4]}}' % ("9" * 5000), bytes(4)),
        "'a': shape",
    ),
    "17 axes": (packed({"a": entry(shape=(4, *[1] * 16))}, bytes(4)), "'a': shape"),
    "huge shape": (packed({"a": entry(shape=(2**40, 2**40))}, bytes(4)), "larger than any"),
    "huge but empty": (packed({"a": entry("U8", (2**60, 0), (0, 0))}), "larger than any"),
    "offsets are one": (packed({"a": entry(offsets=(4,))}, bytes(4)), "'a': data_offsets must"),
    "negative offset": (packed({"a": entry(offsets=(-4, 0))}, bytes(4)), "'a': data_offsets must"),
    "offsets reversed": (packed({"a": entry(offsets=(4, 0))}, bytes(4)), "not within"),
    "offsets beyond": (packed({"a": entry(offsets=(4, 8))}, bytes(4)), "not within"),
    "wrong size": (packed({"a": entry("F32", (2,))}, bytes(4)), r"F32 \[2\] takes 8 bytes"),
    "empty, wrong size": (packed({"a": entry("F32", (0,))}, bytes(4)), "takes 0 bytes"),
    "overlap": (packed({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)), "'b': overlaps"),
    "the same bytes": (packed({"a": entry(), "b": entry()}, bytes(4)), "'b': overlaps"),
    "empty tensor inside": (
        packed({"a": entry(), "b": entry(shape=(0,), offsets=(2, 2))}, bytes(4)),
        "'b': overlaps",
    ),
    "gap": (packed({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)), "'b': has a gap"),
    "gap at the start": (packed({"a": entry(offsets=(1, 5))}, bytes(5)), "'a': has a gap"),
    "bytes at the end": (packed({"a": entry()}, bytes(7)), "3 bytes after the last tensor"),
    "bytes without tensor": (packed({}, bytes(1)), "1 bytes after the last tensor"),
    "no name": (packed({"": entry()}, bytes(4)), "'': a name has 1 to 1024"),
    "long name": (packed({"a" * 1025: entry()}, bytes(4)), "a name has 1 to 1024"),
    "newline in the name": (packed({"a\nb": entry()}, bytes(4)), r"'a\\nb': a name has no control"),
    "NUL in the name": (packed({"a\0": entry()}, bytes(4)), "no control"),
    "half a pair in the name": (packed({"\ud800": entry()}, bytes(4)), "no control"),
    "backslash": (packed({"a\\b": entry()}, bytes(4)), "no backslash"),
    "absolute name": (packed({"/etc/x": entry()}, bytes(4)), "absolute"),
    "name leads up": (packed({"a/../b": entry()}, bytes(4)), "'..'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_header(tmp_path, case):
    content, message = BROKEN[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        TensorFiles.open(path)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_all_problems_are_listed_at_once(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed({f"t{i}": entry("F32", (i,)) for i in range(2, 22)}, bytes(4)))
    message = refusal(path)
    assert all(f"'t{i}': F32" in message for i in range(2, 10)) and "'t10'" not in message
    assert message.endswith("and 12 more")
    two = {"a": entry("Q4"), "__metadata__": {"x": 1}, "b": entry(shape=(-1,))}
    path.write_bytes(packed(two, bytes(4)))
    message = refusal(path)
    assert all(part in message for part in ("'a': dtype", "'b': shape", "__metadata__"))


def test_damaged_tensor_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"a": entry(), "b": entry(offsets=(4, 8))}
    header["__metadata__"] = {"crc32": json.dumps({"a": "2144df1c", "b": "2144df1d"})}
    path.write_bytes(packed(header, bytes(8)))
    files = TensorFiles.open(path)
    assert files.metadata == {}
    files.read("a", checksum=True)
    files.read("b")
    with pytest.raises(InputError, match=f"^{path}: damaged, the checksum of 'b' is wrong$"):
        files.read("b", checksum=True)
    with pytest.raises(InputError, match="checksum of 'b'"):
        reader.verify(files)


# Folders and indexes.


@pytest.mark.parametrize(
    "name", ["model", "diffusion_pytorch_model", "adapter_model", "ae", "flux1-dev"]
)
def test_folder_with_one_file(tmp_path, name):
    save(tmp_path / f"{name}.safetensors", "x")
    (tmp_path / "training_args.bin").write_bytes(b"no matter")
    (tmp_path / f"._{name}.safetensors").write_bytes(b"what another system left")
    assert list(TensorFiles.open(tmp_path)) == ["x"]


def test_known_name_goes_before_others(tmp_path):
    save(tmp_path / "model.safetensors", "x")
    save(tmp_path / "model.fp16.safetensors", "y")
    assert list(TensorFiles.open(tmp_path)) == ["x"]


def test_folder_with_several_files_asks_for_one(tmp_path):
    save(tmp_path / "ae.safetensors", "x")
    save(tmp_path / "flux1-dev.safetensors", "y")
    message = refusal(tmp_path)
    assert "give the path of one: ae.safetensors, flux1-dev.safetensors" in message
    assert list(TensorFiles.open(tmp_path / "ae.safetensors")) == ["x"]


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "no such file" in refusal(tmp_path / "missing")
    assert "no such file" in refusal(str(tmp_path) + "\0")
    assert "no such file" in refusal(tmp_path / "pipe.safetensors")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))
    assert "no .safetensors" in refusal(tmp_path)
    assert "not a checkpoint" in refusal(tmp_path / "notes.txt")


def sharded(folder, stem="model", **changes):
    """Two shards and an index; ``changes`` replaces entries of its weight_map, None removes."""
    save(folder / f"{stem}-00001-of-00002.safetensors", "a", "b")
    save(folder / f"{stem}-00002-of-00002.safetensors", "c")
    weight_map = {n: f"{stem}-0000{1 + (n == 'c')}-of-00002.safetensors" for n in "abc"} | changes
    index = folder / f"{stem}.safetensors.index.json"
    weight_map = {name: shard for name, shard in weight_map.items() if shard is not None}
    index.write_text(json.dumps({"metadata": {"total_size": 7.5e1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model", "anything"])
def test_shards(tmp_path, stem):
    index = sharded(tmp_path, stem)
    for path in (tmp_path, index):
        files = TensorFiles.open(path)
        assert set(files) == {"a", "b", "c"} and files.nbytes == 72
        np.testing.assert_array_equal(files.read("c"), np.arange(3.0))
    index.unlink()
    assert "parts but no .index.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": "../model-00001-of-00002.safetensors"}, "'a': '../model"),
        ({"a": "/etc/passwd.safetensors"}, "'a': '/etc/passwd"),
        ({"a": "x\\y.safetensors"}, "'a': "),
        ({"a": "x\0.safetensors"}, "'a': "),
        ({"a": ".."}, "'a': '..' is not the name of a .safetensors file"),
        ({"a": "weights.bin"}, "'a': 'weights.bin'"),
        ({"a": "model.safetensors.index.json"}, "'a': 'model.safetensors.index.json'"),
        ({"a": 3}, "'a': <int>"),
        ({"a": ["x"]}, "'a': <list>"),
        ({"../a": "model-00001-of-00002.safetensors"}, "'../a': a name is no"),
        ({"a": "x.safetensors", "b": "y.safetensors"}, "'x.safetensors' is missing; 'y.safet"),
        ({"d": "model-00001-of-00002.safetensors"}, "'d': is not in its file model-00001"),
        ({"c": "model-00001-of-00002.safetensors"}, "'c': is not in its file model-00001"),
        ({"b": None}, "'b': in model-00001-of-00002.safetensors, not in the index"),
    ],
)
def test_index_that_does_not_fit(tmp_path, changes, message):
    index = sharded(tmp_path / "in", **changes)
    save(tmp_path / "model-00001-of-00002.safetensors", "a")
    refused = refusal(index)
    assert refused.startswith(f"{index}: ") and message in refused


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": []}',
        b"\xff",
        b"[" * 10**5,
        b'{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}',
        b'{"weight_map": ' + b"[[],[]," * 10**6,
    ],
)
def test_broken_index(tmp_path, content):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    assert refusal(tmp_path).startswith(f"{path}: ")


def test_links_stay_in_the_folder(tmp_path):
    folder = tmp_path / "in"
    index = sharded(folder)
    shard = folder / "model-00002-of-00002.safetensors"
    outside = tmp_path / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    assert "leads out of the folder" in refusal(index)
    outside.unlink()
    assert "'model-00002-of-00002.safetensors' is missing" in refusal(index)


def test_cache_of_hugging_face(tmp_path):
    """There, the files of a revision are links to a folder of contents."""
    folder, blobs = tmp_path / "m/snapshots/1f/transformer", tmp_path / "m/blobs"
    sharded(folder)
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{i}")
        path.symlink_to(blobs / f"{i}")
    assert set(TensorFiles.open(folder)) == {"a", "b", "c"}


def test_neither_jax_nor_torch_is_imported():
    code = (
        "import sys, rb_jax.weights.safetensors.reader, rb_jax.weights.safetensors.writer\n"
        "assert not {'jax', 'torch'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
