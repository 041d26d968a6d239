"""From a data set to an endless, restartable stream of batches.

The numbers of a step's examples are a pure function of (seed, step), which order.py has; a process
takes its rows, and Grain's threads make batches of them ahead of time. No iterator state exists, so
a run that starts at step k on any number of processes goes on with exactly the examples that an
uninterrupted run would have seen.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from rb_jax.config import Config, DataConfig
from rb_jax.data.formats.reason50k import Reason50K
from rb_jax.data.formats.schema import EditExample
from rb_jax.data.inputs.buckets import Shape, bucket_shapes
from rb_jax.data.pipeline.collate import ArrayCollator
from rb_jax.data.pipeline.mixture import Mixture
from rb_jax.data.pipeline.order import Groups, Order, numbering, whole
from rb_jax.data.reasonworld import Example, ReasonWorld
from rb_jax.errors import InputError
from rb_jax.models.types import Batch, Text

T = TypeVar("T")


@runtime_checkable
class Source(Protocol):
    """A finite data set with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> EditExample: ...


class WorldSource:
    """The first ``count`` examples of a ReasonWorld split."""

    def __init__(self, data: DataConfig, split: str):
        try:
            self._world = ReasonWorld(split, data.seed, data.image_size)
        except ValueError as error:
            raise InputError(f"config.data: {error}") from error
        self._count = data.count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> EditExample:
        if not 0 <= index < self._count:
            raise IndexError(f"example {index} of {self._count}")
        return from_world(self._world[index])


def from_world(example: Example) -> EditExample:
    """An example of ReasonWorld as one of any data set."""
    return EditExample(
        id=example.id,
        category=example.category,
        instruction=example.instruction,
        objects=tuple(example.objects),
        source=example.source,
        target=example.target,
        target_caption=example.target_caption,
    )


def open_source(
    data: DataConfig,
    split: str,
    shapes: tuple[Shape, ...] = (),
    pictures_only: bool = False,
) -> Source:
    """The data set that the configuration names; InputError if it is not there or is broken.

    ``shapes`` are those of the buckets, for records. With ``pictures_only`` a folder's texts are
    not looked at.
    """
    if data.name == "folder":
        return Reason50K(data.path, split, data.image_size, pictures_only)
    if data.name == "records":
        mix = data.mix or ((data.path, 1.0),)
        return Mixture(mix, split, data.image_size, shapes)
    return WorldSource(data, split)


def groups_of(source: Source) -> Groups:
    return source.groups if isinstance(source, Mixture) else whole(len(source))


def take(
    source: Source,
    numbers: Int[np.ndarray, " B"] | range,
    each: Callable[[Callable, Iterable], Iterable] = map,
) -> list[EditExample]:
    """The examples with these numbers; ``each`` is map, or as map but on threads.

    Records are read together first.
    """
    if isinstance(source, Mixture):
        return list(each(lambda make: make(), source.read([int(number) for number in numbers])))
    return list(each(source.__getitem__, [int(number) for number in numbers]))


def open_checked(config: Config, split: str, collate: ArrayCollator) -> Source:
    """As ``open_source``, for training: a folder's instructions are checked ahead of all work.

    InputError names all that are wrong. Records are checked when they are read.
    """
    shapes = bucket_shapes(config)
    source = open_source(config.data, split, shapes, collate.pictures_only)
    if isinstance(source, Reason50K):
        collate.check_texts((record.place, record.instruction) for record in source.records)
    return source


class Collator(ArrayCollator):
    """Turns examples into a Batch of NumPy arrays."""

    def __call__(self, examples: Sequence[EditExample]) -> Batch:
        """A Batch of len(examples) rows; raises as ``arrays`` does."""
        fields = self.arrays(examples)
        texts = {name: Text(*fields.pop(name)) for name in ("text", "prompt", "objects")}
        return Batch(**texts, **fields)


def ordered(
    groups: Groups, order: Order, make: Callable[[Int[np.ndarray, " B"]], T], threads: int = 2
) -> Iterator[T]:
    """Endless ``make(example numbers)`` for the steps of an order, prepared ahead by threads.

    Batches run across the ends of epochs, so a set smaller than a batch repeats within it.
    """
    numbers = numbering(groups, order)
    steps = grain.MapDataset.range(order.start_step, sys.maxsize)
    stream = steps.map(lambda step: make(numbers(step)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(stream.to_iter_dataset(options))


def batches(
    config: Config,
    split: str,
    start_step: int = 0,
    rows: Int[np.ndarray, " R"] | None = None,
) -> Iterator[Batch]:
    """The endless stream of these rows (default: all) of every global batch from ``start_step``.

    Records are read a batch at a time; ``config.data.workers`` threads make examples of them.
    """
    collate = Collator(config)
    source = open_checked(config, split, collate)
    order = Order(config.train.batch_size, config.data.seed, start_step, rows)
    pool = ThreadPoolExecutor(config.data.workers or 2)

    def make(numbers: np.ndarray) -> Batch:
        examples = take(source, numbers, lambda f, values: pool.map(f, values))
        regions = pool.map(collate.segment, examples)
        pairs = zip(examples, regions, strict=True)
        return collate([dataclasses.replace(e, regions=r) for e, r in pairs])

    return ordered(groups_of(source), order, make)
