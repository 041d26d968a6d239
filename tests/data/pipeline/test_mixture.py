"""Several folders as one stream."""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from rb_jax.config import Config, ConfigError, DataConfig
from rb_jax.data.importers.importing import import_dataset
from rb_jax.data.pipeline import loader
from rb_jax.data.pipeline.mixture import Mixture
from rb_jax.errors import InputError
from tests.data import edits

SIZE = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of 3 and of 8 examples."""
    root = tmp_path_factory.mktemp("mix")
    for name, count in (("a", 3), ("b", 8)):
        edits.folder(root / name / "in", count, category="")
        out = root / name / "out"
        import_dataset("folder", root / name / "in", out, shard_examples=3, progress=False)
    return str(root / "a/out"), str(root / "b/out")


def configured(mix, *, batch_size=5, **changes):
    base = Config()
    data = DataConfig(name="records", mix=mix, prepare=False, image_size=SIZE)
    train = dataclasses.replace(base.train, batch_size=batch_size)
    return dataclasses.replace(base, data=dataclasses.replace(data, **changes), train=train)


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_examples_are_numbered_one_folder_after_the_other(folders):
    mixture = Mixture([(folders[0], 1.0), (folders[1], 2.0)], "train", 9)
    assert len(mixture) == 11 and isinstance(mixture, loader.Source)
    alone = [Mixture([(path, 1.0)], "train", 9) for path in folders]
    order = [10, 0, 4, 3, 4, 2]
    read = [make() for make in mixture.read(order)]
    for number, example in zip(order, read, strict=True):
        expected = alone[0][number] if number < 3 else alone[1][number - 3]
        assert np.array_equal(example.source, expected.source)
        assert np.array_equal(example.source, mixture[number].source)
        assert example.instruction == expected.instruction


def test_shares_are_those_asked_for(folders):
    config = configured(tuple(zip(folders, (0.7, 0.3), strict=True)))
    source = loader.open_source(config.data, "train")
    numbers = loader.numbering(loader.groups_of(source), loader.Order(5, 0))
    seen = np.concatenate([numbers(step) for step in range(200)])
    assert abs((seen < 3).sum() - 700) <= 1
    counts = np.bincount(seen, minlength=11)
    assert np.ptp(counts[:3]) <= 1 and np.ptp(counts[3:]) <= 1


def test_restarts_and_processes_go_on_with_the_next_sample(folders):
    config = configured(tuple(zip(folders, (1.0, 2.5), strict=True)), workers=3)
    whole = list(itertools.islice(loader.batches(config, "train"), 7))
    assert same(whole[5:], list(itertools.islice(loader.batches(config, "train", 5), 2)))
    parts = [next(loader.batches(config, "train", 6, np.array(r))) for r in ([0, 1], [2, 3, 4])]
    assert same(jax.tree.map(lambda *x: np.concatenate(x), *parts), whole[6])


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"mix": (("a", -1.0),)}, r"config\.data\.mix: each is a folder and a weight above 0"),
        ({"mix": (("a", 0.0),)}, "a weight above 0"),
        ({"mix": (("a", float("inf")),)}, "a weight above 0"),
        ({"mix": (("", 1.0),)}, "a weight above 0"),
        ({"mix": ()}, r"config\.data\.path: .* needs the path of its folder, or data\.mix"),
        ({"mix": (("a", 1.0),), "path": "b"}, "in the place of data.path"),
        ({"mix": (("a", 1.0),), "name": "folder"}, "is for data.name='records'"),
        ({"mix": (("a", 1.0),), "prepare": True}, "clear data.prepare"),
        ({"mix": (("a", 1.0),), "workers": -1}, "must not be negative"),
    ],
)
def test_mixes_that_cannot_be(values, why):
    with pytest.raises(ConfigError, match=why):
        configured(**{"mix": ()} | values)


def test_folders_that_cannot_be(folders, tmp_path):
    mix = ((folders[0], 1.0), (str(tmp_path / "none"), 1.0))
    with pytest.raises(InputError, match="none/train.manifest.json: no such manifest"):
        loader.open_source(configured(mix).data, "train")
    manifest = edits.content(Path(folders[0]))["train.manifest.json"].decode()
    cut = manifest[: manifest.index('"shards"')] + '"shards": []}'
    edits.put(tmp_path / "train.manifest.json", cut.replace('"examples": 3', '"examples": 0'))
    with pytest.raises(InputError, match=f"{tmp_path}: the split 'train' has no examples"):
        loader.open_source(configured(((str(tmp_path), 1.0),)).data, "train")
