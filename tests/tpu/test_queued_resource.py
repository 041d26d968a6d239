"""The queued resource launcher: what it would run, and when it starts again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.tpu.launchers import REPO, TPU, Fakes

SCRIPT = TPU / "queued_resource.sh"
BASE = ("--name=rb", "--zone=us-z", "--accelerator-type=v5p-128", "--workdir=gs://b/run")


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    fakes = Fakes(tmp_path)
    fakes.answers("state", "0 ACTIVE")
    fakes.answers("node", "0 READY")
    return fakes


def run(fakes: Fakes, *flags: str, verb: str = "run"):
    return fakes.run(SCRIPT, verb, *BASE, "--poll=0", *flags)


def trainings(fakes: Fakes) -> int:
    return sum("worker.sh run" in call[-1] for call in fakes.calls("ssh"))


def dry_run(fakes: Fakes, *flags: str) -> list[list[str]]:
    done = fakes.run(SCRIPT, "run", "--dry-run", *flags)
    assert done.returncode == 0, done.stderr
    assert fakes.calls() == []  # a dry run runs nothing
    return [shlex.split(line) for line in done.stdout.splitlines()]


def remote(call: list[str]) -> list[str]:
    """The words that a worker's shell makes of the command."""
    assert call[-1].startswith("--command=")
    return shlex.split(call[-1].removeprefix("--command="))


def test_dry_run_of_one_slice(fakes):
    create, tar, scp, setup, train = dry_run(fakes, *BASE)
    assert create == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "rb", "--zone=us-z"),
        *("--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--node-id=rb"),
    ]
    assert tar[0] == "tar" and all((REPO / name).exists() for name in tar[6:])
    assert scp[4:7] == ["scp", tar[2], "rb:rb_jax.tgz"]
    assert scp[-1] == setup[-2] == train[-2] == "--worker=all"
    assert remote(setup)[-5:] == ["bash", "rb_jax/tpu/worker.sh", "setup", "tpu", "gcs"]
    words = remote(train)
    flags = words[5].removeprefix("LIBTPU_INIT_ARGS=")
    assert words[:3] == ["bash", "rb_jax/tpu/worker.sh", "run"] and words[4] == "env"
    assert "--xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true" in flags.split()
    assert words[6:] == [
        *("rb-jax", "train", "--config=configs/reason50k_flux.py", "--workdir=gs://b/run"),
        *("--config.mesh.data=1", "--config.mesh.fsdp=-1"),
    ]


def test_dry_run_of_several_slices(fakes):
    flags = ("--slices=3", "--spot", "--project=p", "--internal-ip")
    calls = dry_run(fakes, *BASE, *flags)
    create = calls[0]
    assert (
        create[-3:] == ["--node-count=3", "--node-prefix=rb", "--spot"] and "--project=p" in create
    )
    trainings = [call for call in calls if "worker.sh run" in call[-1]]
    assert [call[5] for call in trainings] == ["rb-0", "rb-1", "rb-2"]
    assert len({call[-1] for call in trainings}) == 1  # every worker runs the same
    assert all("--internal-ip" in call for call in trainings)
    mesh = ["--config.mesh.data=3", "--config.mesh.fsdp=-1", "--config.mesh.slices=3"]
    assert remote(trainings[0])[-3:] == mesh


@pytest.mark.parametrize(
    "workdir, clients",
    [("gs://b/a/b c", "gcs"), ("s3://b/run", "gcs,s3"), ("/nfs/run", "gcs"), ("/gcsx/run", "gcs")],
)
def test_a_workdir_is_passed_on_and_not_mounted(fakes, workdir, clients):
    calls = dry_run(fakes, *BASE, f"--workdir={workdir}")
    assert not [call for call in calls if "worker.sh mount" in call[-1]]
    assert f"--workdir={workdir}" in remote(calls[-1])
    assert remote(calls[-2])[-2:] == ["tpu", clients]


@pytest.mark.parametrize("workdir", ["gs://runs/a", "/nfs/run"])
@pytest.mark.parametrize("flag, names", [("b", ["b"]), ("my-b.1,b_2", ["my-b.1", "b_2"])])
def test_buckets_of_data_are_mounted(fakes, workdir, flag, names):
    calls = dry_run(fakes, *BASE, f"--workdir={workdir}", f"--mount={flag}")
    assert remote(calls[-2]) == ["bash", "rb_jax/tpu/worker.sh", "mount", *names]
    assert f"--workdir={workdir}" in remote(calls[-1])


def test_arguments_survive_two_shells(fakes):
    odd = ["--config.train.trainable=('mmdit/**', \"x y\")", "--config.a=$HOME `id` \\ ; & é", ""]
    (train,) = dry_run(fakes, *BASE, "--config=my configs/a b.py", "--", *odd)[-1:]
    words = remote(train)
    assert words[-3:] == odd and "--config=my configs/a b.py" in words


def test_own_mesh_is_kept(fakes):
    own = ["--config.mesh.data=2", "--config.mesh.fsdp=8", "--config.mesh.tensor=-1"]
    (train,) = dry_run(fakes, *BASE, "--slices=2", "--", *own)[-1:]
    mesh = [word for word in remote(train) if word.startswith("--config.mesh")]
    assert mesh == ["--config.mesh.slices=2", *own]


def test_best_effort_is_alpha(fakes):
    create = dry_run(fakes, *BASE, "--best-effort", "--create-flags=--network=n --tags=t")[0]
    assert create[:4] == ["gcloud", "alpha", "compute", "tpus"]
    assert create[-3:] == ["--best-effort", "--network=n", "--tags=t"]


@pytest.mark.parametrize(
    "kind, image",
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_image_of_the_type(fakes, kind, image):
    create = dry_run(
        fakes, "--name=a", "--zone=z", "--workdir=gs://b/r", f"--accelerator-type={kind}"
    )
    assert f"--runtime-version={image}" in create[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--zone=z"], "--name=VALUE is required"),
        (["--name=a", "--zone=z"], "--accelerator-type=VALUE is required"),
        (["--name=a", "--zone=z", "--accelerator-type=v5p-8"], "--workdir=VALUE is required"),
        ([*BASE, "--slices=two"], "--slices=two: must be a whole number"),
        ([*BASE, "--slices=0"], "--slices=0: must be at least 1"),
        ([*BASE, "--name"], "--name needs a value"),
        ([*BASE, "--colour=red"], "unknown flag --colour"),
        ([*BASE, "--config.train.steps=5"], "unknown flag --config.train.steps"),
        ([*BASE, "loose"], "unexpected argument 'loose'"),
        (["--name=a", "--zone=z", "--accelerator-type=tpu7x-8"], "on GKE only"),
        (["--name=a", "--zone=z", "--accelerator-type=h100-8"], "must be like v4-8"),
        (["--name=a", "--zone=z", "--accelerator-type=v9-8"], "unknown chip 'v9-8'"),
        (
            [*BASE, "--workdir=gs://b"],
            "--workdir=gs://b: must be gs://BUCKET/RUN, s3://BUCKET/RUN or a path",
        ),
        ([*BASE, "--workdir=s3:///run"], "must be gs://BUCKET/RUN, s3://BUCKET/RUN or a path"),
        ([*BASE, "--workdir=gs://b//"], "must be gs://BUCKET/RUN, s3://BUCKET/RUN or a path"),
        ([*BASE, "--workdir=/gcs/b/run", "--mount=b"], "must be gs://b/run"),
        ([*BASE, "--mount=gs://b"], "--mount=gs://b: must be BUCKET"),
        ([*BASE, "--mount=a,,b"], "must be BUCKET or BUCKET,BUCKET"),
    ],
)
def test_bad_flags(fakes, flags, message):
    done = fakes.run(SCRIPT, "run", *flags)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and fakes.calls() == []


def test_preempted_starts_again_without_counting(fakes):
    fakes.answers("train", 75, 75, 0)
    done = run(fakes, "--max-failures=0")
    assert done.returncode == 0, done.stderr
    assert trainings(fakes) == 3
    assert len(fakes.calls("scp")) == 1 and not fakes.calls("create")
    attempts = {remote(c)[3] for c in fakes.calls("ssh") if "worker.sh run" in c[-1]}
    assert len(attempts) == 3  # each is a new one to the workers


def test_buckets_are_mounted_before_each_attempt(fakes):
    fakes.answers("mount", 1, 0)
    fakes.answers("train", 75, 0)
    assert run(fakes, "--slices=2", "--max-failures=1", "--mount=b").returncode == 0
    words = [remote(call)[2:4] for call in fakes.calls("ssh") if "worker.sh setup" not in call[-1]]
    mounts = [word == ["mount", "b"] for word in words]
    # One of the two fails at first, so nothing trains; then two attempts on both slices.
    assert mounts[:4] == [True] * 4 and mounts.count(True) == 6 and mounts.count(False) == 4


@pytest.mark.parametrize("code", [2, 70])
def test_what_would_fail_again_stops(fakes, code):
    fakes.answers("train", code)
    assert run(fakes).returncode == code
    assert trainings(fakes) == 1


def test_failures_are_bounded(fakes):
    fakes.answers("train", 1, 75, 9)
    done = run(fakes, "--max-failures=2")
    assert done.returncode == 9 and "gave up after 2 restarts" in done.stderr
    assert trainings(fakes) == 4  # the preemption in between did not count


def test_a_failure_is_forgiven(fakes):
    fakes.answers("train", 134, 0)
    assert run(fakes, "--max-failures=1").returncode == 0


def test_missing_resource_is_created(fakes):
    missing = "1 ERROR: NOT_FOUND: Resource 'rb' was not found."
    fakes.answers("state", missing, "0 WAITING_FOR_RESOURCES", "0 PROVISIONING", "0 ACTIVE")
    fakes.answers("node", "0 CREATING", "0 READY")
    assert run(fakes).returncode == 0
    assert len(fakes.calls("create")) == 1 and trainings(fakes) == 1 and not fakes.calls("delete")


def test_preempted_resource_is_created_anew(fakes):
    gone = "1 NOT_FOUND"
    fakes.answers("state", "0 ACTIVE", "0 SUSPENDED", gone, "0 ACTIVE")
    fakes.answers("train", 75, 0)
    assert run(fakes, "--spot", "--max-failures=0").returncode == 0
    assert len(fakes.calls("delete", "--force", "--quiet")) == 1
    assert len(fakes.calls("create", "--spot")) == 1
    assert len(fakes.calls("scp")) == 2  # the new machines are empty


def test_lost_machines_are_no_failure(fakes):
    # The connection breaks, and the resource still looks active but its machine does not.
    fakes.answers("train", 255, 0)
    fakes.answers("node", "0 READY", "0 PREEMPTED", "0 PREEMPTED", "0 READY")
    fakes.answers("state", "0 ACTIVE", "0 ACTIVE", "0 ACTIVE", "1 NOT_FOUND", "0 ACTIVE")
    assert run(fakes, "--max-failures=0").returncode == 0
    assert len(fakes.calls("delete")) == len(fakes.calls("create")) == 1


def test_a_network_that_is_down_deletes_nothing(fakes):
    fakes.answers("node", "1 network is unreachable", "1 network is unreachable", "0 READY")
    assert run(fakes).returncode == 0
    fakes.answers("state", "1 could not reach the server")
    done = run(fakes)
    assert done.returncode == 2 and "could not reach the server" in done.stderr
    assert not fakes.calls("delete") and not fakes.calls("create")


def test_allocation_that_fails_is_bounded(fakes):
    fakes.answers("state", "0 FAILED")
    done = run(fakes, "--max-failures=2")
    assert done.returncode == 1 and "could not be allocated" in done.stderr
    assert trainings(fakes) == 0 and len(fakes.calls("delete")) == 3


def test_setup_that_fails_is_bounded(fakes):
    fakes.answers("setup", "1")
    assert run(fakes, "--max-failures=1").returncode == 1
    assert trainings(fakes) == 0 and len(fakes.calls("scp")) == 2


@pytest.mark.parametrize(
    "codes, result",
    [((134, 75), 75), ((75, 2), 2), ((2, 134), 2), ((0, 7), 7), ((134, 70), 70), ((70, 75), 70)],
)
def test_code_of_several_slices(fakes, codes, result):
    for index, code in enumerate(codes):
        fakes.answers(f"train-rb-{index}", code)
    assert run(fakes, "--slices=2", verb="train").returncode == result


def test_status_and_stop(fakes):
    done = run(fakes, "--slices=2", verb="status")
    assert re.findall(r"\S+", done.stdout) == ["rb", "ACTIVE", "rb-0", "READY", "rb-1", "READY"]
    assert run(fakes, "--slices=2", verb="stop").returncode == 0
    stops = fakes.calls("--command=bash rb_jax/tpu/worker.sh stop")
    assert sorted(call[5] for call in stops) == ["rb-0", "rb-1"]


def test_help_and_verbs(fakes):
    done = fakes.run(SCRIPT, "--help")
    assert done.returncode == 0 and "--max-failures=N" in done.stdout
    assert fakes.run(SCRIPT, "fly").returncode == 2
