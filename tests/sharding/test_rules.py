"""The table of layouts: what every rule matches, and what happens to the rest."""

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from rb_jax.sharding import rules
from rb_jax.sharding.mesh import abstract_mesh, make_mesh
from tests import tiny

SHAPES = {path: tuple(x.shape) for path, x in tiny.definition(tiny.CONFIG)[1].items()}


def mesh(*sizes: int) -> AbstractMesh:
    return abstract_mesh(sizes)


def split(path: str, shape: tuple[int, ...], *sizes: int) -> tuple:
    return tuple(rules.partition(path, shape, mesh(*sizes)))


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in rules.RULES])
def test_every_rule_matches_a_parameter(pattern):
    """Only as the first match: a rule behind a wider one would never be read."""
    before = [p for p, _ in rules.RULES[: [p for p, _ in rules.RULES].index(pattern)]]
    found = [
        path for path in SHAPES
        if rules.matches(pattern, path) and not any(rules.matches(p, path) for p in before)
    ]  # fmt: skip
    assert found


def test_the_axis_of_layers_stays_whole():
    stacked = [path for path, shape in SHAPES.items() if rules.first_axis(path, shape)]
    assert len(stacked) > 100
    assert not [path for path in stacked if split(path, (8, 8, 8), 2, 2, 2, 1)[0] is not None]


def test_named_axes_and_both_at_once():
    path = "mmdit/double_blocks/img/attn/qkv/kernel"
    assert split(path, (19, 3072, 9216), 1, 4, 2, 1) == (None, "fsdp", "tensor")
    path = "mmdit/double_blocks/img/attn/proj/kernel"
    assert split(path, (19, 3072, 3072), 1, 4, 2, 1) == (None, "tensor", "fsdp")


def test_what_does_not_divide_falls_back():
    assert split("mmdit/txt_in/kernel", (4096, 3072), 1, 8, 1, 1) == ("fsdp",)
    assert split("mmdit/txt_in/kernel", (4095, 3072), 1, 8, 1, 1) == (None, "fsdp")
    assert split("mmdit/txt_in/kernel", (4095, 3071), 1, 8, 1, 1) == ()
    path = "mmdit/double_blocks/img/attn/qkv/kernel"
    assert split(path, (19, 3070, 9216), 1, 4, 1, 1) == (None, None, "fsdp")


def test_vectors_lie_on_every_device():
    assert split("mmdit/double_blocks/img/attn/qkv/bias", (16, 9216), 1, 8, 2, 1) == ()
    assert split("frce/visual/patch_branch/norm/scale", (1024,), 1, 8, 2, 1) == ()


def test_moments_lie_as_their_parameters():
    from rb_jax.train.optimizer import make_optimizer
    from rb_jax.train.state import _abstract, trainable_paths

    config = tiny.CONFIG
    paths = trainable_paths(config, tiny.definition(config)[2])
    state = _abstract(config, make_optimizer(config), paths)
    one = make_mesh(devices=jax.devices()[:1])
    layouts = rules.state_shardings(one, state)
    assert jax.tree.structure(layouts) == jax.tree.structure(state)
    assert all(x.spec == PartitionSpec() for x in jax.tree.leaves(layouts))
