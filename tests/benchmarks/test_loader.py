"""The loader's benchmark at toy size, and what it measures with."""

import contextlib
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import loader

ROOT = Path(__file__).parents[2]
TORCH = importlib.util.find_spec("torch") is not None


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.loader", "--size=toy", "--repeats=1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.exhaustive
def test_everything_at_toy_size(tmp_path):
    done = run("--workers=1", f"--json={tmp_path / 'rows.json'}")
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    alone, ours = (rows[f"130 px, 1 worker: {x}"] for x in ("decode and resize alone", "loader"))
    assert alone["rate"] > 0 and ours["ratio"] == pytest.approx(ours["rate"] / alone["rate"])
    for name in ("as usual", "our decoding"):
        row = rows.get(f"130 px, 1 worker: DataLoader, {name}")
        assert (row is not None) == TORCH
        assert row is None or row["ratio"] == pytest.approx(ours["rate"] / row["rate"])
    assert rows["cache, 1 worker"]["rate"] > 0
    assert ("cache, 1 worker: DataLoader, 130 px" in rows) == TORCH
    (memory,) = (row for what, row in rows.items() if what.startswith("most up to 200 samples"))
    assert memory["ratio"] >= 1
    assert all(f"| {what} |" in done.stdout for what in rows)


def test_parts_that_do_not_exist():
    done = run("--only=jpeg,sprint")
    assert done.returncode == 2 and "sprint is none of jpeg, cache, memory" in done.stderr


def test_rates_are_medians_of_the_sides_in_turns():
    order = []

    def side(name, *rates):
        rounds = iter(rates)

        def rate(seconds):
            order.append((name, seconds))
            return next(rounds)

        return rate

    rates = loader.in_turns({"a": side("a", 1, 9, 2), "b": side("b", 5, 6, 7)}, 4.0, repeats=3)
    assert order == [("a", 4.0), ("b", 4.0)] * 3 and rates == {"a": 2, "b": 6}


def test_what_was_made_ahead_does_not_count(monkeypatch):
    clock, left = itertools.count(), []
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(clock))

    @contextlib.contextmanager
    def opened():
        yield itertools.chain([99] * 5, itertools.repeat(7))
        left.append(True)

    assert loader.timed(opened, workers=1)(4.0) == 7 * 3 / 4 and left
