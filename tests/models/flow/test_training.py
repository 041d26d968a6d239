"""What the flow model learns from: each example's own draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rb_jax.config import FlowConfig
from rb_jax.models.flow.training import keep, row_keys, training_loss
from rb_jax.models.types import Conditioning

FLOW = FlowConfig(drop_condition=0.3, drop_source=0.1, guidance_range=(2.0, 7.0))
COUNT = 20_000


def drawn(flow: FlowConfig, count: int, rows=None, seed: int = 0):
    """What the flow model is given for pictures of ones, and the losses of a guess of zero."""
    seen = []

    def velocity(z_t, t, guidance, conditioning):
        seen.extend((z_t, t, guidance, conditioning))
        return jnp.zeros_like(z_t)

    ones = Conditioning(jnp.ones((count, 2, 3)), jnp.ones((count, 4)), jnp.ones((count, 2, 2, 1)))
    x0, key = jnp.ones((count, 3, 2, 5)), jax.random.key(seed)
    losses, t = training_loss(velocity, x0, ones, key, rows, flow, 16)
    np.testing.assert_array_equal(t, seen[1])
    return losses, *seen


@pytest.fixture(scope="module")
def many():
    return drawn(FLOW, COUNT)


def test_loss_is_the_error_of_the_velocity(many):
    losses, z_t, t, _, _ = many
    t = np.asarray(t)[:, None, None, None]
    noise = (np.asarray(z_t) - (1 - t)) / t
    wide = np.asarray(t).ravel() > 0.2  # where the noise can be told from z_t
    expected = ((noise - 1) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(losses[wide], expected[wide], rtol=1e-3)
    assert noise[wide].mean() == pytest.approx(0, abs=0.01)
    assert noise[wide].std() == pytest.approx(1, abs=0.01)


def test_guidance_is_uniform_in_its_range(many):
    guidance = np.asarray(many[3])
    assert guidance.min() >= 2 and guidance.max() <= 7
    np.testing.assert_allclose(np.quantile(guidance, [0.25, 0.5, 0.75]), [3.25, 4.5, 5.75], 0.02)


def test_whole_conditions_are_left_out_at_the_given_rates(many):
    made = many[4]
    kept = {f: np.asarray(getattr(made, f)).reshape(COUNT, -1) for f in ("tokens", "vector")}
    source = np.asarray(made.source_latent).reshape(COUNT, -1)
    for values in (*kept.values(), source):
        assert (values == values[:, :1]).all()  # all of an example or nothing of it
    np.testing.assert_array_equal(kept["tokens"][:, 0], kept["vector"][:, 0])
    assert 1 - kept["tokens"].mean() == pytest.approx(0.3, abs=0.01)
    assert 1 - source.mean() == pytest.approx(0.1, abs=0.01)
    both = 1 - np.maximum(kept["tokens"][:, 0], source[:, 0])
    assert both.mean() == pytest.approx(0.03, abs=0.005)  # independently


def test_draws_of_a_row_do_not_depend_on_each_other(many):
    _, z_t, t, guidance, conditioning = many
    kept = [conditioning.vector[:, 0], conditioning.source_latent[:, 0, 0, 0]]
    columns = np.stack([t, guidance, *kept, z_t[:, 0, 0, 0] / t + 1 - 1 / t])
    off_diagonal = np.corrcoef(columns) - np.eye(5)
    assert np.abs(off_diagonal).max() < 0.03


def test_a_part_of_a_batch_draws_what_the_whole_draws():
    whole = drawn(FLOW, 7)
    rows = jnp.array([5, 0, 3])
    part = drawn(FLOW, 3, rows)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[rows], b), whole, part)
    other = drawn(FLOW, 3, jnp.array([1, 2, 4]))
    assert not np.any(np.asarray(other[1]) == np.asarray(part[1]))
    assert not np.any(np.asarray(drawn(FLOW, 7, seed=1)[1]) == np.asarray(whole[1]))


def test_rows_are_numbered_from_zero():
    key = jax.random.key(3)
    expected = [jax.random.key_data(jax.random.fold_in(key, i)) for i in range(4)]
    np.testing.assert_array_equal(jax.random.key_data(row_keys(key, 4)), expected)


def test_nothing_is_left_out_where_everything_is_kept():
    given = Conditioning(jnp.ones((3, 2, 5)), jnp.ones((3, 4)), jnp.ones((3, 2, 2, 1)))
    same = keep(given, jnp.ones((3, 2), bool))
    jax.tree.map(np.testing.assert_array_equal, same, given)
    out = keep(given, jnp.array([[True, False], [False, True], [False, False]]))
    assert [float(x.sum()) for x in (out.tokens, out.vector, out.source_latent)] == [10, 4, 4]
