"""From a data set to an endless, restartable stream of batches.

The order is a pure function of (seed, step): the example *numbers* are shuffled afresh each epoch
and cut into global batches across the ends of epochs; a process takes its rows, and Grain's threads
make batches of them ahead of time. No iterator state exists, so a run that starts at step k on any
number of processes goes on with exactly the examples that an uninterrupted run would have seen.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from rb_jax.config import Config, DataConfig
from rb_jax.data.collate import ArrayCollator
from rb_jax.data.reason50k import Reason50K
from rb_jax.data.reasonworld import Example, ReasonWorld
from rb_jax.data.schema import EditExample
from rb_jax.data.shards import RecordSource
from rb_jax.errors import InputError
from rb_jax.types import Batch, Text

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


def open_source(data: DataConfig, split: str) -> Source:
    """The data set that the configuration names; InputError if it is not there or is broken."""
    if data.name == "folder":
        return Reason50K(data.path, split, data.image_size)
    if data.name == "records":
        return _with_targets(RecordSource(data.path, split, data.image_size))
    return WorldSource(data, split)


def _with_targets(source: RecordSource) -> RecordSource:
    made = source.records.manifest
    if made.targets < made.examples:
        raise InputError(
            f"{source.records.folder}: {made.examples - made.targets} of {made.examples} examples "
            f"of {made.split} have no target picture: nothing to train on"
        )
    return source


def take(source: Source, numbers: Int[np.ndarray, " B"] | range) -> Sequence[EditExample]:
    """The examples with these numbers, read together where the source can."""
    if isinstance(source, RecordSource):
        return source.__getitems__([int(number) for number in numbers])
    return [source[int(number)] for number in numbers]


class Collator(ArrayCollator):
    """Turns examples into a Batch of NumPy arrays."""

    def __call__(self, examples: Sequence[EditExample]) -> Batch:
        """A Batch of len(examples) rows; raises as ``arrays`` does."""
        fields = self.arrays(examples)
        texts = {name: Text(*fields.pop(name)) for name in ("text", "prompt", "objects")}
        return Batch(**texts, **fields)


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples a process sees at which step."""

    batch_size: int  # global, over all processes
    seed: int
    start_step: int = 0
    rows: Int[np.ndarray, " R"] | None = None  # of every global batch; None: all

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"config.train.batch_size: {self.batch_size} is not positive")
        if self.rows is not None and not all(0 <= row < self.batch_size for row in self.rows):
            raise ValueError(f"rows {self.rows} of a batch of {self.batch_size}")
        if self.start_step < 0:
            raise ValueError(f"start_step must not be negative, got {self.start_step}")


def ordered(
    count: int, order: Order, make: Callable[[Int[np.ndarray, " B"]], T], threads: int = 2
) -> Iterator[T]:
    """Endless ``make(example numbers)`` for the steps of an order, prepared ahead by threads.

    Each epoch is a fresh permutation of range(count); batches run across the ends of epochs, so a
    set smaller than a batch repeats within it. Raises InputError if there are no examples.
    """
    if count < 1:
        raise InputError("the data set has no examples")
    numbers = _numbering(count, order)
    steps = grain.MapDataset.range(order.start_step, sys.maxsize)
    made = steps.map(lambda step: make(numbers(step)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(made.to_iter_dataset(options))


def _numbering(count: int, order: Order) -> Callable[[int], Int[np.ndarray, " B"]]:
    """The function from a step to the numbers of this process's examples."""
    rows = np.arange(order.batch_size) if order.rows is None else order.rows

    @functools.lru_cache(maxsize=2)  # a step rarely touches more than two epochs
    def epoch_order(epoch: int) -> np.ndarray:
        # Grain's own shuffle takes milliseconds an element for small sets. The raw stream of a
        # bit generator, unlike NumPy's permutations, never changes between NumPy's versions.
        key = np.array([order.seed % 2**64, epoch], np.uint64)
        return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")

    def numbers(step: int) -> np.ndarray:
        epochs, places = np.divmod(step * order.batch_size + rows, count)
        result = np.empty(len(rows), np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = epoch_order(int(epoch))[places[chosen]]
        return result

    return numbers


def batches(
    config: Config,
    split: str,
    start_step: int = 0,
    rows: Int[np.ndarray, " R"] | None = None,
) -> Iterator[Batch]:
    """The endless stream of these rows (default: all) of every global batch from ``start_step``."""
    source, collate = open_source(config.data, split), Collator(config)
    order = Order(config.train.batch_size, config.data.seed, start_step, rows)

    def make(numbers: np.ndarray) -> Batch:
        return collate(take(source, numbers))

    return ordered(len(source), order, make, config.data.workers or 2)
