import pytest

from rb_jax.plan import hlo
from rb_jax.plan.hbm import hbm_bytes

TEXT = """HloModule m

%slice (p: bf16[8,100], i: s32[]) -> bf16[1,100] {
  %p = bf16[8,100]{1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %z = s32[]{:S(6)} constant(0)
  ROOT %s = bf16[1,100]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,100}
}

%update (p.1: bf16[8,100], u: bf16[1,100], i.1: s32[]) -> bf16[8,100] {
  %p.1 = bf16[8,100]{1,0} parameter(0)
  %u = bf16[1,100]{1,0} parameter(1)
  %i.1 = s32[]{:S(6)} parameter(2)
  %z.1 = s32[]{:S(6)} constant(0)
  ROOT %d = bf16[8,100]{1,0} dynamic-update-slice(%p.1, %u, %i.1, %z.1)
}

ENTRY %main () -> f32[] {
  %a = bf16[8,100]{1,0} parameter(0)
  %n = s32[]{:S(6)} parameter(1)
  %near = bf16[8,100]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %row = bf16[1,100]{1,0} fusion(%a, %n), kind=kLoop, calls=%slice
  %stored = bf16[8,100]{1,0} fusion(%a, %row, %n), kind=kLoop, calls=%update
  %sum = bf16[8,100]{1,0} add(%a, %near)
  %start = (bf16[8,100]{1,0}, bf16[8,100]{1,0}) copy-start(%a)
  ROOT %view = bf16[800]{0} bitcast(%sum)
}
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("row", 200 + 200),  # the slice read and written
        ("stored", 200 + 200),  # the update read, and written in place
        ("sum", 1600 + 1600),  # what is in the chip's own memory is free
        ("view", 0),
        ("start", 0),
    ],
)
def test_bytes(name, expected):
    module = hlo.parse(TEXT)
    assert hbm_bytes(module, module.entry, module.entry.instructions[name]) == expected
