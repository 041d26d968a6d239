"""Two processes of four devices train as one process of eight, and stop and continue as one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rb_jax.checkpoint import layout
from rb_jax.checkpoint.stored import load_weights
from rb_jax.runtime import distributed, processes
from rb_jax.train.metrics import read_lines
from tests.addresses import free_address
from tests.train import fake

ROOT = Path(__file__).parents[2]
DEVICES = 8
CONFIG = """
from rb_jax.config import to_config_dict
from tests.train import fake

def get_config():
    config = to_config_dict(fake.config(log_every=1))
    config.data.prepare = True
    return config
"""


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake.use(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the run of one process with eight devices."""
    path = tmp_path_factory.mktemp("processes")
    (path / "config.py").write_text(CONFIG)
    assert train(path, "one", ["none"]) == [0]
    return path


def launch(commands: list[list[str]]) -> list[subprocess.CompletedProcess]:
    """Runs the commands at the same time, with eight devices in all."""
    flags = f"--xla_force_host_platform_device_count={DEVICES // len(commands)}"
    environ = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",
        "JAX_PLATFORMS": "cpu",
    }
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def train(folder, name, signals, *flags, step=0, ends: Iterable[int] = ()) -> list[int]:
    """One process for each of ``signals``, which it sends itself after ``step``; exit statuses."""
    address, many = free_address(), len(signals)
    commands = [
        [
            "-m",
            "tests.train.worker",
            signal,
            str(step),
            "train",
            f"--config={folder}/config.py",
            f"--workdir={folder / name}",
            f"--coordinator_address={address}",
            f"--num_processes={many}",
            f"--process_id={i}",
            *flags,
        ]
        for i, signal in enumerate(signals)
    ]
    ended = launch(commands)
    codes = [process.returncode for process in ended]
    assert set(codes) <= {0, 75, -9, *ends}, "\n".join(process.stderr for process in ended)
    return codes


def mesh(data=1, fsdp=1, tensor=1, context=1) -> list[str]:
    sizes = dict(data=data, fsdp=fsdp, tensor=tensor, context=context)
    return [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]


def losses(workdir) -> list[tuple]:
    rows = [row for row in read_lines(workdir) if row["kind"] != "start"]
    return [(row["step"], row["kind"], row["loss"]) for row in rows]


def assert_same(a, b) -> None:
    """The same log and the same weights, but for the rounding of sums in another order."""
    assert [row[:2] for row in losses(a)] == [row[:2] for row in losses(b)]
    ours, theirs = ([row[2] for row in losses(x)] for x in (a, b))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    left, right = load_weights(a / "weights")[1], load_weights(b / "weights")[1]
    assert left.keys() == right.keys()
    for path, value in left.items():
        np.testing.assert_allclose(value, right[path], atol=1e-5, err_msg=path)


def test_two_processes_train_as_one(folder):
    assert train(folder, "two", ["none"] * 2, *mesh(data=2, fsdp=4)) == [0, 0]
    assert_same(folder / "one", folder / "two")
    for name in ("config.json", "samples", "prepared", "tensorboard", "checkpoints"):
        ours, theirs = folder / "one" / name, folder / "two" / name
        assert theirs.exists(), name
        if ours.is_dir():
            assert len(list(ours.iterdir())) == len(list(theirs.iterdir())), name
    starts = [row for row in read_lines(folder / "two") if row["kind"] == "start"]
    assert len(starts) == 1


def test_stopped_killed_and_continued_on_other_numbers_of_processes(folder):
    checkpoints = folder / "parts" / "checkpoints"
    assert train(folder, "parts", ["none", "SIGTERM"], *mesh(fsdp=8), step=1) == [75, 75]
    assert [path.name for path in checkpoints.iterdir()] == ["2"]
    # Lost some steps after the checkpoints of step 3, and of step 4, where the first evaluation is.
    assert train(folder, "parts", ["SIGKILL"], step=2) == [-9]
    shape = mesh(data=2, fsdp=2, tensor=2)
    assert train(folder, "parts", ["SIGKILL"] * 2, *shape, step=2) == [-9, -9]
    assert sorted(path.name for path in checkpoints.iterdir())[:2] == ["3", "4"]
    assert train(folder, "parts", ["none"] * 2, *mesh(context=8)) == [0, 0]
    assert_same(folder / "one", folder / "parts")


@pytest.mark.parametrize("full", [0, 1])
def test_a_save_that_fails_on_one_process_ends_both(folder, full):
    """Each by itself and soon, not after the hours that Orbax would let one wait for another."""
    name, signals = f"full_{full}", ["none", "none"]
    signals[full] = "FULL"
    begin = time.monotonic()
    codes = train(folder, name, signals, *mesh(fsdp=8), step=4, ends={74})
    assert codes == [74, 74] and time.monotonic() - begin < 120
    steps = [path.name for path in (folder / name / "checkpoints").iterdir()]
    assert "3" in steps and "6" not in steps, steps
    assert layout.problems(folder / name / "checkpoints" / "3") == []


def test_weights_that_the_first_process_cannot_write_end_both(folder):
    (folder / "in_the_way").mkdir()
    (folder / "in_the_way" / "weights").write_text("a file")
    begin = time.monotonic()
    codes = train(folder, "in_the_way", ["none"] * 2, *mesh(fsdp=8), ends={74})
    assert codes == [74, 74] and time.monotonic() - begin < 120


def scattered(address: str, index: int) -> None:
    """In one of two processes: a mesh on which neither has a share of its own or in order."""
    distributed.start({}, address, 2, index)
    import jax

    from rb_jax.sharding.mesh import AXES, process_rows, shard_batch

    devices = np.array(jax.devices())[[5, 0, 1, 6, 2, 7, 4, 3]].reshape(4, 1, 2, 1)
    for shape, mine in [((8, 1, 1, 1), [[1, 2, 4, 7], [0, 3, 5, 6]]), ((4, 1, 2, 1), None)]:
        mesh = jax.sharding.Mesh(devices.reshape(shape), AXES)
        rows = process_rows(mesh, 16)
        if mine is not None:
            assert rows.tolist() == [2 * i + j for i in mine[index] for j in (0, 1)]
        whole = np.arange(48.0).reshape(16, 3)
        for count, part in ((16, whole[rows]), (None, whole)):
            made: Any = shard_batch(mesh, part, count)
            assert not made.is_fully_addressable
            processes.PIECE_BYTES = 5 * 3 * made.dtype.itemsize
            sizes = [len(piece) for piece in processes.host_pieces(made)]
            assert sizes == [5, 5, 5, 1]
            assert np.array_equal(processes.to_host(made), whole)
        assert np.array_equal(processes.to_host(shard_batch(mesh, whole[:3])), whole[:3])
    assert processes.from_primary(7 + index) == 7


def test_rows_and_arrays_that_lie_scattered_over_processes():
    address = free_address()
    code = f"from {__name__} import scattered; scattered({address!r}, %d)"
    for ended in launch([["-c", code % i] for i in range(2)]):
        assert ended.returncode == 0, ended.stderr
