"""Pickled checkpoints: refused unless allowed, and then read without running what is in them."""

import json
import os
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest

from rb_jax.errors import InputError
from rb_jax.weights.safetensors import pickle as pickled
from rb_jax.weights.safetensors.reader import TensorFiles


def refusal(path, **options):
    """The message with which a checkpoint is refused, one line that starts with its path."""
    with pytest.raises(InputError) as caught:
        TensorFiles.open(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "name",
    ["x.bin", "x.pt", "x.pth", "x.ckpt", "pytorch_model.bin", "pytorch_model.bin.index.json"],
)
def test_pickle_is_refused_with_the_command_that_converts_it(tmp_path, name):
    folder = tmp_path / "two words"
    folder.mkdir()
    (folder / name).write_bytes(b"not even looked at")
    for path in (folder, folder / name):
        message = refusal(path)
        assert message.startswith(f"{folder / name}: ")
        assert f"rb-jax import --source='{folder / name}' --allow_pickle" in message
        assert "torch.load(weights_only=True)" in message


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_allowed_pickle(tmp_path, torch, nested, monkeypatch):
    monkeypatch.setattr(pickled, "REMAP_BYTES", 20)  # so that it is mapped several times
    base = torch.arange(12.0)
    table = {
        "a": base.reshape(3, 4).to(torch.bfloat16),
        "part": base[2:6],
        "turned": base.reshape(3, 4).T,
        "tied": base,
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float16)),
    }
    torch.save({nested: table, "epoch": 3} if nested else table, tmp_path / "x.pt")
    files = TensorFiles.open(tmp_path, allow_pickle=True)
    assert list(files) == list(table)
    assert files["a"].dtype == ml_dtypes.bfloat16 and files["a"].file == tmp_path / "x.pt"
    for name, tensor in table.items():
        array = files.read(name)
        assert array.shape == tuple(tensor.shape) == files[name].shape
        assert array.nbytes == files[name].size
        np.testing.assert_array_equal(array.astype(float), tensor.detach().double().numpy())
    rows = files.read_rows("turned", 1, 3)
    np.testing.assert_array_equal(rows, base.reshape(3, 4).T.numpy()[1:3])


def test_sharded_pickle(tmp_path, torch):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    weight_map = {n: f"pytorch_model-0000{i}-of-00002.bin" for i, n in ((1, "a"), (2, "b"))}
    index = {"weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    files = TensorFiles.open(tmp_path, allow_pickle=True)
    assert [files.read(name).shape for name in files] == [(2,), (3,)]


@pytest.mark.parametrize("saved_by", ["torch", "pickle"])
def test_hostile_pickle_runs_nothing(tmp_path, torch, saved_by):
    path, marker = tmp_path / "x.bin", tmp_path / "marker"
    content = {"a": torch.ones(2), "b": Evil(marker)}
    if saved_by == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    message = refusal(path, allow_pickle=True)
    assert "refuses it" in message and "weights_only to False" not in message
    assert not marker.exists()
    torch.load(path, weights_only=False) if saved_by == "torch" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the trap was live


def test_pickles_of_other_things(tmp_path, torch):
    path = tmp_path / "x.pt"
    for content, message in [
        ([torch.ones(2)], "not a table of tensors"),
        ({}, "not a table of tensors"),
        (torch.ones(2), "not a table of tensors"),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch': not a tensor of a supported kind"),
        ({3: torch.ones(2)}, "<int>: a name is text"),
        ({"../a": torch.ones(2)}, "'../a': a name is no absolute path"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a': not a tensor"),
        ({"a": torch.ones(1).expand(2**40)}, "'a': not a tensor"),
        ({"a": torch.ones(2, device="meta")}, "'a': not a tensor"),
    ]:
        torch.save(content, path)
        assert message in refusal(path, allow_pickle=True)
    path.write_bytes(path.read_bytes()[:-40])
    assert "refuses it" in refusal(path, allow_pickle=True)


def test_pickle_without_torch(tmp_path, monkeypatch):
    (tmp_path / "x.pt").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "takes PyTorch: pip install torch" in refusal(tmp_path, allow_pickle=True)
