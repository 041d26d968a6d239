import importlib.util
import json

import pytest

from rb_jax.errors import InputError
from rb_jax.plan import bundles, compiling
from rb_jax.plan.analysis import show
from rb_jax.plan.planner import memory_needed
from rb_jax.sharding.chips import CHIPS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="no jax-cuda13-plugin"
)
LAYERS, WIDTH, ROWS = 3, 1024, 2048


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matmuls")
    kwargs = {"layers": LAYERS, "width": WIDTH, "rows": ROWS}
    result = compiling.analyse(
        "tests.plan.programs:matmuls", "v5p:2x2x1", kwargs=kwargs, save=folder
    )
    return result, folder


@needs_libtpu
def test_work_memory_and_communication_of_a_scan(analysis):
    result, _ = analysis
    assert (result.chips, result.mesh) == (4, {"fsdp": 4})
    flops = 2 * LAYERS * ROWS * WIDTH * WIDTH
    assert result.executed_tflop == pytest.approx(flops / 1e12)
    assert result.executed_tflop_total == pytest.approx(4 * flops / 1e12)
    (row,) = result.collectives
    assert (row["kind"], row["axis"]) == ("all-gather", "fsdp")
    assert row["gib"] * compiling.GIB == pytest.approx(LAYERS * 2 * WIDTH * WIDTH * 3 / 4)
    arguments = LAYERS * 2 * WIDTH * WIDTH / 4 + 2 * ROWS * WIDTH
    assert result.argument_gib * compiling.GIB == pytest.approx(arguments)
    assert result.hbm_limit_gib > result.hbm_peak_gib > result.argument_gib


@needs_libtpu
def test_time_is_between_the_floor_and_a_few_times_it(analysis):
    result, _ = analysis
    floor = result.executed_tflop * 1e12 / CHIPS["v5p"].flops
    assert floor <= result.compute_s <= 4 * floor
    assert result.predicted_step_s == pytest.approx(result.compute_s + result.exposed_s)


@needs_libtpu
def test_the_kernels_dumped_do_the_programs_work(analysis):
    result, folder = analysis
    chip, kernels = CHIPS["v5p"], bundles.read_dump(folder)
    flops = max(kernel.flops(chip) for kernel in kernels.values())
    assert LAYERS * flops == pytest.approx(result.executed_tflop * 1e12, rel=0.05)
    assert not any("without bundles" in line for line in result.assumptions)


@needs_libtpu
def test_a_saved_folder_reads_the_same_and_prints(analysis):
    result, folder = analysis
    again = compiling.read_folder(folder, compiling.parse("v5p:2x2x1"), {})
    assert json.loads(again.to_json()) == json.loads(result.to_json())
    text = show(result, top=3)
    assert "all-gather" in text and "mesh {'fsdp': 4}" in text
    assert all(line in text for line in result.assumptions)


@needs_libtpu
def test_what_does_not_fit_says_how_much_it_needs():
    """In the compiler's own words of today, which the planner makes a row of."""
    with pytest.raises(compiling.CompileError, match="v5p:2x2x1") as refused:
        compiling.analyse("tests.plan.programs:oversized", "v5p:2x2x1")
    needed = memory_needed(refused.value.log)
    assert needed is not None and needed > 149


@needs_libtpu
@pytest.mark.parametrize(
    ("build", "flags", "message"),
    [
        ("tests.plan.programs:broken", (), "ValueError: two lines of trouble"),
        ("tests.plan.programs:absent", (), "absent"),
        ("tests.plan.programs", (), "package.module:function"),
        ("tests.plan.programs:matmuls", ("--xla_no_such_flag=1",), "xla_no_such_flag"),
    ],
)
def test_failures_of_the_child_are_one_line(build, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        compiling.analyse(build, "v5p:2x2x1", flags=flags)
    assert "\n" not in str(caught.value)


def test_an_unknown_topology_starts_no_child():
    with pytest.raises(InputError, match="near it"):
        compiling.analyse("tests.plan.programs:matmuls", "v5p:3x3x3")


@needs_cuda
def test_a_gpu_program_compiles_without_a_gpu():
    kwargs = {"layers": LAYERS, "width": WIDTH, "rows": ROWS}
    result = compiling.analyse("tests.plan.programs:matmuls", "h200:16", kwargs=kwargs)
    assert (result.chips, result.mesh) == (16, {"fsdp": 16})
    assert result.executed_tflop == pytest.approx(2 * LAYERS * ROWS * WIDTH**2 / 1e12)
    (row,) = result.collectives
    assert (row["kind"], row["axis"]) == ("all-gather", "fsdp")
    assert row["gib"] * compiling.GIB == pytest.approx(LAYERS * 2 * WIDTH**2 * 15 / 16)


@needs_cuda
def test_cudnn_attention_compiles_without_cudnn():
    result = compiling.analyse("tests.plan.programs:attention", "h100:2")
    assert result.executed_tflop == pytest.approx(7 * 2 * 4 * 256 * 256 * 64 / 1e12)


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="the plugin is installed"
)
def test_a_missing_plugin_is_named():
    with pytest.raises(InputError, match="jax-cuda13-plugin"):
        compiling.analyse("tests.plan.programs:matmuls", "h200:8")
