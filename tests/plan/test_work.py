import itertools

import pytest

from rb_jax.plan import hlo, work


def flops(lines, costs=None):
    """FLOPs of the last of the lines of a program."""
    body = "".join(f"  {line}\n" for line in lines)
    module = hlo.parse(f"HloModule m\n\nENTRY %main () -> f32[] {{\n{body}}}\n")
    last = list(module.entry.instructions.values())[-1]
    return work.instruction_flops(module, module.entry, last, costs)


def test_batched_dot():
    lines = [
        "%a = bf16[3,5,7]{2,1,0} parameter(0)",
        "%b = bf16[3,7,11]{2,1,0} parameter(1)",
        "ROOT %d = bf16[3,5,11]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
        "rhs_batch_dims={0}, rhs_contracting_dims={1}",
    ]
    assert flops(lines) == 2 * 3 * 5 * 7 * 11


def test_matrix_product_that_tpus_write_as_a_convolution():
    lines = [
        "%a = bf16[2,48,30]{2,1,0} parameter(0)",
        "%b = bf16[30,92,1]{1,0,2} parameter(1)",
        "ROOT %c = bf16[2,48,92]{2,1,0} convolution(%a, %b), window={size=1}, "
        "dim_labels=0bf_io0->0bf",
    ]
    assert flops(lines) == 2 * (2 * 48) * 30 * 92


def test_batch_in_a_dilated_window():
    """Of 24 x 24 pairs of batch entries, the window's stride and holes leave the 24 that match."""
    lines = [
        "%a = bf16[24,64,128]{2,1,0} parameter(0)",
        "%b = bf16[24,128,32]{2,1,0} parameter(1)",
        "ROOT %c = bf16[24,64,32]{2,1,0} convolution(%a, %b), "
        "window={size=24 stride=23 pad=0_0 lhs_dilate=24}, dim_labels=0bf_0io->0bf",
    ]
    assert flops(lines) == 2 * 24 * 64 * 128 * 32


@pytest.mark.parametrize(
    ("stride", "low", "holes", "spread"),
    list(itertools.product((1, 2), (0, 2), (1, 3), (1, 2))),
)
def test_convolution_counts_what_a_loop_counts(stride, low, holes, spread):
    size, kernel = 7, 4
    extent, reach = (size - 1) * holes + 1, (kernel - 1) * spread + 1
    out = (extent + 2 * low - reach) // stride + 1
    if out < 1:
        return
    touched = 0
    for o, k in itertools.product(range(out), range(kernel)):
        place = o * stride + k * spread - low
        touched += 0 <= place < extent and place % holes == 0
    window = (
        f"window={{size={kernel} stride={stride} pad={low}_{low} "
        f"lhs_dilate={holes} rhs_dilate={spread}}}"
    )
    lines = [
        f"%a = f32[2,{size},6]{{2,1,0}} parameter(0)",
        f"%b = f32[{kernel},6,10]{{2,1,0}} parameter(1)",
        f"ROOT %c = f32[2,{out},10]{{2,1,0}} convolution(%a, %b), "
        f"{window}, dim_labels=b0f_0io->b0f",
    ]
    assert flops(lines) == 2 * touched * 2 * 6 * 10


SPLASH = [
    "%m = s8[1,9,9]{2,1,0} parameter(0)",
    "%q = bf16[2,24,4608,128]{3,2,1,0} parameter(1)",
    "%k = bf16[2,24,1536,128]{3,2,1,0} parameter(2)",
    "ROOT %splash_mha_NAME.3 = (f32[2,512,128]{2,1,0}, bf16[2,24,4608,128]{3,2,1,0}) "
    'custom-call(%m, %q, %k, %k), custom_call_target="tpu_custom_call"',
]


@pytest.mark.parametrize(("name", "products"), [("fwd_x", 2), ("dq_x", 3), ("dkv_x", 4)])
def test_attention_kernels_from_their_shapes(name, products):
    lines = [line.replace("NAME", name) for line in SPLASH]
    assert flops(lines) == products * 2 * 2 * 24 * 4608 * 1536 * 128


def test_a_stated_cost_goes_before_shapes():
    assert flops(SPLASH, {"splash_mha": 7e9}) == 7e9


def test_cudnn_attention():
    lines = [
        "%q = bf16[1,512,24,128]{3,2,1,0} parameter(0)",
        "%k = bf16[1,640,24,128]{3,2,1,0} parameter(1)",
        "ROOT %a = (bf16[1,24,512,128]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), "
        'custom_call_target="__cudnn$fmhaSoftmax"',
    ]
    assert flops(lines) == 2 * 2 * 24 * 512 * 640 * 128
    backward = [line.replace("fmhaSoftmax", "fmhaSoftmaxBackward") for line in lines]
    assert flops(backward) == 5 * 2 * 24 * 512 * 640 * 128


def test_kernels_of_unknown_cost_are_named():
    text = (
        "HloModule m\n\nENTRY %main () -> f32[] {\n"
        '  ROOT %mystery = f32[] custom-call(), custom_call_target="tpu_custom_call"\n}\n'
    )
    assert work.unpriced_kernels(hlo.parse(text)) == ["mystery"]
    assert work.unpriced_kernels(hlo.parse(text), {"mystery": 1.0}) == []
