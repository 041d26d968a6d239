import pytest

from rb_jax.plan import collectives, hlo, timing
from rb_jax.plan.bundles import Kernel
from rb_jax.plan.collectives import Layout
from rb_jax.sharding.chips import CHIPS

CHIP = CHIPS["v5p"]
SQUARE = Layout({"fsdp": 4}, ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)), (0,) * 4, (0,) * 4)

# A product beside a gather of 4 x the shard, and one more where nothing is beside it.
TEXT = """HloModule m, is_scheduled=true

%one (p: bf16[SIDE,SIDE], q: bf16[SIDE,SIDE]) -> bf16[SIDE,SIDE] {
  %p = bf16[SIDE,SIDE]{1,0} parameter(0)
  %q = bf16[SIDE,SIDE]{1,0} parameter(1)
  ROOT %c = bf16[SIDE,SIDE]{1,0} convolution(%p, %q), dim_labels=bf_io->bf
}

ENTRY %main () -> bf16[SIDE,SIDE] {
  %a = bf16[SIDE,SIDE]{1,0} parameter(0)
  %w = bf16[1024,4096]{1,0} parameter(1)
  %start = (bf16[1024,4096]{1,0}, bf16[4096,4096]{1,0}) all-gather-start(%w), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %fusion.1 = bf16[SIDE,SIDE]{1,0} fusion(%a, %a), kind=kOutput, calls=%one
  %done = bf16[4096,4096]{1,0} all-gather-done(%start)
  %sync = bf16[4096,4096]{1,0} all-gather(%w), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %fusion.2 = bf16[SIDE,SIDE]{1,0} fusion(%fusion.1, %a), kind=kOutput, calls=%one
}
"""  # noqa: E501
TRANSFER = 3 * 2 * 1024 * 4096 / (2 * CHIP.link * collectives.TPU_LINK_SHARE)


def run(side, kernels=None):
    module = hlo.parse(TEXT.replace("SIDE", str(side)))
    return timing.time_program(module, timing.Machine(CHIP, SQUARE, kernels or {}))


def test_a_short_product_hides_part_of_a_transfer():
    result = run(2048)
    product = 2 * 2048**3 / CHIP.flops
    assert product < TRANSFER
    (row,) = result.rows
    assert (row.kind, row.axis, row.runs) == ("all-gather", "fsdp", 2)
    assert row.seconds == pytest.approx(2 * TRANSFER)
    assert row.exposed_seconds == pytest.approx(2 * TRANSFER - product)
    assert result.seconds == pytest.approx(product + 2 * TRANSFER)
    assert row.exposed_bytes / row.bytes == pytest.approx(1 - product / TRANSFER / 2)


def test_a_long_product_hides_all_of_it():
    result = run(8192)
    product = 2 * 8192**3 / CHIP.flops
    assert product > TRANSFER
    assert result.exposed_seconds == pytest.approx(TRANSFER)
    assert result.seconds == pytest.approx(2 * product + TRANSFER)
    assert result.flops == 2 * 2 * 8192**3


def test_bundles_count_where_they_are_longer_and_for_equal_instructions():
    cycles = 1e9
    result = run(2048, {"fusion.1": Kernel("fusion.1", cycles, 0.0, 0)})
    assert [op.bound for op in result.ops] == ["bundles", "bundles"]
    assert result.compute_seconds == pytest.approx(2 * cycles / CHIP.clock)
    assert result.estimated == 0
    assert run(2048, {"other": Kernel("other", cycles, 0.0, 0)}).estimated == 1


def test_never_faster_than_the_peak():
    kernels = {"fusion.1": Kernel("fusion.1", 1.0, 1.0, 0)}
    for result in (run(2048), run(2048, kernels)):
        assert result.compute_seconds >= result.flops / CHIP.flops


CHAIN = """HloModule m, is_scheduled=true

%step (w: bf16[1024,4096], p: bf16[4096,4096]) -> bf16[4096,4096] {
  %w = bf16[1024,4096]{1,0} parameter(0)
  %p = bf16[4096,4096]{1,0} parameter(1)
  %ag = bf16[4096,4096]{1,0} all-gather(%w), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c = bf16[4096,4096]{1,0} convolution(%p, %p), dim_labels=bf_io->bf
}

ENTRY %main () -> bf16[4096,4096] {
  %a = bf16[1024,4096]{1,0} parameter(0)
  %b = bf16[4096,4096]{1,0} parameter(1)
  %fusion.1 = bf16[4096,4096]{1,0} fusion(%a, %b), kind=kOutput, calls=%step
  ROOT %fusion.2 = bf16[4096,4096]{1,0} fusion(%a, %fusion.1), kind=kOutput, calls=%step
}
"""  # noqa: E501


def test_continuation_fusions_are_one_transfer_beside_their_work():
    result = timing.time_program(hlo.parse(CHAIN), timing.Machine(CHIP, SQUARE, {}))
    (row,) = result.rows
    product = 2 * 4096**3 / CHIP.flops
    assert product > TRANSFER / 2
    assert (row.runs, row.seconds) == (1, pytest.approx(TRANSFER))
    assert result.seconds == pytest.approx(max(2 * product, TRANSFER))


def test_gpus_run_below_their_peak():
    module = hlo.parse(TEXT.replace("SIDE", "8192"))
    chip = CHIPS["h200"]
    result = timing.time_program(module, timing.Machine(chip, SQUARE, {}))
    floor = result.flops / chip.flops
    assert result.compute_seconds > floor / timing.GPU_MATMUL
    assert any("70%" in line for line in timing.assumptions(chip, False))
