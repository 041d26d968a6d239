"""The JobSet and the xpk launcher: what they ask for, and what they do about exit codes."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys

import jsonschema
import pytest
import yaml

from rb_jax.sharding import xla_flags
from tests.tpu.jobset_schema import JOBSET
from tests.tpu.launchers import TPU, Fakes, load

render = load("render")
FLAGS = ("--name=rb", "--image=registry/rb:1", "--workdir=gs://b/run")
XPK = ("--cluster=c", "--zone=z", "--name=rb", "--image=i", "--workdir=/mounted/my run")


def jobset(capsys, *argv: str) -> dict:
    assert render.main([*FLAGS, *argv]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    jsonschema.Draft202012Validator(JOBSET).validate(document)
    return document


def parts(document: dict) -> tuple[dict, dict, dict, dict]:
    """The replicated job, its job, its pod and its container."""
    (replicated,) = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    return replicated, job, pod, pod["containers"][0]


@pytest.mark.parametrize(
    "tpu, topology, label, hosts",
    [
        ("v4", "2x2x1", "tpu-v4-podslice", 1),
        ("v4", "4x4x8", "tpu-v4-podslice", 32),
        ("v5e", "1x1", "tpu-v5-lite-podslice", 1),
        ("v5e", "2x4", "tpu-v5-lite-podslice", 1),
        ("v5e", "16x16", "tpu-v5-lite-podslice", 64),
        ("v5p", "2x2x4", "tpu-v5p-slice", 4),
        ("v5p", "4x4x4", "tpu-v5p-slice", 16),
        ("v6e", "2x2", "tpu-v6e-slice", 1),
        ("v6e", "4x8", "tpu-v6e-slice", 8),
        ("tpu7x", "4x4x4", "tpu7x", 16),
    ],
)
def test_hosts_and_chips_make_the_topology(capsys, tpu, topology, label, hosts):
    _, job, pod, container = parts(jobset(capsys, f"--tpu={tpu}", f"--topology={topology}"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts
    assert hosts * chips == math.prod(int(side) for side in topology.split("x"))
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    (flags,) = container["env"]
    assert flags == {
        "name": "LIBTPU_INIT_ARGS",
        "value": " ".join(xla_flags.flags(tpu)),
    }


def test_2x4_on_two_hosts(capsys):
    argv = ("--tpu=v6e", "--topology=2x4", "--chips-per-host=4")
    _, job, _, container = parts(jobset(capsys, *argv))
    assert (job["parallelism"], container["resources"]["limits"]["google.com/tpu"]) == (2, 4)


def test_slices_spot_and_claim(capsys):
    argv = ("--tpu=v5p", "--topology=4x4x4", "--slices=4", "--spot", "--max-restarts=7")
    document = jobset(capsys, *argv, "--claim=disk", "--workdir=/data/run", "--service-account=sa")
    replicated, _, pod, container = parts(document)
    assert replicated["replicas"] == 4 and document["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "cloud.google.com/gke-spot" in [t["key"] for t in pod["tolerations"]]
    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert (
        volume["name"] == mount["name"] and volume["persistentVolumeClaim"]["claimName"] == "disk"
    )
    assert "--workdir=/data/run".startswith(f"--workdir={mount['mountPath']}/")
    assert pod["serviceAccountName"] == "sa"
    mesh = ["--config.mesh.data=4", "--config.mesh.fsdp=-1", "--config.mesh.slices=4"]
    assert container["args"][-3:] == mesh


def pod_annotations(document: dict) -> dict:
    _, job, _, _ = parts(document)
    return job["template"]["metadata"]["annotations"]


@pytest.mark.parametrize("workdir", ["gs://my-b.ucket/a/b c", "s3://b/run"])
def test_a_workdir_in_a_bucket_is_passed_on_and_not_mounted(capsys, workdir):
    document = jobset(capsys, "--tpu=v5p", "--topology=4x4x4", f"--workdir={workdir}")
    _, _, pod, container = parts(document)
    assert f"--workdir={workdir}" in container["args"]
    assert pod["volumes"] == container["volumeMounts"] == [] and pod_annotations(document) == {}


def test_a_bucket_of_data_is_a_folder_of_the_pods(capsys):
    argv = ("--tpu=v5p", "--topology=4x4x4", "--workdir=gs://b/run", "--mount=my-b.ucket")
    document = jobset(capsys, *argv)
    _, _, pod, container = parts(document)
    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": "/gcs/my-b.ucket"}
    attributes = volume["csi"]["volumeAttributes"]
    assert attributes["bucketName"] == "my-b.ucket"
    worker = (TPU / "worker.sh").read_text()
    (flags,) = re.findall(r"^fuse_flags=\((.*)\)$", worker, re.MULTILINE)
    assert [f"--{o}" for o in attributes["mountOptions"].split(",")] == flags.split()
    assert "--workdir=gs://b/run" in container["args"]
    assert pod_annotations(document)["gke-gcsfuse/volumes"] == "true"


def test_a_claim_beside_several_buckets(capsys):
    flags = ("--tpu=v5e", "--topology=4x4", "--claim=disk", "--workdir=/data/run")
    both = jobset(capsys, *flags, "--mount=one,two", "--mount=three", "--mount=one")
    _, _, pod, container = parts(both)
    names = [volume["name"] for volume in pod["volumes"]]
    assert names == [mount["name"] for mount in container["volumeMounts"]]
    assert len(set(names)) == 4
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert paths == ["/data", "/gcs/one", "/gcs/two", "/gcs/three"]
    buckets = [volume["csi"]["volumeAttributes"]["bucketName"] for volume in pod["volumes"][1:]]
    assert buckets == ["one", "two", "three"]
    claim_only = jobset(capsys, *flags)
    assert pod_annotations(claim_only) == {} and pod_annotations(both) != {}


def test_arguments_survive(capsys):
    odd = [
        "--config.a=x \"y\" 'z': {#}",
        "--config.b=${name} $(HOME) $$ é\\",
        "--config.mesh.fsdp=8",
    ]
    _, _, _, container = parts(jobset(capsys, "--tpu=v5e", "--topology=4x4", "--", *odd))
    assert container["command"] == ["rb-jax", "train"]
    expanded = [arg.replace("$$", "$") for arg in container["args"]]  # as Kubernetes does
    assert expanded[-3:] == odd and "--config.mesh.data=1" not in expanded


def outcome(document: dict, exit_code: int, condition: str | None = None) -> str:
    """What becomes of the JobSet when a pod fails, by the rules of Kubernetes and JobSet."""
    _, job, _, container = parts(document)
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        if codes and codes["containerName"] == container["name"]:
            matches = (exit_code in codes["values"]) == (codes["operator"] == "In")
            what = f"Container {container['name']} for pod ns/p failed with exit code {exit_code}"
        else:
            matches = condition in [c["type"] for c in rule.get("onPodConditions", [])]
            what = f"Pod ns/p has condition {condition}"
        if matches and rule["action"] == "FailJob":
            reason = "PodFailurePolicy"
            message = f"{what} matching FailJob rule at index {index}"
            break
    for rule in document["spec"]["failurePolicy"]["rules"]:
        reasons = rule.get("onJobFailureReasons", [reason])
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in reasons and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    "exit_code, condition, action",
    [
        (75, None, "RestartJobSetAndIgnoreMaxRestarts"),
        (75, "DisruptionTarget", "RestartJobSetAndIgnoreMaxRestarts"),
        (137, "DisruptionTarget", "RestartJobSetAndIgnoreMaxRestarts"),
        (2, None, "FailJobSet"),
        (70, None, "FailJobSet"),
        (170, None, "RestartJobSet"),
        (1, None, "RestartJobSet"),
        (134, None, "RestartJobSet"),
        (137, None, "RestartJobSet"),
        (22, None, "RestartJobSet"),
    ],
)
def test_what_becomes_of_an_exit_code(capsys, exit_code, condition, action):
    document = jobset(capsys, "--tpu=v5p", "--topology=4x4x4", "--slices=2")
    assert outcome(document, exit_code, condition) == action


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--tpu=v5p", "--topology=4x4"], "--topology=4x4: v5p has 2x2x1"),
        (["--tpu=v5p", "--topology=2x4x8"], "multiples of 4"),
        (["--tpu=v5p", "--topology=0x4x4"], "multiples of 4"),
        (["--tpu=v5e", "--topology=4x4x4"], "v5e has 1x1, 2x2"),
        (["--tpu=v6e", "--topology=big"], "must be like 4x4"),
        (["--tpu=v5p", "--topology=4x4x4", "--chips-per-host=8"], "v5p 4x4x4 has 4"),
        (["--tpu=v5p", "--topology=4x4x4", "--slices=0"], "--slices must be at least 1"),
        (["--tpu=v5p", "--topology=4x4x4", "--workdir=runs/a"], "pods share gs://"),
        (["--tpu=v5p", "--topology=4x4x4", "--workdir=/data/a"], "by --claim=NAME /data/"),
        (["--tpu=v5p", "--topology=4x4x4", "--workdir=gs://b"], "pods share gs://BUCKET/RUN"),
        (["--tpu=v5p", "--topology=4x4x4", "--workdir=gs:///a"], "pods share gs://BUCKET/RUN"),
        (["--tpu=v5p", "--topology=4x4x4", "--workdir=gs://b//"], "pods share gs://BUCKET/RUN"),
        (["--tpu=v5p", "--topology=4x4x4", "--workdir=/gcs/b/a", "--mount=b"], "pods share gs://"),
        (["--tpu=v5p", "--topology=4x4x4", "--mount=gs://b"], "--mount=gs://b: must be the name"),
        (["--tpu=v5p", "--topology=4x4x4", "--mount=a,,b"], "--mount=: must be the name"),
        (["--tpu=v5p", "--topology=4x4x4", "--name=Rb_1"], "--name=Rb_1: lower-case"),
    ],
)
def test_bad_values(capsys, argv, message):
    assert render.main([*FLAGS, *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and captured.err.count("\n") == 1


def test_variables_without_a_value_and_values_without_a_variable():
    assert render.render("# ${x}\na: ${one}\n", {"one": "1 2"}) == '# ${x}\na: "1 2"\n'
    with pytest.raises(render.RenderError, match=r"\$\{two\} has no value"):
        render.render("a: ${one} ${two}", {"one": 1})
    with pytest.raises(render.RenderError, match=r"has no \$\{three\}"):
        render.render("a: ${one}", {"one": 1, "three": 3})


def test_runs_as_a_script():
    argv = [sys.executable, str(TPU / "render.py"), *FLAGS, "--tpu=v5e", "--topology=4x4"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["kind"] == "JobSet"
    missing = subprocess.run(argv[:2], capture_output=True, text=True, timeout=60)
    assert missing.returncode == 2 and "--name" in missing.stderr


def test_xpk(tmp_path):
    fakes = Fakes(tmp_path)
    flags = ("--tpu-type=v5p-128", "--slices=2", "--spot", "--project=p")
    done = fakes.run(TPU / "xpk.sh", *XPK, *flags, "--dry-run", "--", "--config.a=b  c")
    assert done.returncode == 0 and fakes.calls() == []
    assert fakes.run(TPU / "xpk.sh", *XPK, *flags, "--", "--config.a=b  c").returncode == 0
    (call,) = fakes.calls("xpk")
    assert shlex.split(done.stdout) == call
    assert call[:4] == ["xpk", "workload", "create", "--cluster=c"] and call[-1] == "--spot"
    assert {"--num-slices=2", "--tpu-type=v5p-128", "--project=p", "--workload=rb"} <= set(call)
    assert {"--restart-on-exit-codes=75,69", "--max-restarts=50"} <= set(call)
    (command,) = [word for word in call if word.startswith("--command=")]
    words = shlex.split(command.removeprefix("--command="))
    assert words[:3] == ["exec", "rb-jax", "train"] and words[-1] == "--config.a=b  c"
    assert "--workdir=/mounted/my run" in words and "--config.mesh.slices=2" in words


@pytest.mark.parametrize("workdir", ["gs://b/my run", "s3://b/run"])
def test_xpk_passes_a_workdir_in_a_bucket_on(tmp_path, workdir):
    fakes = Fakes(tmp_path)
    flags = ("--tpu-type=v5p-8", f"--workdir={workdir}")
    assert fakes.run(TPU / "xpk.sh", *XPK, *flags).returncode == 0
    ((*_, command),) = fakes.calls("xpk")
    assert f"--workdir={workdir}" in shlex.split(command.removeprefix("--command="))


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--tpu-type=VALUE is required"),
        (["--tpu-type=h100-8"], "not a TPU"),
        (["--tpu-type=v5p-8", "--slices=x"], "must be a whole number"),
        (["--tpu-type=v5p-8", "--workdir=runs/a"], "storage that xpk mounts"),
        (["--tpu-type=v5p-8", "--workdir=gs://b"], "must be gs://BUCKET/RUN, s3://BUCKET/RUN"),
    ],
)
def test_xpk_bad_flags(tmp_path, flags, message):
    fakes = Fakes(tmp_path)
    done = fakes.run(TPU / "xpk.sh", *XPK, *flags)
    assert done.returncode == 2 and message in done.stderr and fakes.calls() == []
