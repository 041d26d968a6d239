"""Which examples each step reads: a function of (seed, step), with no state that walks along.

Pools of examples are dealt out like cards, evenly rather than at random: of any run of positions,
however long, each pool gets its share but for a few, and how many a pool had before a position is
a formula. Within a pool the examples come in epochs, each a fresh permutation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from rb_jax.errors import InputError


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


@dataclasses.dataclass(frozen=True)
class Pool:
    """Examples that are drawn equally often; ``weight`` is their share beside other pools."""

    numbers: Int[np.ndarray, " N"]
    weight: Fraction = Fraction(1)


# A batch comes from one group alone, and there from all its pools.
Groups = Sequence[Sequence[Pool]]


def whole(count: int) -> Groups:
    """A single data set; InputError if there are no examples."""
    if count < 1:
        raise InputError("the data set has no examples")
    return [[Pool(np.arange(count))]]


def numbering(groups: Groups, order: Order) -> Callable[[int], Int[np.ndarray, " R"]]:
    """The function from a step to the numbers of this process's examples.

    Which group a step reads, and which pool of it each row, is dealt by weight. Groups and pools
    must not be empty, nor weights zero.
    """
    rows = range(order.batch_size) if order.rows is None else order.rows.tolist()
    seed, pools = order.seed, sum(map(len, groups))
    weights = [sum((pool.weight for pool in group), Fraction(0)) for group in groups]
    group_of = deal(weights, seed, 0)
    pool_of = [deal([p.weight for p in group], seed, 1 + g) for g, group in enumerate(groups)]
    stream = iter(range(pools))
    walks = [[epochs(pool.numbers, seed, next(stream)) for pool in group] for group in groups]

    def numbers(step: int) -> np.ndarray:
        group, rank = group_of(step)
        drawn = [pool_of[group](rank * order.batch_size + row) for row in rows]
        pool, place = np.array(drawn, np.int64).reshape(-1, 2).T
        result = np.empty(len(rows), np.int64)
        for which in np.unique(pool):
            result[pool == which] = walks[group][which](place[pool == which])
        return result

    return numbers


def deal(weights: Sequence[Fraction], seed: int, stream: int) -> Callable[[int], tuple[int, int]]:
    """The function from a position to (whose it is, how many of those were before).

    The first takes its share of all positions at equal distances, from a random one on; the
    second its share of what is left, and so on. All in whole numbers, so nothing ever drifts.
    """
    draws = _philox(seed, 0, (1, stream)).random_raw(len(weights)).tolist()
    rest, cuts = sum(weights, Fraction(0)), []
    for weight, draw in zip(weights, draws, strict=True):
        share = weight / rest
        cuts.append((share.numerator << 64, draw * share.denominator, share.denominator << 64))
        rest -= weight

    def place(position: int) -> tuple[int, int]:
        for which, (taken, offset, of) in enumerate(cuts):
            before = (position * taken + offset) // of
            if ((position + 1) * taken + offset) // of > before:
                return which, before
            position -= before
        raise AssertionError("the last takes whatever is left")

    return place


def epochs(
    members: Int[np.ndarray, " N"], seed: int, stream: int
) -> Callable[[Int[np.ndarray, " R"]], Int[np.ndarray, " R"]]:
    """The function from places in an endless walk to examples: epochs, each freshly permuted."""

    @functools.lru_cache(maxsize=2)  # a step rarely touches more than two epochs
    def permuted(epoch: int) -> np.ndarray:
        # Grain's own shuffle takes milliseconds an element for small sets. The raw stream of a
        # bit generator, unlike NumPy's permutations, never changes between NumPy's versions.
        draws = _philox(seed, epoch, (0, stream)).random_raw(len(members))
        return members[np.argsort(draws, kind="stable")]

    def at(places: np.ndarray) -> np.ndarray:
        epoch, place = np.divmod(places, len(members))
        result = np.empty(len(places), np.int64)
        for which in np.unique(epoch):
            result[epoch == which] = permuted(int(which))[place[epoch == which]]
        return result

    return at


def _philox(seed: int, epoch: int, stream: tuple[int, int]) -> np.random.Philox:
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, *stream], np.uint64))
