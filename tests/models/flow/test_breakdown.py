"""Losses apart: every example in its own group, and the groups exact over batches."""

import jax.numpy as jnp
import numpy as np

from rb_jax.data.formats.schema import CATEGORIES, category_number
from rb_jax.models.flow.breakdown import loss_by_category, loss_by_time
from rb_jax.train.metrics import Window


def test_by_time_counts_each_example_once():
    losses, t = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), jnp.array([0.0, 0.3, 0.26, 0.99, 1.0])
    made = {name: tuple(map(float, pair)) for name, pair in loss_by_time(losses, t).items()}
    assert made == {
        "loss_flow/t_0.00_0.25": (1.0, 1.0),
        "loss_flow/t_0.25_0.50": (6.0, 2.0),
        "loss_flow/t_0.50_0.75": (0.0, 0.0),
        "loss_flow/t_0.75_1.00": (24.0, 2.0),
    }


def test_by_category_leaves_out_examples_of_none():
    numbers = [category_number(name) for name in ("story", "", "physical", "story", "weather")]
    losses = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0])
    made = loss_by_category(losses, jnp.array(numbers))
    assert list(made) == [f"loss_flow/{name}" for name in CATEGORIES]
    np.testing.assert_array_equal(made["loss_flow/story"], [9.0, 2.0])
    np.testing.assert_array_equal(made["loss_flow/physical"], [4.0, 1.0])
    np.testing.assert_array_equal(made["loss_flow/causal"], [0.0, 0.0])


def test_a_window_means_over_examples_not_over_batches():
    window = Window()
    for pair in ([3.0, 1.0], [0.0, 0.0], [1.0, 3.0], [float("nan"), 2.0]):
        window.add({"loss_flow/story": np.array(pair), "loss_flow/causal": np.zeros(2)})
    assert window.means() == {"loss_flow/story": 1.0, "loss_flow/causal": None}
