"""The planner on small models: checks without compiling, rows, page, search, command line."""

import dataclasses
import importlib.util
import json
import math
from html import unescape
from typing import Any

import jax
import pytest

from rb_jax import cli
from rb_jax.config import Config, RematConfig, from_config_dict, paper_model, to_config_dict
from rb_jax.errors import InputError
from rb_jax.plan import page, planner, program, search
from rb_jax.plan.analysis import Analysis
from rb_jax.plan.compiling import CompileError
from rb_jax.sharding.mesh import abstract_mesh
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import abstract_state

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
SMALL = {
    "model.dtype": "bfloat16",
    "model.mmdit.width": 384,
    "model.mmdit.heads": 3,
    "model.mmdit.axes_dim": (16, 56, 56),
    "model.mmdit.context_width": 256,
    "model.mmdit.source": "none",
    "model.mmdit.double_blocks": 2,
    "model.mmdit.single_blocks": 3,
    "data.name": "synthetic",
    "data.image_size": 256,
    "train.task": "mmdit",
    "train.batch_size": 8,
    "train.frozen": (),
    "train.ema_decay": 0.0,
    "train.eval_examples": 0,
    "mesh.data": -1,
    "mesh.fsdp": -1,
    "remat.single_blocks": "attention,mlp",
}


def config(**changes) -> Config:
    values: Any = to_config_dict(Config())
    values.update_from_flattened_dict(SMALL)
    values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return from_config_dict(values)


def paper(**changes) -> Config:
    values: Any = to_config_dict(Config())
    values.model.update_from_flattened_dict(paper_model())
    values.data.update(name="synthetic", inputs="features", image_size=512)
    values.train.update(batch_size=16, frozen=(), ema_decay=0.0, eval_examples=0)
    values.mesh.update(data=-1, fsdp=-1)
    values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return from_config_dict(values)


# ---- checks that need no compiler --------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({}, "v5p:3x3x3", "not known; near it: v5p:"),
        ({"train__batch_size": 6}, "v5p:2x2x1", "use 4 or 8"),
        ({"mesh__fsdp": 3}, "v5p:2x2x1", "multiply to 2 or 4"),
        ({"mesh__fsdp": 1, "mesh__tensor": 2}, "v5p:2x2x1", "mmdit's 3 heads; use 1 or 3"),
        ({}, "h200:7", "near it: h200:"),
    ],
)
def test_bad_requests_name_valid_ones_before_anything_compiles(changes, name, message):
    with pytest.raises(InputError, match=message):
        planner.target(config(**changes), name)


def test_batch_per_chip_and_slices_fill_the_mesh():
    made = planner.target(config(), "v5p:2x2x2", slices=3, batch_per_chip=2)
    assert dict(made.mesh.shape) == {"data": 3, "fsdp": 8, "tensor": 1, "context": 1}
    assert made.config.train.batch_size == 48
    wide = planner.target(config(), "v5p:8x8x16", batch_per_chip=1)
    assert dict(wide.mesh.shape) == {"data": 16, "fsdp": 64, "tensor": 1, "context": 1}


def test_state_bytes_are_those_of_the_real_layout():
    made = config(mesh__fsdp=4, mesh__data=2)
    mesh = abstract_mesh((2, 4, 1, 1))
    state = abstract_state(made, make_optimizer(made), mesh)
    expected = sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(state)
    )
    assert planner.state_bytes(made, mesh) == expected


def test_a_state_that_cannot_fit_says_by_how_much_without_compiling():
    row = planner.compile_row(planner.target(paper(), "v5e:2x2"))
    assert not row.fits and row.predicted_step_s is None
    assert row.note.endswith("GiB over a device's memory")
    over = float(row.note.split("alone is ")[1].split(" GiB")[0])
    assert over == pytest.approx(row.state_gib - 16, abs=0.1)
    assert row.params_b == pytest.approx(19.08, abs=0.1)


def test_frozen_weights_are_whole_where_there_is_room(monkeypatch):
    """LLaVA's 13.1 GiB fit beside a 64th of the rest on a chip of 32 GiB, not on one of 16."""
    made = paper(train__frozen=("mllm/language_model/**/kernel",))
    big, small = (planner.target(made, name, batch_per_chip=1) for name in ("v6e:8x8", "v5e:16x16"))
    assert planner.frozen_layout(big) == "replicated" and planner.frozen_layout(small) == "sharded"
    assert big.saving == pytest.approx(63 / 64 * 6.6e9 * 2, rel=0.05)
    split = planner.sharded(big)
    assert split.saving == 0 and split.state_bytes == small.state_bytes
    assert split.config.mesh.frozen == "sharded"

    def fails(*args, **kwargs):
        raise CompileError("compiling: RESOURCE_EXHAUSTED: Used 33.0G of 31.25G hbm. Exceeded")

    monkeypatch.setattr(planner, "analyse", fails)
    note = f"; config.mesh.frozen=sharded saves {big.saving / 2**30:.1f} GiB"
    row = planner.compile_row(big)
    assert row.note.endswith(note) and row.frozen == "replicated"
    row = planner.compile_row(small)
    assert row.note.endswith("memory") and row.frozen == "sharded"


def test_a_sampler_never_changes_any_weight():
    made = planner.target(config(), "v5p:2x2x1")
    assert planner.frozen_layout(made) == "sharded" and made.saving == 0
    assert planner.frozen_layout(made, "sample") == "replicated"
    assert planner.frozen_layout(planner.sharded(made), "sample") == "sharded"


def test_search_tries_whole_and_split_frozen_weights():
    made = config(train__frozen=("mmdit/single_blocks/**",))
    found = {
        planner.frozen_layout(c.target): c
        for c in search.candidates(made, "v5p:2x2x1")
        if c.target.mesh.shape["fsdp"] == 4 and c.target.config.train.batch_size == 16
    }
    assert found["replicated"].gib > found["sharded"].gib
    assert found["replicated"].seconds <= found["sharded"].seconds


def test_model_flops_count_what_trains_and_what_a_gradient_passes():
    made = config()
    step = program.model_flops(made)
    forward = program.model_flops(made, "sample") / made.flow.steps
    assert step == pytest.approx(3 * forward, rel=0.03)
    # A frozen product costs two, of which the first blocks' inputs need none.
    frozen = config(train__trainable=("mmdit/final_layer/**",))
    assert program.model_flops(frozen) == pytest.approx(forward, rel=0.03)
    adapters = config(train__trainable=("mmdit/**/lora_*",), model__mmdit__lora_rank=4)
    # Attention has no weights of its own: its gradient costs two products for each of the forward.
    assert 2 * forward < program.model_flops(adapters) < 2.5 * forward
    total, trained = program.parameters(made)
    assert total == trained > 10e6


# ---- rows ----------------------------------------------------------------------------------------


def analysis(**changes) -> Analysis:
    values: dict[str, Any] = dict(
        topology="v5p:2x2x1",
        slices=1,
        chips=4,
        mesh={"fsdp": 4},
        hbm_peak_gib=11.0,
        hbm_limit_gib=95.0,
        argument_gib=1.0,
        output_gib=1.0,
        alias_gib=1.0,
        temp_gib=1.0,
        executed_tflop=2.0,
        executed_tflop_total=8.0,
        hbm_traffic_gib=3.0,
        collectives=[
            dict(
                kind="all-gather",
                axis="fsdp",
                runs=2,
                gib=3.0,
                exposed_gib=0.5,
                seconds=1.0,
                exposed_seconds=0.1,
            ),
            dict(
                kind="all-reduce",
                axis="data",
                runs=2,
                gib=1.0,
                exposed_gib=0.25,
                seconds=1.0,
                exposed_seconds=0.1,
            ),
        ],
        ops=[],
        predicted_step_s=0.5,
        compute_s=0.4,
        exposed_s=0.1,
        lower_s=1.0,
        compile_s=2.0,
        rss_gib=1.0,
        assumptions=["links at 90%"],
    )
    return Analysis(**(values | changes))


def rows(monkeypatch, **changes):
    monkeypatch.setattr(planner, "analyse", lambda *args, **kwargs: analysis(**changes))
    return planner.plan(config(), ["v5p:2x2x1", "v5p:2x2x2"], batch_per_chip=2)


def test_json_has_the_documented_keys(monkeypatch):
    row = json.loads(planner.to_json(rows(monkeypatch)))[0]
    assert row["collective_gib"] == 4.0 and row["exposed_collective_gib"] == 0.75
    assert row["predicted_step_s"] == 0.5 and row["compile_s"] == 3.0 and row["fits"] is True
    flops = row["model_tflop"] * 1e12
    assert row["predicted_mfu"] == pytest.approx(flops / (459e12 * 0.5))
    keys = {"topology", "chips", "params_b", "hbm_peak_gib", "hbm_limit_gib", "executed_tflop"}
    assert keys <= set(row)


REFUSALS = {
    "the whole program": ("RESOURCE_EXHAUSTED: Used 101.5G of 95.74G hbm. Exceeded", 101.5),
    "one part of it": ("RESOURCE_EXHAUSTED: XLA:TPU: temporaries 131.39G exceed 95.74G", 131.39),
    "a part that is named": ("Ran out of memory: ByteSize=102.2GiB) exceeds Root", 102.2),
    "on several lines": ("RESOURCE_EXHAUSTED: in hbm.\nUsed 512.0G of 95.74G hbm", 512.0),
    "something else": ("INTERNAL: a kernel took 3.0G) exceeds nothing", None),
    "a crash": ("Segmentation fault", None),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_the_compiler_refuses_becomes_a_row(monkeypatch, refusal):
    """The rows before and after it are not lost, and each is given as soon as it is done."""
    log, needed = REFUSALS[refusal]
    answers: list = [
        analysis(),
        CompileError("compiling for v5p:2x2x2: it refuses", log),
        analysis(),
    ]
    taken = []

    def analyse(*args, **kwargs):
        assert len(taken) == 3 - len(answers)
        answer = answers.pop(0)
        if isinstance(answer, CompileError):
            raise answer
        return answer

    monkeypatch.setattr(planner, "analyse", analyse)
    names = ["v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4"]
    made = planner.plan(config(), names, batch_per_chip=2, take=taken.append)
    assert taken == made and [row.fits for row in made] == [True, False, True]
    row = made[1]
    assert row.hbm_peak_gib == needed
    expected = "not compiled" if needed is None else f"{needed - 95:.1f} GiB over"
    assert expected in row.note and row.note in planner.table(made)
    assert row.note in unescape(page.render(made, "A plan", "rb-jax plan"))


def test_the_command_keeps_what_is_done(monkeypatch, tmp_path, capsys):
    """--json has every row that was finished when something ends the command."""
    answers: list = [analysis(), InputError("no compiler for this here")]

    def analyse(*args, **kwargs):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(planner, "analyse", analyse)
    file = tmp_path / "small.py"
    file.write_text(
        "from rb_jax.config import Config, to_config_dict, paper_model\n"
        "def get_config():\n"
        "    config = to_config_dict(Config())\n"
        f"    config.update_from_flattened_dict({SMALL!r})\n"
        "    return config\n"
    )
    argv = ["plan", f"--config={file}", "--topology=v5p:2x2x1,v5p:2x2x2", "--batch_per_chip=2"]
    assert cli.main([*argv, f"--json={tmp_path}/rows.json"]) == 2
    assert [row["topology"] for row in json.loads((tmp_path / "rows.json").read_text())] == [
        "v5p:2x2x1"
    ]
    out, err = capsys.readouterr()
    assert "v5p:2x2x1" in out and err.splitlines()[-1] == "rb-jax: no compiler for this here"


def test_table_and_page_show_every_row(monkeypatch):
    made = rows(monkeypatch)
    text, html = planner.table(made), page.render(made, "A <plan>", "rb-jax plan --x='<'")
    for row in made:
        assert row.topology in text and row.topology in html
    assert "frozen weights replicated" not in text
    assert "(0.25); frozen weights replicated" in planner.table(
        [dataclasses.replace(made[0], frozen="replicated")]
    )
    assert "all-gather fsdp 3.00 (0.50)" in text and "* links at 90%" in text
    assert html.count("<svg") == 3 and "A &lt;plan&gt;" in html and "<plan>" not in html
    half = page.efficiency([made[0], dataclasses.replace(made[1], predicted_step_s=1.0)])
    assert sorted(half.values()) == [0.5, 1.0]


def test_the_page_of_one_small_model(monkeypatch):
    """No chart of a single point, no parameters rounded to nothing, no hundred names."""
    monkeypatch.setattr(planner, "analyse", lambda *args, **kwargs: analysis())
    one = planner.plan(config(), ["v5p:2x2x1"])
    html = page.render(one, "A plan", "rb-jax plan")
    assert "<svg" not in html and "11.0 of 95 GiB" in html
    assert "0.0 B" not in html and f"<b>{one[0].params_b * 1e3:.1f} M</b>" in html


# ---- search --------------------------------------------------------------------------------------


def test_kept_activations_follow_the_setting():
    full = search.activations(config(remat__double_blocks="full", remat__single_blocks="full"))
    off = search.activations(config(remat__double_blocks="off", remat__single_blocks="off"))
    some = search.activations(config())
    assert full[0] < some[0] < off[0] and off[1] == 0 < some[1] < full[1]
    assert full[1] == pytest.approx(1 / 3)
    layers, (joint, _) = 5, search.tokens(config())
    assert full[0] == layers * joint * 384 * 2


def test_search_compiles_the_best_estimates_and_orders_them(monkeypatch):
    compiled = []

    def compile_row(made):
        compiled.append(made)
        row = planner._known(made, "train")
        step = 1.0 if len(compiled) == 1 else 0.25 * row.batch_size
        return dataclasses.replace(row, fits=len(compiled) != 2, predicted_step_s=step)

    monkeypatch.setattr(planner, "compile_row", compile_row)
    found = search.search(config(), "v5p:2x2x1", compiles=3)
    assert len(compiled) == 3 and not found[-1].fits
    rates = [row.examples_per_chip_second or 0 for row in found]
    assert rates[0] >= rates[1] > 0
    every = list(search.candidates(config(), "v5p:2x2x1"))
    assert {c.target.config.remat for c in every} == set(search.REMATS)
    assert {c.target.mesh.shape["context"] for c in every} == {1, 2, 4}


def test_search_says_how_much_is_missing():
    with pytest.raises(InputError, match="nothing fits; the smallest step needs about .* GiB"):
        search.search(paper(), "v5e:2x2")


# ---- the compilers -------------------------------------------------------------------------------


@needs_libtpu
@pytest.mark.parametrize("what", ["train", "sample"])
def test_the_real_programs_compile_for_a_tpu(what):
    """Mesh, kernels, masks, remat, optimizer: one small flow model on a context x fsdp mesh."""
    made = config(mesh__fsdp=2, mesh__context=2, mesh__data=1)
    (row,) = planner.plan(made, ["v5p:2x2x1"], what=what)
    assert row.hbm_peak_gib and row.executed_tflop and row.predicted_mfu
    assert row.fits and 0 < row.hbm_peak_gib < 4
    assert 0.95 < row.executed_tflop / row.model_tflop < 1.5
    axes = {c["axis"] for c in row.collectives}
    assert "context" in axes and any("fsdp" in axis for axis in axes)
    assert 0 < row.predicted_mfu < 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # ml_collections reads the file
def test_command_line(monkeypatch, tmp_path, capsys):
    file = tmp_path / "small.py"
    file.write_text(
        "from rb_jax.config import Config, to_config_dict\n"
        "def get_config(preset='a'):\n"
        "    config = to_config_dict(Config())\n"
        f"    config.update_from_flattened_dict({SMALL!r})\n"
        "    config.train.batch_size = 16 if preset == 'b' else 8\n"
        "    return config\n"
    )
    monkeypatch.setattr(planner, "analyse", lambda *args, **kwargs: analysis())
    out, html = tmp_path / "rows.json", tmp_path / "page.html"
    argv = ["plan", f"--config={file}", "--preset=b", "--topology=v5p:2x2x1"]
    assert cli.main([*argv, f"--json={out}", f"--report={html}"]) == 0
    assert json.loads(out.read_text())[0]["batch_size"] == 16
    assert "Memory of a chip" in html.read_text() and "v5p:2x2x1" in capsys.readouterr().out
    assert cli.main([*argv, "--topology=v5p:9x9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main([*argv, f"--json={tmp_path}/no/where.json"]) == 2


def test_remat_candidates_are_valid_settings():
    for remat in search.REMATS:
        assert isinstance(remat, RematConfig)
        config(**{f"remat__{key}": v for key, v in dataclasses.asdict(remat).items()})
