"""From an import to training: the loader, the prepared cache and a whole run read records."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from rb_jax.cli import main
from rb_jax.config import DataConfig
from rb_jax.data.cache.prepared import dataset_fingerprint, prepare
from rb_jax.data.importers.importing import import_dataset
from rb_jax.data.pipeline import loader
from rb_jax.errors import InputError
from tests.data import edits
from tests.data.fakes import folder_config


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture
def config(tmp_path):
    """Records of the pictures that ``folder`` reads as they are; and that configuration."""
    plain = folder_config(tmp_path / "in", 7)
    import_dataset("reason50k", tmp_path / "in", tmp_path / "out", shard_examples=3, progress=False)
    data = dataclasses.replace(plain.data, name="records", path=str(tmp_path / "out"))
    return plain, dataclasses.replace(plain, data=data)


def test_records_give_the_batches_of_their_source(config, tmp_path):
    plain, records = config
    pairs = zip(loader.batches(plain, "train"), loader.batches(records, "train"), strict=False)
    assert all(same(a, b) for a, b in itertools.islice(pairs, 5))
    ready = prepare(records, "train", tmp_path / "p", progress=False)
    assert same(next(ready.batches(4, 0, 3)), next(loader.batches(plain, "train", 3)))


def test_the_cache_knows_its_records(config, tmp_path):
    _, records = config
    before = dataset_fingerprint(records, "train")
    assert before == dataset_fingerprint(records, "train")
    import_dataset(
        "reason50k", tmp_path / "in", tmp_path / "out2", shard_examples=2, progress=False
    )
    (tmp_path / "out").rename(tmp_path / "old")
    (tmp_path / "out2").rename(tmp_path / "out")
    assert dataset_fingerprint(records, "train") != before


def test_training_needs_targets(tmp_path):
    edits.folder(tmp_path / "in", 3)
    (tmp_path / "in/b/1.jpg").unlink()
    path = tmp_path / "in/train.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = '{"instruction": "x", "source": "a/1.png"}'
    path.write_text("\n".join(lines))
    import_dataset("folder", tmp_path / "in", tmp_path / "out", progress=False)

    data = DataConfig(name="records", path=str(tmp_path / "out"), image_size=32)
    with pytest.raises(InputError, match="1 of 3 examples of train have no target picture"):
        loader.open_source(data, "train")


def test_a_run_over_records(tmp_path, monkeypatch):
    from rb_jax.train import loop
    from rb_jax.train.metrics import read_lines
    from tests.train import fake

    fake.use(monkeypatch)
    for split in ("train", "val"):
        folder_config(tmp_path / "in", 5, split=split)
        flags = [f"--source={tmp_path}/in", f"--out={tmp_path}/out", f"--split={split}"]
        assert main(["data", "import", "--from=reason50k", *flags]) == 0
    base = fake.config(steps=3)
    data = dataclasses.replace(base.data, name="records", path=str(tmp_path / "out"))
    assert loop.train(dataclasses.replace(base, data=data), tmp_path / "run") == 0
    losses = [row["loss"] for row in read_lines(tmp_path / "run") if "loss" in row]
    assert losses and np.isfinite(losses).all()
