"""The Slurm script: its directives, the command, and when it goes back to the queue."""

from __future__ import annotations

import re
import shlex
import shutil
import time

import pytest

from rb_jax.runtime.jax_internals import detect_slurm
from tests.tpu.launchers import REPO, TPU, Fakes

SCRIPT = TPU / "slurm.sbatch"
BASE = ("--workdir=/shared/my run", "--chip=h200")


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


def job(fakes: Fakes, *flags: str, **environ: str):
    """As Slurm runs it: a copy elsewhere."""
    copy = shutil.copy(SCRIPT, fakes.folder / "slurm_script")
    environ = {"SLURM_SUBMIT_DIR": str(REPO), "SLURM_JOB_ID": "77", **environ}
    return fakes.run("bash", copy, *BASE, *flags, **environ)


def directives() -> dict[str, str]:
    found = {}
    for line in SCRIPT.read_text().splitlines()[1:]:
        if line and not line.startswith("#"):
            break  # Slurm reads no further
        if match := re.match(r"#SBATCH --([\w-]+)=?(.*)", line):
            found[match[1]] = match[2]
    assert len(found) == SCRIPT.read_text().count("#SBATCH")
    return found


def test_directives():
    found = directives()
    assert found["signal"] == "TERM@120"  # without B: to the tasks, not to the script
    assert "requeue" in found and found["open-mode"] == "append"
    assert found["ntasks-per-node"] == found["gpus-per-node"]
    assert "gpus-per-task" not in found  # it would hide the node's other GPUs


def test_jax_takes_the_gpu_with_the_local_number(monkeypatch):
    place = {
        "JOB_ID": "77",
        "STEP_NODELIST": "gpu[07-08]",
        "NTASKS": "16",
        "PROCID": "9",
        "LOCALID": "1",
        "STEP_NUM_NODES": "2",
    }
    for name, value in place.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    address, count, index, devices = detect_slurm()
    assert address.startswith("gpu07:")
    assert (count, index, devices) == (16, 9, [1])


def test_command(fakes):
    fakes.answers("srun", 0)
    extra = ("--srun-flags=--container-image=a --mpi=none", "--", "--config.train.x=a  b")
    assert job(fakes, *extra, SLURM_JOB_NUM_NODES="4").returncode == 0
    (call,) = fakes.calls("srun")
    assert {"--kill-on-bad-exit=0", "--gpu-bind=none", "--mpi=none"} <= set(call)
    assert call[call.index("rb-jax") :] == [
        *("rb-jax", "train", "--config=configs/reason50k_flux.py", "--workdir=/shared/my run"),
        *("--config.mesh.data=4", "--config.mesh.fsdp=-1", "--config.train.x=a  b"),
    ]


@pytest.mark.parametrize("workdir", ["gs://b/my run", "s3://b/run", "runs/mine"])
def test_a_workdir_is_passed_on(fakes, workdir):
    assert job(fakes, f"--workdir={workdir}").returncode == 0
    (call,) = fakes.calls("srun")
    assert f"--workdir={workdir}" in call


def test_tasks_get_the_compiler_flags(fakes):
    srun = fakes.folder / "bin" / "srun"
    srun.write_text(
        '#!/bin/sh\necho "$XLA_FLAGS|$CUDA_DEVICE_MAX_CONNECTIONS|$SRUN_CPUS_PER_TASK"\n'
    )
    flags, connections, cpus = job(fakes, SLURM_CPUS_PER_TASK="12").stdout.strip().split("|")
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in flags.split()
    assert (connections, cpus) == ("1", "12")
    assert job(fakes, "--chip=b200").stdout.split("|")[1] == ""


def test_dry_run(fakes):
    done = job(fakes, "--dry-run")
    words = shlex.split(done.stdout)
    assert words[0] == "env" and words[2] == "srun" and "--workdir=/shared/my run" in words
    assert fakes.calls() == []


def test_preempted_goes_back_to_the_queue(fakes):
    fakes.answers("srun", 75)
    assert job(fakes, "--max-failures=0").returncode == 75
    assert len(fakes.calls("srun")) == 1
    assert fakes.calls("scontrol") == [["scontrol", "requeue", "77"]]


@pytest.mark.parametrize("code", [0, 2, 70])
def test_ends_for_good(fakes, code):
    fakes.answers("srun", code)
    assert job(fakes).returncode == code
    assert len(fakes.calls("srun")) == 1 and not fakes.calls("scontrol")


def test_failures_are_bounded(fakes):
    fakes.answers("srun", 134)
    done = job(fakes, "--max-failures=2")
    assert done.returncode == 134 and "gave up after 2 restarts" in done.stderr
    assert len(fakes.calls("srun")) == 3 and not fakes.calls("scontrol")


def test_a_failure_then_a_preemption(fakes):
    fakes.answers("srun", 1, 75)
    assert job(fakes, "--max-failures=1").returncode == 75
    assert len(fakes.calls("srun")) == 2 and len(fakes.calls("scontrol")) == 1


@pytest.mark.parametrize("left, requeues", [(60, 1), (3600, 0)])
def test_killed_when_the_time_is_up(fakes, left, requeues):
    fakes.answers("srun", 137)
    end = str(int(time.time()) + left)
    job(fakes, "--max-failures=0", SLURM_JOB_END_TIME=end)
    assert len(fakes.calls("scontrol")) == requeues


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workdir="], "--workdir=VALUE is required"),
        (["--workdir=s3://b"], "must be gs://BUCKET/RUN, s3://BUCKET/RUN or a path"),
        (["--workdir=http://b/run"], "must be gs://BUCKET/RUN, s3://BUCKET/RUN or a path"),
        (["--chip=v5p"], "must be h100, h200 or b200"),
        (["--chip=p4"], "unknown chip 'p4'"),
        (["--nodes=4"], "unknown flag --nodes"),
    ],
)
def test_bad_flags(fakes, flags, message):
    done = job(fakes, *flags)
    assert done.returncode == 2 and message in done.stderr and fakes.calls() == []


def test_submitted_from_elsewhere(fakes):
    done = job(fakes, SLURM_SUBMIT_DIR=str(fakes.folder))
    assert done.returncode == 2 and "from the checkout" in done.stderr
