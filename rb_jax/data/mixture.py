"""Several folders of records as one data set, drawn from by weight."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from rb_jax.data.order import Groups, Pool
from rb_jax.data.schema import EditExample
from rb_jax.data.shards import RecordSource
from rb_jax.errors import InputError


class Mixture:
    """Map-style; the folders' examples are numbered one folder after the other."""

    def __init__(self, mix: Sequence[tuple[str, float]], split: str, size: int):
        """``mix`` is (folder, weight) of each; every example must have a target.

        InputError naming a folder that is not there, broken, empty or without targets.
        """
        self._sources = [_with_targets(RecordSource(path, split, size)) for path, _ in mix]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        # As it was written: 0.1 is one tenth, not the nearest binary fraction.
        self._weights = [Fraction(str(weight)) for _, weight in mix]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int, /) -> EditExample:
        """Example ``index``; InputError names a broken record."""
        return self.read([index])[0]()

    @property
    def groups(self) -> Groups:
        """One group with a pool for each folder."""
        ends = zip(self._starts, self._starts[1:], self._weights, strict=False)
        return [[Pool(np.arange(start, end), weight) for start, end, weight in ends]]

    def read(self, numbers: Sequence[int]) -> list[Callable[[], EditExample]]:
        """Reads these examples' records, each folder's together; the functions decode them."""
        folders = np.searchsorted(self._starts, numbers, side="right") - 1
        made: dict[int, Callable[[], EditExample]] = {}
        for folder in np.unique(folders):
            rows = np.flatnonzero(folders == folder).tolist()
            source, start = self._sources[folder], int(self._starts[folder])
            records = source.records.__getitems__([numbers[row] - start for row in rows])
            for row, record in zip(rows, records, strict=True):
                made[row] = functools.partial(source.example, record)
        return [made[row] for row in range(len(numbers))]


def _with_targets(source: RecordSource) -> RecordSource:
    made = source.records.manifest
    if made.targets < made.examples:
        raise InputError(
            f"{source.records.folder}: {made.examples - made.targets} of {made.examples} examples "
            f"of {made.split} have no target picture: nothing to train on"
        )
    return source
