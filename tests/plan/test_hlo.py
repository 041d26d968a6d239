import re

import pytest

from rb_jax.plan import hlo, work
from tests.plan import programs

LOOP = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %c = s32[] constant(STEP)
  %next = s32[] add(%i, %c)
  %x = f32[4]{0:T(128)S(1)} get-tuple-element(%p), index=1
  ROOT %t = (s32[], f32[4]) tuple(%next, /*index=1*/%x)
}

%cond (q: (s32[], f32[4])) -> pred[] {
  %q = (s32[], f32[4]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(BOUND)
  ROOT %lt = pred[] compare(%j, %n), direction=DIRECTION
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0), metadata={op_name="a"}
  %zero = s32[] constant(START)
  %k = (f32[4]{0}, f32[2,3]{1,0}) custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={"note":"spans
}}, metadata={op_name="kernel(f)/x"}
  %init = (s32[], f32[4]) tuple(%zero, %a)
  %while = (s32[], f32[4]) while(%init), condition=%cond, body=%body
  ROOT %out = f32[4]{0} get-tuple-element(%while), index=1
}
"""  # noqa: E501


def loop(start, bound, step, direction):
    values = {"START": start, "BOUND": bound, "STEP": step, "DIRECTION": direction}
    text = LOOP
    for word, value in values.items():
        text = text.replace(word, str(value))
    return hlo.parse(text)


@pytest.mark.parametrize(
    ("start", "bound", "step", "direction", "trips"),
    [(0, 8, 1, "LT", 8), (2, 8, 1, "LE", 7), (0, 9, 2, "LT", 5), (7, 0, -1, "GT", 7)],
)
def test_trip_counts_are_read_from_the_counter(start, bound, step, direction, trips):
    module = loop(start, bound, step, direction)
    counts = {e.instruction.name: e.count for e in hlo.executed(module)}
    assert counts["next"] == trips
    assert counts["while"] == 1
    assert hlo.unknown_loops(module) == []


def test_a_counter_that_cannot_be_followed_is_reported():
    module = hlo.parse(LOOP.replace("constant(BOUND)", "custom-call()").replace("LT", "LT"))
    assert hlo.unknown_loops(module) == ["while"]


def test_instructions_with_line_breaks_tuples_and_layouts():
    module = loop(0, 8, 1, "LT")
    kernel = module.entry.instructions["k"]
    assert kernel.opcode == "custom-call" and kernel.operands == ("a",)
    assert kernel.op_name == "kernel(f)/x"
    assert [a.sizes for a in kernel.arrays] == [(4,), (2, 3)]
    vector = module.computations["body"].instructions["x"].arrays[0]
    assert (vector.dtype, vector.space, vector.bytes) == ("f32", 1, 16)
    assert module.entry.root.name == "out"


def test_text_without_a_program():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule m\n")


def nested_flops(module):
    return sum(
        e.count * work.instruction_flops(module, e.computation, e.instruction)
        for e in hlo.executed(module)
    )


def test_flops_of_nested_scans(nested_text):
    rows = programs.ROWS // 8
    expected = programs.OUTER * programs.INNER * 4 * rows * programs.NARROW * programs.WIDE
    assert nested_flops(hlo.parse(nested_text)) == expected


def test_nested_scans_without_the_compilers_note(nested_text):
    bare = re.sub(r'"known_trip_count":\{"n":"\d+"\},?', "", nested_text)
    assert bare != nested_text
    assert nested_flops(hlo.parse(bare)) == nested_flops(hlo.parse(nested_text))
