"""Batches, and the promise that their order depends on the seed and the step alone."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from rb_jax.config import Config, DataConfig, ModelConfig
from rb_jax.data.cache import prepared
from rb_jax.data.inputs.text import Tokenizer, english, train_tokenizer
from rb_jax.data.pipeline import loader
from rb_jax.data.pipeline.collate import OBJECT_TOKENS
from rb_jax.errors import InputError
from rb_jax.models.types import Text
from tests.data.fakes import SIZE, FakeWorld, folder_config


def numbers(count, order, steps):
    made = loader.ordered(loader.whole(count), order, lambda batch: batch.copy())
    return np.stack(list(itertools.islice(made, steps)))


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (7, 7), (3, 8), (1, 2), (64, 16)])
def test_every_epoch_is_a_fresh_permutation(count, batch):
    stream = numbers(count, loader.Order(batch, seed=5), 3 * count).ravel()
    epochs = [stream[i * count : (i + 1) * count] for i in range(3 * batch)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count >= 7:
        assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("start", [1, 2, 5, 17, 100])
def test_starting_late_continues_the_same_stream(start):
    whole = numbers(10, loader.Order(4, seed=1), start + 5)
    late = numbers(10, loader.Order(4, seed=1, start_step=start), 5)
    assert np.array_equal(whole[start:], late)


@pytest.mark.parametrize("rows", [[0, 1, 2], [9, 10, 11], [1, 4, 7, 11], list(range(12))])
def test_a_process_sees_its_rows_of_the_global_batch(rows):
    whole = numbers(11, loader.Order(12, seed=2), 5)
    part = numbers(11, loader.Order(12, 2, rows=np.array(rows)), 5)
    assert np.array_equal(whole[:, rows], part)


def test_seeds_give_orders_that_are_not_shifts_of_each_other():
    a, b = (numbers(50, loader.Order(50, seed=s), 4) for s in (0, 1))
    assert not any(np.array_equal(x, y) for x in a for y in b)


def test_the_order_itself_is_pinned():
    """A resumed run must see the same order after an upgrade of NumPy or Grain."""
    pinned = [[6, 1, 5, 2, 7, 4, 3, 0], [7, 3, 5, 6, 4, 0, 2, 1]]
    assert numbers(8, loader.Order(8, seed=3), 2).tolist() == pinned


def test_orders_that_cannot_be():
    with pytest.raises(InputError, match=r"config\.train\.batch_size: 0 is not positive"):
        loader.Order(0, 0)
    with pytest.raises(ValueError, match="of a batch of 4"):
        loader.Order(4, 0, rows=np.array([3, 4]))
    with pytest.raises(ValueError, match="start_step"):
        loader.Order(4, 0, start_step=-1)
    with pytest.raises(InputError, match="no examples"):
        loader.whole(0)


def test_negative_and_huge_seeds():
    for seed in (-1, 2**40):
        assert sorted(numbers(6, loader.Order(6, seed), 1)[0]) == list(range(6))


def test_batches_restart_and_split_exactly(tmp_path):
    config = folder_config(tmp_path, 6)
    whole = list(itertools.islice(loader.batches(config, "train"), 6))
    late = list(itertools.islice(loader.batches(config, "train", start_step=4), 2))
    assert same(whole[4:], late)
    half = np.arange(len(whole[0].source) // 2)
    halves = [next(loader.batches(config, "train", 3, half + i * len(half))) for i in range(2)]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
    assert same(joined, whole[3])


def test_a_set_smaller_than_a_batch(tmp_path):
    batch = next(loader.batches(folder_config(tmp_path, 2, batch_size=5), "train"))
    assert batch.source.shape == (5, SIZE, SIZE, 3)


def test_a_batch_is_what_the_model_expects():
    config = Config()
    size, model = config.data.image_size, config.model
    grid = size // model.regions.stride
    batch = next(loader.batches(config, "train"))
    rows = config.train.batch_size
    objects = model.frce.max_objects
    regions = model.regions.max_regions
    for value, shape, dtype in [
        (batch.source, (rows, size, size, 3), np.uint8),
        (batch.target, (rows, size, size, 3), np.uint8),
        (batch.text.ids, (rows, model.text.max_length), np.int32),
        (batch.prompt.mask, (rows, model.mllm.max_length), bool),
        (batch.objects.ids, (rows, objects, OBJECT_TOKENS), np.int32),
        (batch.object_mask, (rows, objects), bool),
        (batch.regions, (rows, regions, grid, grid), bool),
        (batch.region_mask, (rows, regions), bool),
    ]:
        assert isinstance(value, np.ndarray) and value.shape == shape and value.dtype == dtype
    assert batch.region_mask.any(axis=1).all() and batch.object_mask.any(axis=1).all()
    assert batch.source_latent is None


def test_every_text_begins_and_ends_even_if_absent():
    batch = loader.Collator(Config())([resized(FakeWorld()[i]) for i in range(3)])
    assert (batch.objects.ids[..., 0] == 1).all()
    assert (batch.objects.mask.sum(-1) >= 2).all()


def resized(example, size=64):
    def larger(p):
        return np.repeat(np.repeat(p, size // SIZE, 0), size // SIZE, 1)

    return dataclasses.replace(
        example, source=larger(example.source), target=larger(example.target)
    )


def test_objects_are_extracted_when_there_are_none():
    collate, example = loader.Collator(Config()), resized(FakeWorld()[0])
    assert example.objects == ()
    named = dataclasses.replace(example, objects=("ball 0",))
    a, b = collate([example]), collate([named])
    assert a.object_mask.sum() == 1 and same(a, b)


def test_editing_has_no_target():
    collate, example = loader.Collator(Config()), resized(FakeWorld()[0])
    alone = dataclasses.replace(example, target=None)
    assert collate([alone]).target is None
    with pytest.raises(ValueError, match="either all"):
        collate([alone, example])


def test_unfit_instructions_name_the_example():
    collate, example = loader.Collator(Config()), resized(FakeWorld()[0])
    for text, why in [("", "empty"), ("what if? " * 50, "tokens and the limit is 30")]:
        with pytest.raises(InputError, match=f"example fake-0: .*{why}"):
            collate([dataclasses.replace(example, instruction=text)])


def test_two_tokenizers_and_two_lengths(tmp_path):
    other = train_tokenizer(english()[:10], 400, tmp_path / "t.json")
    base = Config()
    model = dataclasses.replace(
        base.model, mllm=dataclasses.replace(base.model.mllm, max_length=60, vocab_size=400)
    )
    config = dataclasses.replace(
        base, model=model, data=DataConfig(prompt_tokenizer=str(tmp_path / "t.json"))
    )
    example = resized(FakeWorld()[0])
    batch = loader.Collator(config)([example])
    assert same(batch.text, Text(*Tokenizer.load().encode([example.instruction], 32)))
    assert same(batch.prompt, Text(*other.encode([example.instruction], 60)))


def test_a_vocabulary_smaller_than_the_tokenizers():
    base = Config()
    small = dataclasses.replace(base.model.text, vocab_size=500)
    config = dataclasses.replace(base, model=dataclasses.replace(ModelConfig(), text=small))
    with pytest.raises(InputError, match=r"config\.model\.text\.vocab_size: 500 .* 1024"):
        loader.Collator(config)


def test_open_source(tmp_path):
    source = loader.open_source(DataConfig(count=3), "val")
    assert len(source) == 3 and source[2].source.shape == (64, 64, 3)
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(InputError, match="split"):
        loader.open_source(DataConfig(), "none")
    with pytest.raises(InputError, match="no such folder"):
        loader.open_source(DataConfig(name="folder", path=str(tmp_path / "none")), "train")


def test_a_broken_picture_stops_the_stream_by_name(tmp_path):
    config = folder_config(tmp_path, 4)
    (tmp_path / "images/src/train/000002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"000002\.png"):
        next(loader.batches(config, "train"))


def long_lines(folder, *numbers):
    """Makes the instructions of these lines of a folder's manifest too long."""
    path = folder / "train.jsonl"
    lines = path.read_text().splitlines()
    for number in numbers:
        line = json.loads(lines[number - 1]) | {"instruction": "what if it rained? " * 30}
        lines[number - 1] = json.dumps(line)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("prepare", [True, False])
def test_every_instruction_that_is_too_long_is_named(tmp_path, prepare):
    """With file, line and the keys to raise, before anything is made of the others."""
    config = folder_config(tmp_path / "set", 9)
    long_lines(tmp_path / "set", 2, 7)
    with pytest.raises(InputError) as caught:
        if prepare:
            prepared.prepare(config, "train", tmp_path / "p", progress=False)
        else:
            loader.batches(config, "train")
    text = str(caught.value)
    assert all(f"train.jsonl:{n}: the instruction has" in text for n in (2, 7))
    assert "the limit is 30" in text and "train.jsonl:3" not in text
    keys = "config.model.text.max_length=32 and config.model.mllm.max_length=32"
    assert text.endswith(f"shorten them, or train with more than {keys}")
    assert not (tmp_path / "p").exists()


def test_an_autoencoder_does_not_look_at_the_texts(tmp_path):
    config = folder_config(tmp_path / "set", 9)
    long_lines(tmp_path / "set", *range(1, 10))
    train = dataclasses.replace(config.train, task="autoencoder")
    batch = next(loader.batches(dataclasses.replace(config, train=train), "train"))
    assert batch.source.std() > 0 and batch.target is not None
    assert not batch.object_mask.any() and not batch.region_mask.any()
    ready = prepared.prepare(
        dataclasses.replace(config, train=train), "train", tmp_path / "p", progress=False
    )
    assert len(ready) == 9
