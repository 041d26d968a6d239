"""The GPU benchmark at toy size on a CPU, and what it says when something is missing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu import ours, programs, rows

ROOT = Path(__file__).parents[2]
TORCH = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.exhaustive
def test_everything_at_toy_size(tmp_path):
    done = run("--size=toy", "--repeats=1", f"--json={tmp_path / 'rows.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rows.json").read_text())
    mine = {row["what"]: row for row in found if row["by"] == rows.OURS}
    assert set(mine) == {
        "forward",
        "sampler, 3 steps",
        "training step",
        "matrix product, 256 cubed",
        *(programs.attention_name(rows, back) for rows in (1, 2) for back in (False, True)),
    }
    assert all(row["seconds"] > 0 and row["tflops"] > 0 for row in mine.values())
    assert "2 + 3 blocks, batch 2" in mine["training step"]["note"]
    assert "against float32" in mine["forward"]["note"]
    assert mine["forward"]["planned"] or mine["forward"]["planner_note"]
    for what, row in mine.items():
        assert (row["ratio"] is not None) == (TORCH and what != "training step"), what
        assert f"| {what} " in done.stdout


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_the_full_size_needs_a_gpu():
    done = run("--size=full")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "benchmarks.gpu: no NVIDIA GPU here; --size=toy runs on a CPU\n"


def test_parts_that_do_not_exist_or_come_too_late():
    assert "--only: sprint is none of forward" in run("--size=toy", "--only=sprint").stderr
    late = run("--size=toy", "--only=train", "--minutes=0.001")
    assert late.returncode == 1 and "FAILED train, ours: no time left" in late.stdout


def test_the_full_model_is_flux():
    config = programs.configuration("full")
    shapes = programs.params_shapes(config)
    assert sum(np.prod(x.shape) for x in shapes.values()) == pytest.approx(11.9e9, rel=1e-3)
    forward = programs.forward_program(config)
    assert programs.model_flops(forward) == pytest.approx(74.4e12, rel=1e-3)
    tokens, text = forward.args[1].shape[1] ** 2 // 4, forward.args[4].tokens.shape[1]
    assert tokens + text == programs.SIZES["full"].attention[0]


def test_attention_is_counted_by_hand():
    for backward, products in ((False, 2), (True, 7)):
        expected = products * 2 * 4 * 4608**2 * 24 * 128
        assert programs.attention_flops("full", 4, backward) == expected
    program = programs.attention_program("toy", 2, False)
    assert programs.model_flops(program) == programs.attention_flops("toy", 2, False)


def test_parameters_are_random_everywhere():
    config = programs.configuration("toy", (1, 2))
    params = ours.random_params(programs.params_shapes(config))
    assert "mmdit/single_blocks/modulation/lin/kernel" in params  # zeros in a fresh model
    for path, x in params.items():
        x = np.asarray(x, np.float64)
        assert x.dtype == np.float64 and (x != 0).mean() > 0.9 and x.std() > 0.01, path
        if x.ndim == 3 and len(x) > 1:
            assert not np.array_equal(x[0], x[1]), path
    kernels = [params[f"mmdit/double_blocks/{s}/attn/qkv/kernel"] for s in ("img", "txt")]
    assert not np.array_equal(kernels[0], kernels[1])


@pytest.mark.parametrize("wrong", [0.1, np.nan])
def test_wrong_numbers_are_not_timed(wrong):
    exact = jax.random.normal(jax.random.key(0), (40, 30))
    assert ours.checked_error((exact, exact * 1.01), (exact, exact)) == pytest.approx(0.01, rel=0.1)
    with pytest.raises(SystemExit, match="wrong numbers"):
        ours.checked_error((exact, exact + wrong * exact), (exact, exact))
    for output in (jnp.zeros(3), jnp.full(3, jnp.nan)):
        with pytest.raises(SystemExit, match="root mean square"):
            ours.check_output(output)


def test_a_model_too_large_is_said_to_be(monkeypatch):
    monkeypatch.setattr(ours, "memory_limit", lambda mesh: 1e5)
    found = []
    ours.train("toy", 1, found.append)
    (row,) = found
    assert row.seconds is None and "2 + 3 blocks, batch 2: 0 GiB before" in row.note
    full = ours.candidates("full")
    assert full[0] == ((19, 38), 3) and full[-1] == ((5, 10), 1)


def test_rows_and_their_table(tmp_path):
    mine = rows.measured("forward", rows.OURS, [3.0, 1.0, 2.0], tflop=50.0, peak=100e12, note="a|b")
    theirs = [rows.measured("forward", by, [s], tflop=50.0) for by, s in (("x", 5.0), ("y", 4.0))]
    for row in (mine, *theirs, rows.Row("forward", "z", note="not installed")):
        rows.append(tmp_path / "rows", row)
    back = rows.read(tmp_path / "rows")
    rows.compare(back)
    assert (back[0].seconds, back[0].low, back[0].high, back[0].ratio) == (2.0, 1.0, 3.0, 2.0)
    assert (back[0].rate, back[0].mfu) == (25.0, 0.25)
    lines = rows.table(back).splitlines()
    assert len(lines) == 6 and len({line.count("|") for line in lines}) == 1
    assert "25.0%" in lines[2] and "a/b" in lines[2] and "not installed" in lines[5]
    assert rows.read(tmp_path / "absent") == []
