"""Runs that are killed or stopped over and over until they finish, beside one left in peace."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from rb_jax.checkpoint import manager as checkpoint
from rb_jax.runtime.exits import EXIT_PREEMPTED
from tests import buckets
from tests.torture import child


@dataclasses.dataclass
class Peace:
    """The run that nothing happened to."""

    config: Path
    workdir: Path
    seconds: float  # from its start to its end
    curve: list[dict]
    hash: str


def peaceful(folder: Path, **values) -> Peace:
    values = dict(steps=40, log_every=1, eval_every=10, checkpoint_every=3) | values
    config = child.write_config(folder, **values)
    begin = time.monotonic()
    child.run(config, folder / "peace")
    seconds = time.monotonic() - begin
    workdir = folder / "peace"
    return Peace(config, workdir, seconds, child.curve(workdir), child.final_hash(workdir))


def same(peace: Peace, workdir: Path) -> list[str]:
    """In what a finished run differs from the peaceful one."""
    found = []
    if child.curve(workdir) != peace.curve:
        found.append(f"{workdir}: another loss curve")
    if child.final_hash(workdir) != peace.hash:
        found.append(f"{workdir}: another final state")
    wanted = child.samples(peace.workdir)
    if any(wanted.get(key) != value for key, value in child.samples(workdir).items()):
        found.append(f"{workdir}: other samples")
    if stale := [name for name in child.checkpoints(workdir) if not name.isdecimal()]:
        found.append(f"{workdir}: left behind {stale}")
    return found


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written."""
    if child.BUCKET:
        return buckets.unfinished(f"{workdir.name}/checkpoints/")
    folder = workdir / "checkpoints"
    try:
        return any(path.name.endswith(checkpoint.SAVING) for path in folder.iterdir())
    except OSError:
        return False


def kills(peace: Peace, folder: Path, count: int, seed: int) -> dict:
    """``count`` SIGKILLs, at least half of them with a checkpoint half written."""
    draw, done, middle, runs, wrong = random.Random(seed), 0, 0, 0, []

    def strike(pid: int, workdir: Path) -> bool:
        """Kills the child, or finds it finished."""
        nonlocal done, middle
        if 2 * middle < done + 1:
            ended = not _wait(pid, lambda: saving(workdir))
            time.sleep(draw.uniform(0, 0.1))
        else:
            ended = not _wait(pid, lambda: False, draw.uniform(0, 1.2 * peace.seconds))
        if ended:
            return False
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            return False
        done += 1
        middle += saving(workdir)
        return True

    while done < count:
        runs += 1
        workdir = folder / f"killed_{runs}"
        while done < count and strike(child.start(peace.config, workdir), workdir):
            pass
        child.run(peace.config, workdir)
        wrong += same(peace, workdir)
    return {"SIGKILLs": done, "during a save": middle, "runs": runs, "wrong": wrong}


def stops(peace: Peace, folder: Path, count: int, seed: int) -> dict:
    """``count`` SIGTERMs; each must end the run within 30 s, saved, with status 75."""
    draw, done, runs, slowest, wrong = random.Random(seed), 0, 0, 0.0, []
    while done < count:
        runs += 1
        workdir = folder / f"stopped_{runs}"
        while done < count:
            pid = child.start(peace.config, workdir)
            if not _wait(pid, lambda: False, draw.uniform(0, 1.1 * peace.seconds)):
                break
            os.kill(pid, signal.SIGTERM)
            begin = time.monotonic()
            code = child.finish(pid)
            seconds = time.monotonic() - begin
            if code == 0:
                break  # it was about to end
            done += 1
            slowest = max(slowest, seconds)
            logged = max((row["step"] for row in child.rows(workdir)), default=0)
            saved = max(child.steps(workdir), default=0)
            if code != EXIT_PREEMPTED or seconds > 30 or saved < logged:
                wrong.append(f"{workdir}: status {code}, {seconds:.1f} s, {logged} not {saved}")
        child.run(peace.config, workdir)
        wrong += same(peace, workdir)
    return {"SIGTERMs": done, "slowest, s": round(slowest, 2), "runs": runs, "wrong": wrong}


def _wait(pid: int, ready: Callable[[], bool], seconds: float = 300) -> bool:
    """Until ``ready`` or for so long; False when the child ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not ready():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.waitpid(pid, 0)
            return False
        time.sleep(0.03 if child.BUCKET else 0.001)
    return True
