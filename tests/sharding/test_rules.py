"""The table of layouts: what every rule matches, and what happens to the rest."""

import functools
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from rb_jax.sharding import rules
from rb_jax.sharding.mesh import abstract_mesh, make_mesh
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import TrainState, abstract_state
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
        path
        for path in SHAPES
        if rules.matches(pattern, path) and not any(rules.matches(p, path) for p in before)
    ]
    assert found


def test_the_axis_of_layers_stays_whole():
    stacked = [path for path, shape in SHAPES.items() if rules.first_axis(path, shape)]
    assert len(stacked) > 100
    first = {path: split(path, (8, 8, 8), 2, 2, 2, 1)[:1] for path in stacked}
    assert set(first.values()) == {(), (None,)}


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


@functools.cache
def abstract() -> TrainState:
    config = tiny.config(train__frozen=("autoencoder/**", "mllm/language_model/**/kernel"))
    return abstract_state(config, make_optimizer(config))


def test_lora_is_split_by_heads_alone():
    path = "mllm/language_model/layers/self_attn"
    assert split(f"{path}/q_proj/lora_a", (32, 4096, 8), 1, 8, 2, 1) == ()
    assert split(f"{path}/q_proj/lora_b", (32, 8, 4096), 1, 8, 2, 1) == (None, None, "tensor")
    assert split(f"{path}/o_proj/lora_a", (32, 4096, 8), 1, 8, 2, 1) == (None, "tensor")
    assert split(f"{path}/o_proj/lora_b", (32, 8, 4096), 1, 8, 2, 1) == ()


def test_moments_lie_as_their_parameters():
    state = abstract()
    one = make_mesh(devices=jax.devices()[:1])
    layouts = rules.state_shardings(one, state)
    assert jax.tree.structure(layouts) == jax.tree.structure(state)
    assert all(x.spec == PartitionSpec() for x in jax.tree.leaves(layouts))


def test_whole_frozen_weights_are_split_by_heads_alone():
    there = mesh(1, 4, 2, 1)
    sharded, whole = (
        rules.state_shardings(there, abstract(), f) for f in ("sharded", "replicated")
    )
    path = "mllm/language_model/layers/self_attn/q_proj/kernel"
    assert tuple(sharded.frozen[path].spec) == (None, "fsdp", "tensor")
    assert tuple(whole.frozen[path].spec) == (None, None, "tensor")
    assert not [p for p, x in whole.frozen.items() if "fsdp" in x.spec]
    for name in ("params", "opt_state", "ema"):
        assert getattr(sharded, name) == getattr(whole, name)


def test_modulations_that_never_train_lie_whole():
    path, shape, there = (
        "mmdit/double_blocks/img/mod/lin/kernel",
        (19, 3072, 18432),
        mesh(1, 4, 2, 1),
    )
    assert tuple(rules.partition(path, shape, there)) == (None, None, ("fsdp", "tensor"))
    assert tuple(rules.partition(path, shape, there, unsharded=True)) == (None, None, "tensor")


@pytest.mark.parametrize(
    ("room", "expected"), [(1.001, "replicated"), (0.999, "sharded"), (0.0, "sharded")]
)
def test_auto_keeps_frozen_weights_whole_where_the_state_leaves_room(monkeypatch, room, expected):
    """``room``: of the memory that the state with whole frozen weights takes."""
    there, state = mesh(1, 4, 2, 1), abstract()
    both: Any = ((rules.state_shardings, state), (rules.param_shardings, state.frozen))
    for layouts, tree in both:
        needed = rules.bytes_per_device(tree, layouts(there, tree, "replicated"))
        assert needed > rules.bytes_per_device(tree, layouts(there, tree, "sharded"))
        monkeypatch.setattr(rules, "_room", lambda mesh, bytes=room * needed: bytes)
        assert layouts(there, tree, "auto") == layouts(there, tree, expected)


def test_gpus_and_unknown_devices_have_no_room_for_whole_weights():
    def room(kind: str, platform: str) -> float:
        device = jax.sharding.AbstractDevice(kind, None, platform)
        return rules._room(abstract_mesh((1, 4, 2, 1), device))

    assert room("TPU v5p", "tpu") == pytest.approx(0.6 * 95 * 2**30)
    assert room("TPU7x", "tpu") == pytest.approx(0.6 * 96 * 2**30)
    assert room("NVIDIA H200", "gpu") == room("cpu", "cpu") == rules._room(mesh(1, 4, 2, 1)) == 0


def test_bytes_per_device():
    there = mesh(1, 4, 2, 1)
    given = {"mmdit/double_blocks/img/attn/qkv/kernel": jax.ShapeDtypeStruct((3, 8, 6), "bfloat16")}
    assert rules.bytes_per_device(given, rules.param_shardings(there, given)) == 3 * 8 * 6 * 2 // 8
    assert rules.bytes_per_device(given, rules.param_shardings(there, given, "replicated")) == 144
