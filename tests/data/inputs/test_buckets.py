"""Shapes of batches, which pictures go where, and what is cut off."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from rb_jax.config import Config, ConfigError, DataConfig
from rb_jax.data.importers.importing import import_dataset
from rb_jax.data.inputs import buckets
from rb_jax.data.pipeline import loader, mixture
from rb_jax.errors import InputError
from tests.data import edits

SHAPES = ((32, 48), (32, 32), (48, 24))
SIZES = [(40, 61), (33, 31), (70, 36), (50, 80), (90, 40), (41, 40), (30, 44)]  # height, width
BUCKETS = [0, 1, 2, 0, 2, 1, 0]


def make(folder, sizes):
    """Edits whose pictures are brighter to the right and below."""
    for n, (height, width) in enumerate(sizes):
        ramp = np.linspace(0, 255, height)[:, None, None] + np.linspace(0, 255, width)[:, None]
        pixels = np.broadcast_to(ramp / 2, (height, width, 3)).astype(np.uint8)
        for name in ("a", "b"):
            (folder / "in" / name).mkdir(parents=True, exist_ok=True)
            edits.Image.fromarray(pixels).save(folder / f"in/{name}/{n}.png")
    rows = (
        f'{{"instruction": "fell {n}?", "source": "a/{n}.png", "target": "b/{n}.png"}}'
        for n in range(len(sizes))
    )
    for split in ("train", "val"):
        edits.put(folder / f"in/{split}.jsonl", "\n".join(rows if split == "train" else []) + "\n")
    import_dataset("folder", folder / "in", folder / "out", shard_examples=3, progress=False)
    return folder / "out"


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path, SIZES)


def configured(folder, batch_size=5, **changes):
    base = Config()
    values = {"name": "records", "path": str(folder), "prepare": False, "buckets": SHAPES}
    data = DataConfig(image_size=32, **values | changes)
    train = dataclasses.replace(base.train, batch_size=batch_size)
    return dataclasses.replace(base, data=data, train=train)


@pytest.mark.parametrize(("count", "side", "multiple"), [(1, 64, 8), (5, 512, 16), (9, 96, 24)])
def test_derived_shapes(count, side, multiple):
    shapes = buckets.derive(count, side, multiple)
    assert 1 <= len(shapes) <= count and len(set(shapes)) == len(shapes)
    for height, width in shapes:
        assert height % multiple == width % multiple == 0
        assert 0.75 < height * width / side**2 < 1.35 and 0.35 < height / width < 2.9
    aspects = [height / width for height, width in shapes]
    assert aspects == sorted(aspects) and (side, side) in shapes


def test_the_nearest_shape():
    assert buckets.nearest(np.array(SIZES), SHAPES).tolist() == BUCKETS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_kept_has_the_shape_s_proportions(size, shape):
    keep = buckets.kept(size, shape)
    assert max(keep) == 1.0 and min(keep) > 0
    ratio = size[0] * keep[0] / (size[1] * keep[1])
    assert ratio == pytest.approx(shape[0] / shape[1])


def test_sizes_are_scanned_once(folder, monkeypatch):
    records = mixture.Records(folder, "train")
    assert mixture.picture_sizes(records).tolist() == [list(size) for size in SIZES]
    (path,) = folder.glob("train.sizes-*.npy")
    monkeypatch.setattr(mixture, "picture_size", None)
    assert mixture.picture_sizes(records).tolist() == [list(size) for size in SIZES]
    path.write_bytes(path.read_bytes()[:-7])  # cut off: made again
    with pytest.raises(TypeError):
        mixture.picture_sizes(records)


def test_pictures_are_covered_and_cut_in_the_middle(folder):
    source = loader.open_source(configured(folder).data, "train", SHAPES)
    for number, bucket in enumerate(BUCKETS):
        example = source[number]
        assert example.source.shape == (*SHAPES[bucket], 3)
        assert example.target is not None and np.array_equal(example.source, example.target)
        pixels = example.source[..., 0].astype(int)
        assert np.abs(pixels + pixels[::-1, ::-1] - 255).max() <= 3  # as much from either side
    # 90 x 40 in 48 x 24: rows are cut off, columns are not.
    tall = source[4].source[..., 0].astype(int)
    assert tall[0, 0] > 4 and abs((tall[0, -1] - tall[0, 0]) - 127) < 8


def test_batches_never_mix_shapes_and_nothing_is_left_out(folder):
    config = configured(folder)
    source = loader.open_source(config.data, "train", SHAPES)
    numbers = loader.numbering(loader.groups_of(source), loader.Order(5, 0))
    seen = np.stack([numbers(step) for step in range(280)])
    assert all(len(set(np.array(BUCKETS)[row])) == 1 for row in seen)
    assert np.ptp(np.bincount(seen.ravel(), minlength=7)) <= 10  # 200 times each, but for a batch
    shapes = set()
    for batch in itertools.islice(loader.batches(config, "train"), 7):
        height, width = batch.source.shape[1:3]
        assert batch.target is not None
        assert batch.source.shape == batch.target.shape == (5, height, width, 3)
        assert batch.regions.shape[2:] == (height // 4, width // 4)
        shapes.add((height, width))
    assert shapes == set(SHAPES)


def test_restarts_and_processes_go_on_with_the_next_batch(folder, tmp_path):
    other = make(tmp_path / "other", SIZES[:2] + SIZES[3:4])  # nothing tall
    mix = ((str(folder), 1.0), (str(other), 3.0))
    config = configured("", mix=mix, workers=3)
    whole = list(itertools.islice(loader.batches(config, "train"), 9))
    late = list(itertools.islice(loader.batches(config, "train", 7), 2))
    assert same(whole[7:], late)
    parts = [next(loader.batches(config, "train", 8, np.array(r))) for r in ([0, 1], [2, 3, 4])]
    assert same(jax.tree.map(lambda *x: np.concatenate(x), *parts), whole[8])


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"buckets": ((32, 30),)}, "are not all multiples of 8"),
        ({"buckets": ((0, 32),)}, "are not all multiples"),
        ({"buckets": ((32, 32), (32, 32))}, "a shape comes twice"),
        ({"bucket_count": 3}, "two ways to say the same"),
        ({"bucket_count": -1, "buckets": ()}, "must not be negative"),
        ({"prepare": True}, "clear data.prepare"),
        ({"prepare": True, "buckets": (), "bucket_count": 2}, "clear data.prepare"),
        ({"name": "folder"}, "needs data.name='records'"),
    ],
)
def test_buckets_that_cannot_be(values, why):
    with pytest.raises(ConfigError, match=f"config.data.bucket.*{why}"):
        configured("x", **values)


def test_a_picture_that_cannot_be_read_is_named(folder, monkeypatch):
    def broken(data, name):
        raise InputError(f"{name}: damaged picture")

    monkeypatch.setattr(mixture, "picture_size", broken)
    with pytest.raises(InputError, match=r"source: damaged picture"):
        loader.open_source(configured(folder).data, "train", SHAPES)
