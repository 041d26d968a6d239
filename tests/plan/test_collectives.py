import dataclasses

import pytest

from rb_jax.plan import collectives, hlo
from rb_jax.plan.collectives import Collective, Layout, replica_groups
from rb_jax.sharding.chips import CHIPS
from tests.plan import programs

BYTES = 1e9


def layout(axes, extent, slices=1, per_host=4):
    """Devices along the axes of a torus in row-major order, slice after slice."""
    places = [
        (x, y, z) for x in range(extent[0]) for y in range(extent[1]) for z in range(extent[2])
    ]
    count = len(places)
    return Layout(
        axes,
        tuple(places * slices),
        tuple(i // count for i in range(count * slices)),
        tuple(i // per_host for i in range(count * slices)),
    )


def test_collectives_of_a_compiled_program(nested_text):
    module = hlo.parse(nested_text)
    where = layout({"data": 2, "fsdp": 4}, (2, 4, 1))
    rows = {}
    for e in hlo.executed(module):
        for found in collectives.find(module, e.computation, e.instruction, 8):
            key = (found.kind, collectives.axes_of(found, where))
            rows[key] = rows.get(key, 0) + e.count * found.bytes
    weights = programs.OUTER * 2 * programs.NARROW * programs.WIDE * 4
    assert rows == {
        ("all-gather", "fsdp"): weights * 3 / 4,
        ("all-reduce", "data+fsdp"): 2 * 4 * 7 / 8,
    }


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x={1}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
        ("channel_id=1", ((0, 1, 2, 3),)),
    ],
)
def test_notations_of_groups(text, groups):
    assert replica_groups(text, 4) == groups


def whole(kind, count):
    return Collective("x", kind, "1", (tuple(range(count)),), BYTES)


def test_rates_follow_the_torus():
    chip = CHIPS["v5p"]
    share = chip.link * collectives.TPU_LINK_SHARE
    square = layout({"fsdp": 4}, (2, 2, 1))
    cube = layout({"fsdp": 64}, (4, 4, 4))
    assert collectives.seconds(whole("all-gather", 4), square, chip) == BYTES / (2 * share)
    assert collectives.seconds(whole("all-gather", 64), cube, chip) == BYTES / (6 * share)
    line = Collective("x", "all-gather", "1", ((0, 1, 2, 3),), BYTES)  # along z of the cube
    assert collectives.seconds(line, cube, chip) == BYTES / (2 * share)


def test_a_flat_slice_closes_its_rings_at_16():
    chip = CHIPS["v6e"]
    share = chip.link * collectives.TPU_LINK_SHARE
    gather = whole("all-gather", 64)
    assert collectives.seconds(gather, layout({"x": 64}, (8, 8, 1)), chip) == BYTES / (2 * share)
    pod = layout({"x": 256}, (16, 16, 1))
    assert collectives.seconds(whole("all-gather", 256), pod, chip) == BYTES / (4 * share)


def test_between_slices_the_network_is_slow():
    chip = CHIPS["v5p"]
    two = layout({"data": 2, "fsdp": 4}, (2, 2, 1), slices=2)
    pair = Collective("x", "all-reduce", "1", ((0, 4), (1, 5)), BYTES)
    assert collectives.axes_of(pair, two) == "data"
    expected = BYTES / (chip.dcn * collectives.DCN_SHARE)
    assert collectives.seconds(pair, two, chip) == pytest.approx(expected)
    sent = Collective("x", "send", "1", (tuple(range(8)),), BYTES)
    assert collectives.axes_of(sent, two) == "data"
    assert collectives.seconds(sent, two, chip) == pytest.approx(expected)


def test_gpus_share_their_hosts_network():
    chip = CHIPS["h200"]
    one = layout({"fsdp": 8}, (1, 1, 8), per_host=8)
    two = layout({"fsdp": 16}, (1, 2, 8), per_host=8)
    inside = BYTES / (chip.link * collectives.GPU_LINK_SHARE)
    assert collectives.seconds(whole("all-gather", 8), one, chip) == inside
    pair = Collective("x", "all-gather", "1", ((0, 8),), BYTES)
    assert collectives.seconds(pair, two, chip) == BYTES / (chip.dcn * collectives.DCN_SHARE)
    assert collectives.seconds(whole("all-gather", 16), two, chip) == inside


def test_permutations_pay_for_their_distance():
    chip = CHIPS["v5p"]
    cube = layout({"x": 64}, (4, 4, 4))
    near = Collective("x", "collective-permute", "1", ((0, 1),), BYTES)
    far = dataclasses.replace(near, groups=((0, 2),))
    around = dataclasses.replace(near, groups=((0, 3),))
    times = [collectives.seconds(c, cube, chip) for c in (near, far, around)]
    assert times == [times[0], 2 * times[0], times[0]]


FUSED = """HloModule m

%all-reduce-scatter.1 (input: bf16[64,10]) -> bf16[16,10] {
  %input = bf16[64,10]{1,0} parameter(0)
  %ar = bf16[64,10]{1,0} all-reduce(%input), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  ROOT %s = bf16[16,10]{1,0} dynamic-slice(%ar, %id, %id), dynamic_slice_sizes={16,10}
}

ENTRY %main () -> f32[] {
  %a = bf16[64,10]{1,0} parameter(0)
  ROOT %fusion = bf16[16,10]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_reduction_fused_with_its_slice_is_a_reduce_scatter():
    module = hlo.parse(FUSED)
    (found,) = collectives.find(module, module.entry, module.entry.root, 4)
    assert (found.kind, found.name, found.bytes) == ("reduce-scatter", "fusion", 1280 * 3 / 4)
