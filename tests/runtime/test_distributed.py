"""Which processes belong together, told by flags or by what schedulers put in the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from rb_jax.errors import InputError
from rb_jax.runtime.distributed import plan

ADDRESS = "host-0:1234"
JAX = {"JAX_COORDINATOR_ADDRESS": ADDRESS}
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
}
A_NODE = SLURM | {"SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_GPUS_ON_NODE": "4"}
POD = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}
SINGLE = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "a",
}


def explicit(index, count):
    return {
        "coordinator_address": ADDRESS,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def by(method, **more):
    return {"cluster_detection_method": method} | more


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (JAX | {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}, explicit(3, 4)),
        (JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (JAX | SLURM, by("slurm", coordinator_address=ADDRESS)),
        (JAX | SLURM | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, explicit(0, 2)),
        # Slurm: tasks of srun, not the script that calls it; without GPUs JAX decides on devices.
        (SLURM, by("slurm")),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, None),
        # A task for each node has all its GPUs, a task for each GPU the one it is bound to or its
        # own of all, and two tasks share.
        (A_NODE, by("slurm", local_device_ids=[0, 1, 2, 3])),
        (A_NODE | {"CUDA_VISIBLE_DEVICES": "2,3"}, by("slurm", local_device_ids=[0, 1])),
        (
            SLURM | {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "2"},
            by("slurm", local_device_ids=[0]),
        ),
        (
            SLURM | {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            by("slurm", local_device_ids=[2]),
        ),
        (
            A_NODE | {"SLURM_NTASKS": "4", "SLURM_LOCALID": "1"},
            by("slurm", local_device_ids=[2, 3]),
        ),
        (A_NODE | {"JAX_LOCAL_DEVICE_IDS": "1"}, by("slurm")),
        # Cloud TPU: hosts of a slice, several slices, and neither.
        (POD, by("gketpu")),
        (SINGLE, None),
        (SINGLE | SLICES, by("gketpu")),
        (POD | SLICES, by("gketpu")),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_ID": "0"}, by("gketpu")),
        (SLICES, by("gcetpu")),
        (POD | {"JAX_PLATFORMS": "cpu"}, None),
        (POD | {"JAX_PLATFORMS": ""}, by("gketpu")),
    ],
)
def test_what_the_environment_says(environ, expected):
    assert plan(environ) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, by("gcetpu")),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"JAX_PLATFORMS": "cpu"}, None),
        (SINGLE, None),
        (POD, by("gketpu")),
    ],
)
def test_on_a_machine_with_tpu_chips(environ, expected):
    assert plan(environ, tpu_chips=True) == expected


def test_flags_come_first():
    assert plan(POD | SLURM | JAX, ADDRESS, 2, 1) == explicit(1, 2)
    assert plan(POD, ADDRESS, 1, 0) is None


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        ({}, (ADDRESS, 2, None), "--process_id not given"),
        ({}, (None, None, 0), "--coordinator_address and --num_processes not given"),
        ({}, ("host", 2, 0), "--coordinator_address=host: must be HOST:PORT"),
        ({}, (ADDRESS, 0, 0), "--num_processes=0: must be at least 1"),
        ({}, (ADDRESS, 2, 2), "--process_id=2: must be from 0 to 1"),
        (JAX, (None, None, None), "JAX_NUM_PROCESSES and JAX_PROCESS_ID not given"),
        (JAX | {"JAX_NUM_PROCESSES": "2"}, (None, None, None), "JAX_PROCESS_ID not given"),
        (SLURM | {"SLURM_NTASKS": "two"}, (None, None, None), "SLURM_NTASKS=two: must be a number"),
    ],
)
def test_what_makes_no_sense_is_refused(environ, flags, message):
    with pytest.raises(InputError, match=message):
        plan(environ, *flags)


def test_the_command_says_so_in_one_line(tmp_path):
    flags = ["--config=configs/reasonworld.py", f"--workdir={tmp_path}", "--num_processes=2"]
    ended = subprocess.run(
        [sys.executable, "-m", "rb_jax", "train", *flags, "--process_id=0"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and "--coordinator_address not given" in ended.stderr
