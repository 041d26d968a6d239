"""Dealing examples out: even, endless, and from any position without walking there."""

from fractions import Fraction

import numpy as np
import pytest

from rb_jax.data.pipeline.order import Order, Pool, deal, epochs, numbering

WEIGHTS = [("3", "1"), ("0.7", "0.2", "0.1"), ("1",), ("1e-3", "2", "0.5", "0.25"), ("1",) * 9]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_run_of_positions_is_dealt_evenly(weights):
    shares = [Fraction(w) for w in weights]
    place = deal(shares, seed=3, stream=1)
    dealt = [place(n) for n in range(2000)]
    counts = np.zeros((len(shares), 2001), int)
    for position, (which, before) in enumerate(dealt):
        assert before == counts[which, position]
        counts[:, position + 1] = counts[:, position]
        counts[which, position + 1] += 1
    exact = np.array([float(s / sum(shares)) for s in shares])[:, None] * np.arange(2001)
    assert np.abs(counts - exact).max() < 1 + sum(1 / n for n in range(1, len(shares) + 1))


def test_dealing_far_away_is_exact():
    shares, far = [Fraction("0.7"), Fraction("0.3")], 10**15
    place = deal(shares, seed=0, stream=0)
    dealt = [place(n) for n in range(far, far + 1000)]
    for which, share in enumerate(shares):
        ranks = [before for owner, before in dealt if owner == which]
        assert ranks == list(range(ranks[0], ranks[0] + len(ranks)))
        assert abs(ranks[0] - share * far) < 2 and abs(len(ranks) - 1000 * share) < 2


def test_seeds_and_streams_deal_differently():
    shares = [Fraction(w) for w in ("0.531", "0.3", "0.17")]
    deals = {tuple(deal(shares, s, t)(n)[0] for n in range(99)) for s in (0, 1) for t in (0, 1)}
    assert len(deals) == 4


def test_every_walk_has_its_own_permutations():
    members = np.array([10, 30, 40, 70, 90, 20, 50])
    walks = [epochs(members, 5, stream)(np.arange(21)) for stream in (0, 1)]
    for walk in walks:
        assert all(sorted(walk[n : n + 7]) == sorted(members) for n in (0, 7, 14))
    assert not np.array_equal(walks[0], walks[1])
    assert np.array_equal(epochs(members, 5, 1)(np.array([17, 3])), walks[1][[17, 3]])


@pytest.fixture
def groups():
    """Two groups; the second has two pools."""
    return [
        [Pool(np.arange(0, 5), Fraction(1))],
        [Pool(np.arange(5, 16), Fraction(3)), Pool(np.arange(16, 19), Fraction(1))],
    ]


def test_a_batch_is_of_one_group(groups):
    numbers = numbering(groups, Order(6, seed=1))
    batches = np.stack([numbers(step) for step in range(55 * 4)])
    first = batches < 5
    assert (first.all(1) | ~first.any(1)).all()
    assert first.all(1).sum() == 44  # a fifth
    counts = np.bincount(batches.ravel(), minlength=19)
    assert np.ptp(counts[:5]) <= 1 and np.ptp(counts[5:16]) <= 1 and np.ptp(counts[16:]) <= 1
    assert abs(counts[5:16].sum() - 3 * counts[16:].sum()) < 8


def test_any_step_on_any_processes_is_the_same(groups):
    whole = numbering(groups, Order(6, seed=1))
    for rows in ([0, 1, 2], [3, 4, 5], [5]):
        part = numbering(groups, Order(6, 1, start_step=9, rows=np.array(rows)))
        for step in (9, 1000, 3):
            assert np.array_equal(part(step), whole(step)[rows])


def test_the_mixed_order_itself_is_pinned(groups):
    numbers = numbering(groups, Order(4, seed=3))
    pinned = [[8, 6, 15, 16], [14, 13, 11, 18], [1, 2, 4, 3], [12, 9, 7, 17], [5, 10, 5, 18]]
    assert [numbers(step).tolist() for step in range(5)] == pinned
