"""What runs on every TPU VM: one attempt of a command, whatever becomes of the connection."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.tpu.launchers import TPU

# Notes that it runs, then waits; SIGTERM makes it save and leave with 75.
TRAINING = """
trap 'echo saved; exit 75' TERM
echo "started $1"
echo "$1" >> "$0"
until [ -e "$0.$1" ]; do sleep 0.05; done
echo "through $1"
exit 3
"""


class Worker:
    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.environ = {**os.environ, "RB_JAX_WORKER_STATE": str(folder / "state")}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = ["bash", str(TPU / "worker.sh"), *arguments]
        return subprocess.Popen(
            command, env=self.environ, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def train(self, attempt: str, name: str) -> subprocess.Popen[str]:
        process = self.start("run", attempt, "bash", "-c", TRAINING, str(self.runs), name)
        deadline = time.monotonic() + 20
        while name not in self.started() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert name in self.started()
        return process

    def started(self) -> list[str]:
        return self.runs.read_text().split() if self.runs.exists() else []

    def let_through(self, name: str) -> None:
        self.runs.with_name(f"{self.runs.name}.{name}").touch()


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path)
    yield worker
    subprocess.run(["bash", TPU / "worker.sh", "stop"], env=worker.environ, timeout=30)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


@pytest.mark.parametrize("code", [0, 2, 75])
def test_exit_code_and_output(worker, code):
    command = ("bash", "-c", f'echo "hello $0"; exit {code}', "a  b")
    assert end(worker.start("run", "1", *command)) == (code, "hello a  b\n")


def test_a_broken_connection_is_joined_again(worker):
    connection = worker.train("1", "first")
    os.killpg(connection.pid, signal.SIGKILL)
    end(connection)
    again = worker.start("run", "1", "false")
    worker.let_through("first")
    code, output = end(again)
    assert code == 3 and output.endswith("through first\n")
    assert worker.started() == ["first"]  # it ran once


def test_a_new_attempt_stops_the_old_one(worker):
    old = worker.train("1", "old")
    new = worker.train("2", "new")
    code, output = end(old)
    assert code == 75 and output.endswith("saved\n")
    worker.let_through("new")
    assert end(new)[0] == 3


def test_stop_lets_it_save(worker):
    training = worker.train("1", "only")
    assert end(worker.start("stop"))[0] == 0
    assert end(training) == (75, "started only\nsaved\n")


def test_stop_without_anything_running(worker):
    assert end(worker.start("stop"))[0] == 0


# Root's work is done as ourselves, or only written down; installing gcsfuse makes one, which mounts
# by leaving a file that mountpoint finds.
FAKES = {
    "sudo": 'while [[ $1 == *=* ]]; do shift; done; "$@"',
    "tee": "cat >/dev/null",
    "curl": "true",
    "lsb_release": "echo jammy",
    "fusermount": "exit 1",
    "mountpoint": "[[ -e $2/mounted ]]",
    "apt-get": '[[ $* == *install* ]] && cp "$BIN/gcsfuse.new" "$BIN/gcsfuse"',
    "gcsfuse.new": "if [[ $1 == --help ]]; then echo --metadata-cache-negative-ttl-secs int; "
    'else touch "${@: -1}/mounted"; fi',
}


def test_mount_installs_once_and_mounts_once(tmp_path):
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    for name, body in FAKES.items():
        path = programs / name
        path.write_text(f'#!/usr/bin/env bash\necho "${{0##*/}} $*" >>"{log}"\n{body}\n')
        path.chmod(0o755)
    environ = {
        **os.environ,
        "BIN": str(programs),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RB_JAX_MOUNTS": str(tmp_path / "gcs"),
    }

    def mount(*buckets: str) -> list[str]:
        log.write_text("")
        command = ["bash", TPU / "worker.sh", "mount", *buckets]
        subprocess.run(command, env=environ, check=True, timeout=30, capture_output=True)
        return log.read_text().splitlines()

    first = mount("one")
    assert [line for line in first if line.startswith("apt-get") and "install -y gcsfuse" in line]
    assert first[-1].split()[-2:] == ["one", str(tmp_path / "gcs" / "one")]
    assert "--implicit-dirs" in first[-1].split()
    assert mount("one") == [f"mountpoint -q {tmp_path}/gcs/one"]
    more = mount("one", "two", "three")
    assert not [line for line in more if line.startswith("apt-get")]
    mounted = [line.split()[-2] for line in more if line.startswith("gcsfuse --implicit-dirs")]
    assert mounted == ["two", "three"]


@pytest.mark.parametrize(
    "given, package, jax",
    [
        ((), ".[gcs]", "jax[tpu]"),
        (("tpu", "gcs,s3"), ".[gcs,s3]", "jax[tpu]"),
        (("cuda13",), ".[gcs]", "jax[cuda13]"),
    ],
)
def test_setup_installs_the_clients_of_buckets(tmp_path, given, package, jax):
    script, programs = tmp_path / "rb_jax" / "tpu" / "worker.sh", tmp_path / "bin"
    script.parent.mkdir(parents=True)
    programs.mkdir()
    shutil.copy(TPU / "worker.sh", script)
    uv = programs / "uv"
    uv.write_text(f'#!/usr/bin/env bash\npwd >>"{tmp_path}/log"\necho "$@" >>"{tmp_path}/log"\n')
    uv.chmod(0o755)
    environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["bash", script, "setup", *given], env=environ, check=True, timeout=30)
    folder, installs = (tmp_path / "log").read_text().splitlines()[-2:]
    assert folder == str(tmp_path / "rb_jax")
    words = installs.split()
    assert words[:2] == ["pip", "install"] and words[-3:] == ["-e", package, jax]
    assert words[words.index("-c") + 1] == "constraints.txt"
