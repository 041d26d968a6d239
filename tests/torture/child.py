"""Trainings of the fake model as child processes, started in the time of a fork.

The parent has imported everything but let JAX start nothing, so that its children may choose their
own number of devices.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rb_jax import cli
from rb_jax.checkpoint import layout
from rb_jax.checkpoint.stored import load_arrays, state_hash
from rb_jax.data.pipeline import loader
from rb_jax.storage import place
from rb_jax.train import feed, loop
from rb_jax.train.metrics import is_timing, read_lines
from rb_jax.weights import params
from tests import quick
from tests.addresses import free_address
from tests.train import fake

__all__ = ["loader", "loop"]  # imported for the children
BUCKET = ""  # where the runs are, if not beside their logs; their names are still local paths
CONFIG = """
from rb_jax.config import to_config_dict
from tests.train import fake

def get_config():
    return to_config_dict(fake.config({values}))
"""


def write_config(folder: Path, **values) -> Path:
    """A configuration file of the fake model with these values of config.train."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.py"
    path.write_text(CONFIG.format(values=", ".join(f"{k}={v!r}" for k, v in values.items())))
    return path


def where(workdir: Path) -> str:
    """The run itself, on the disk or in the bucket."""
    return f"{BUCKET}/{workdir.name}" if BUCKET else str(workdir)


def start(
    config: Path, workdir: Path, devices: int = 1, flags: Sequence[str] = (), said: str = ""
) -> int:
    """Forks a training; its process id. What it says goes to ``said``, or ``workdir``.log."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        log = os.open(said or f"{workdir}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        jax.config.update("jax_platforms", "cpu")
        os.environ["XLA_FLAGS"] = f"{quick.FLAGS} --xla_force_host_platform_device_count={devices}"
        params.MODELS = fake.MODELS
        record_samples(workdir)
        command = ["train", f"--config={config}", f"--workdir={where(workdir)}", *flags]
        sys.argv = ["rb-jax", *command]
        code = cli.main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start_two(config: Path, workdir: Path, devices: int, flags: Sequence[str] = ()) -> list[int]:
    """Two processes that train together, with ``devices`` each."""
    joined = [f"--coordinator_address={free_address()}", "--num_processes=2", *flags]
    return [start(config, workdir, devices, [*joined, f"--process_id={i}"]) for i in range(2)]


def finish(pid: int, seconds: float = 300) -> int:
    """Waits for a child; its exit status, negative for a signal. TimeoutError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    kill(pid)
    raise TimeoutError(f"still running after {seconds} s")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def run(config: Path, workdir: Path, devices: int = 1, flags: Sequence[str] = ()) -> None:
    """A training to its end; RuntimeError when it does not get there."""
    code = finish(start(config, workdir, devices, flags))
    if code:
        raise RuntimeError(f"exit status {code}: {Path(f'{workdir}.log').read_text()[-2000:]}")


def in_child(function: Callable[[], Any]) -> Any:
    """What a function gives (JSON) in a process of its own, since this one forks; None if nothing.

    The clients of buckets, like JAX, have threads that no fork brings along.
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            jax.config.update("jax_platforms", "cpu")
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                json.dump(function(), pipe)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else None


def rows(workdir: Path) -> list[dict]:
    """The rows of the log."""
    return in_child(lambda: read_lines(where(workdir)))


def curve(workdir: Path) -> list[dict]:
    """The rows of the log, without starts and without what depends on time."""
    kept = [row for row in rows(workdir) if row["kind"] != "start"]
    return [{k: v for k, v in row.items() if not is_timing(k)} for row in kept]


def final_hash(workdir: Path) -> str:
    """Of the newest checkpoint's state."""
    return in_child(lambda: state_hash(load_arrays(where(workdir)))) or "unreadable"


def checkpoints(workdir: Path) -> list[str]:
    """Names among the checkpoints: "12" for a finished one, others with what they lack."""

    def names() -> list[str]:
        found = layout.children(place(where(workdir)) / "checkpoints")
        done = layout.steps(place(where(workdir)) / "checkpoints")
        return [p.name if p.name in map(str, done) else f"{p.name} (unfinished)" for p in found]

    return in_child(names)


def steps(workdir: Path) -> list[int]:
    """The finished ones, ascending."""
    return sorted(int(name) for name in checkpoints(workdir) if name.isdecimal())


def record_samples(workdir: Path) -> None:
    """Lets the child note which example every row of every batch was, in files beside its log."""
    original = feed.train_batches

    def train_batches(config, folder, graphdef, state, mesh):
        rows = feed.process_rows(mesh, config.train.batch_size)
        batches = original(config, folder, graphdef, state, mesh)
        with open(f"{workdir}.samples.{os.getpid()}", "a") as file:
            batch: Any
            for step, batch in enumerate(batches, int(state.step) + 1):
                for row, pixels in zip(rows, np.asarray(batch.source), strict=True):
                    digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
                    file.write(json.dumps([step, int(row), digest]) + "\n")
                file.flush()
                yield batch

    feed.train_batches = train_batches


def samples(workdir: Path) -> dict[tuple[int, int], set[str]]:
    """(step, row) -> the examples that were there, over all starts: one, if all is well."""
    found: dict[tuple[int, int], set[str]] = {}
    for path in workdir.parent.glob(f"{workdir.name}.samples.*"):
        for line in path.read_text().splitlines():
            try:
                step, row, digest = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            found.setdefault((step, row), set()).add(digest)
    return found
