"""Several folders of records as one data set, drawn from by weight."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from rb_jax.data.formats.schema import EditExample
from rb_jax.data.formats.shards import Records, RecordSource
from rb_jax.data.inputs.buckets import Shape, nearest
from rb_jax.data.inputs.images import picture_size
from rb_jax.data.pipeline.order import Groups, Pool
from rb_jax.errors import InputError
from rb_jax.files import to_json, whole_file
from rb_jax.runtime.progress import progress_bar

AT_ONCE = 64  # records read together for the sizes of their pictures


class Mixture:
    """Map-style; the folders' examples are numbered one folder after the other."""

    def __init__(
        self,
        mix: Sequence[tuple[str, float]],
        split: str,
        size: int,
        shapes: tuple[Shape, ...] = (),
    ):
        """``mix`` is (folder, weight) of each; every example must have a target.

        With ``shapes`` each picture covers the nearest of them, else it is a square of ``size``.
        InputError naming a folder that is not there, broken, empty or without targets.
        """
        self._sources = [_with_targets(RecordSource(path, split, size)) for path, _ in mix]
        self._starts = np.cumsum([0, *map(len, self._sources)])
        # As it was written: 0.1 is one tenth, not the nearest binary fraction.
        self._weights = [Fraction(str(weight)) for _, weight in mix]
        self._shapes: tuple[Shape | None, ...] = shapes or (None,)
        self._buckets = np.zeros(len(self), np.int16)  # of each example
        if shapes:
            bucketed = [nearest(picture_sizes(source.records), shapes) for source in self._sources]
            self._buckets = np.concatenate(bucketed).astype(np.int16)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int, /) -> EditExample:
        """Example ``index``; InputError names a broken record."""
        return self.read([index])[0]()

    @property
    def groups(self) -> Groups:
        """A group for each shape that occurs, with a pool for each folder that has some of it."""
        groups = []
        for bucket in range(len(self._shapes)):
            group = []
            for start, end, weight in zip(
                self._starts, self._starts[1:], self._weights, strict=False
            ):
                numbers = start + np.flatnonzero(self._buckets[start:end] == bucket)
                if len(numbers):
                    share = weight * Fraction(len(numbers), int(end - start))
                    group.append(Pool(numbers, share))
            groups += [group] if group else []
        return groups

    def read(self, numbers: Sequence[int]) -> list[Callable[[], EditExample]]:
        """Reads these examples' records, each folder's together; the functions decode them."""
        folders = np.searchsorted(self._starts, numbers, side="right") - 1
        decoders: dict[int, Callable[[], EditExample]] = {}
        for folder in np.unique(folders):
            rows = np.flatnonzero(folders == folder).tolist()
            source, start = self._sources[folder], int(self._starts[folder])
            indices = [numbers[row] - start for row in rows]
            records = source.records.__getitems__(indices)
            for row, index, record in zip(rows, indices, records, strict=True):
                shape = self._shapes[self._buckets[numbers[row]]]
                decoders[row] = functools.partial(source.example, record, index, shape)
        return [decoders[row] for row in range(len(numbers))]


def _with_targets(source: RecordSource) -> RecordSource:
    manifest = source.records.manifest
    without = manifest.examples - manifest.targets
    if without:
        raise InputError(
            f"{source.records.folder}: {without} of {manifest.examples} examples "
            f"of {manifest.split} have no target picture: nothing to train on"
        )
    return source


def picture_sizes(records: Records) -> Int[np.ndarray, "N 2"]:
    """Height and width of each record's source, from the pictures' headers.

    All records are read for it once; then it is in a file beside the manifest, if that folder can
    be written. InputError names a broken record.
    """
    content = to_json(dataclasses.asdict(records.manifest)).encode()
    made_from = hashlib.sha256(content).hexdigest()[:16]
    path = records.folder / f"{records.manifest.split}.sizes-{made_from}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        stored = np.load(path)
        if stored.shape == (len(records), 2) and stored.dtype == np.int32 and stored.min() > 0:
            return stored
    sizes = np.zeros((len(records), 2), np.int32)
    with progress_bar(len(records), f"sizes of {records.manifest.split}", "picture") as bar:
        for first in range(0, len(records), AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, len(records)))
            for number, record in zip(numbers, records.__getitems__(numbers), strict=True):
                sizes[number] = picture_size(record.source, f"{record.id}: source")
            bar.update(len(numbers))
    with (
        contextlib.suppress(OSError, InputError),
        whole_file(path, sync=False) as partial,
        open(partial, "xb") as file,
    ):
        np.save(file, sizes)
    return sizes
