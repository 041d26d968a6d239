"""The torture, a little of it, and processes that lose their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_little_torture():
    # Changes of devices are tests/train/test_processes.py's.
    sizes = ["--kills=2", "--stops=1", "--flips=60", "--cuts=20", "--disks=0", "--devices="]
    command = [sys.executable, "-m", "tests.torture", *sizes, "--no-processes"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    for line in (
        "damage: bit flips 60",
        "kills: SIGKILLs 2",
        "stops: SIGTERMs 1",
        "0 wrong",
    ):
        assert line in ended.stdout


def children(pid: int) -> list[int]:
    """Process ids whose parent is ``pid``, and theirs."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


def running(pids: list[int]) -> list[int]:
    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "gone"

    return [pid for pid in pids if state(pid) not in ("gone", "Z", "X")]


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_nothing_outlives_a_killed_run(tmp_path):
    """Killed while two processes make its examples, one of which was killed before."""
    shared = set(os.listdir("/dev/shm"))
    command = [
        "-m",
        "tests.train.worker",
        "none",
        "0",
        "train",
        "--config=configs/reasonworld.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.count=200000",
        "--config.train.autoencoder_from=",
    ]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=log, stderr=log)
    try:
        workers = lambda: [p for p in children(process.pid) if b"spawn_main" in cmdline(p)]  # noqa: E731
        wait_until(lambda: len(workers()) >= 2 or process.poll() is not None, 240)
        assert len(workers()) >= 2, (tmp_path / "log").read_text()
        everyone = children(process.pid)
        os.kill(workers()[0], signal.SIGKILL)
        time.sleep(1)
        assert process.poll() is None  # it goes on without them
        everyone += children(process.pid)
    finally:
        process.kill()
        process.wait()
        log.close()
    assert wait_until(lambda: not running(everyone), 5), running(everyone)

    def left():
        new = set(os.listdir("/dev/shm")) - shared
        return [name for name in new if name.startswith(("psm_", "sem.", str(process.pid)))]

    assert wait_until(lambda: not left(), 5), left()


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
