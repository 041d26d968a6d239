"""The records through TensorFlow Datasets, in a process where TensorFlow cannot be imported."""

import subprocess
import sys

from rb_jax.data.formats.shards import Records
from rb_jax.data.importers.importing import import_dataset
from tests.data import edits

CHILD = """
import importlib.util, json, sys

class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            return importlib.util.spec_from_loader(name, self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise ImportError("no TensorFlow")

sys.meta_path.insert(0, NoTensorFlow())
import pathlib
import tensorflow_datasets as tfds
from rb_jax.data.formats.shards import Records
from rb_jax.data.formats.tfds import EditRecords, to_record, write_manifests
from rb_jax.errors import InputError

imported, written = sys.argv[1:]
builder = tfds.builder_from_directory(imported)
source = builder.as_data_source(split="train")
records = [Records(imported, "train")[n] for n in range(7)]
assert [to_record(example) for example in source] == records
assert len(source) == builder.info.splits["train"].num_examples == 7
assert source[2]["instruction"] == b"fell 2?" and list(source[2]["objects"]) == []

try:
    to_record(dict(source[0]) | {"id": b"other"})
    raise SystemExit("a changed example was taken")
except InputError as error:
    assert "checksum" in str(error)

made = EditRecords(records={"train": records, "val": records[4:]}, data_dir=written)
made.download_and_prepare()
again = list(tfds.builder_from_directory(made.data_path).as_data_source(split="val"))
assert [to_record(example) for example in again] == records[4:]
features = [pathlib.Path(p, "features.json").read_text() for p in (imported, made.data_path)]
assert json.loads(features[0]) == json.loads(features[1])
print(write_manifests(made))
"""


def test_read_and_written_without_tensorflow(tmp_path):
    edits.folder(tmp_path / "in", 7)
    import_dataset("folder", tmp_path / "in", tmp_path / "out", shard_examples=3, progress=False)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "out", tmp_path / "tfds"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = done.stdout.splitlines()[-1]
    a, b = Records(tmp_path / "out", "train"), Records(folder, "train", verify=True)
    assert [b[n] for n in range(7)] == [a[n] for n in range(7)] and b.manifest.targets == 7
    assert len(Records(folder, "val")) == 3
