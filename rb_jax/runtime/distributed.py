"""Starting one program on several processes: what joins them, and whether anything does.

Flags decide first, then JAX_COORDINATOR_ADDRESS, Slurm, and Cloud TPU (pod slices, several slices,
GKE). Finding addresses and numbers is left to JAX's own cluster detection.
"""

from __future__ import annotations

import atexit
import re
import signal
import threading
from collections.abc import Mapping
from typing import Any

import jax

from rb_jax.errors import InputError, reason
from rb_jax.runtime import logging
from rb_jax.runtime.exits import EXIT_HUNG, RunError
from rb_jax.runtime.jax_internals import running_on_cloud_tpu

# All of these are there in a process that srun started, as JAX's detection expects.
SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
# Once training is done the processes leave together, so that one missing is one that failed.
SHUTDOWN_SECONDS = 60


def start(
    environ: Mapping[str, str],
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
) -> None:
    """Joins this process with the others that ``plan`` finds, if any.

    Must run before JAX looks for devices. Raises InputError when the plan does, and when what it
    found cannot be used, RunError when the others cannot be reached; JAX itself aborts the process
    if they do not come in five minutes.
    """
    arguments = plan(environ, address, count, index, tpu_chips=running_on_cloud_tpu())
    if arguments is None:
        return
    # JAX's own service would swallow SIGTERM also where no step can end; ours: runtime/stopping.py.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    except (ValueError, RuntimeError, OSError) as error:
        text = f"the processes cannot be joined: {reason(error)}"
        if isinstance(error, ValueError):
            raise InputError(text) from error
        raise RunError(EXIT_HUNG, f"{text}; start all of them again") from error
    logging.name_process(jax.process_index(), jax.process_count())
    atexit.register(_ignore_late_signals)


def plan(
    environ: Mapping[str, str],
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    tpu_chips: bool = False,
) -> dict[str, Any] | None:
    """The arguments of ``jax.distributed.initialize``, or None for a process on its own.

    ``address``, ``count`` and ``index`` are the command's flags: all or none. ``tpu_chips`` says
    whether this machine has any. Raises InputError when a part is missing or makes no sense.
    """
    flags = {"--coordinator_address": address, "--num_processes": count, "--process_id": index}
    if any(value is not None for value in flags.values()):
        return _explicit(flags)
    method = _scheduler(environ, tpu_chips)
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        return method
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if method is not None and not any(name in environ for name in names):
        return method | {"coordinator_address": address}
    numbers = {name: _number(environ, name) if name in environ else None for name in names}
    return _explicit({"JAX_COORDINATOR_ADDRESS": address} | numbers)


def _explicit(parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """From an address, a number of processes and this one's place, each under its name."""
    missing = [name for name, value in parts.items() if value is None]
    if missing:
        raise InputError(f"{', '.join(parts)} go together; {' and '.join(missing)} not given")
    (where, address), (many, count), (which, index) = parts.items()
    if not re.fullmatch(r".+:\d+", address):
        raise InputError(f"{where}={address}: must be HOST:PORT")
    if count < 1:
        raise InputError(f"{many}={count}: must be at least 1")
    if not 0 <= index < count:
        raise InputError(f"{which}={index}: must be from 0 to {count - 1}")
    if count == 1:
        return None
    values = {"coordinator_address": address, "num_processes": count, "process_id": index}
    return values | {"cluster_detection_method": "deactivate"}


def _scheduler(environ: Mapping[str, str], tpu_chips: bool) -> dict[str, Any] | None:
    """What the scheduler that started this process says."""
    if all(name in environ for name in SLURM) and _number(environ, "SLURM_NTASKS") > 1:
        devices = slurm_devices(environ)
        return {"cluster_detection_method": "slurm"} | (
            {} if devices is None else {"local_device_ids": devices}
        )
    if "tpu" not in (environ.get("JAX_PLATFORMS") or "tpu"):
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    slices = _number(environ, "MEGASCALE_NUM_SLICES", "1")
    if hosts:
        many = len(hosts.split(",")) * slices > 1
        return {"cluster_detection_method": "gketpu"} if many else None
    # A Cloud TPU VM without these variables asks its metadata server.
    if (tpu_chips and "TPU_SKIP_MDS_QUERY" not in environ) or slices > 1:
        return {"cluster_detection_method": "gcetpu"}
    return None


def slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that this task sees are its own; None leaves it to JAX.

    JAX takes the one numbered SLURM_LOCALID, which is right only for a task for each GPU that sees
    all of the node's.
    """
    on_node = _number(environ, "SLURM_GPUS_ON_NODE", "0")
    listed = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = len(listed) or on_node
    if not visible or "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    nodes = _number(environ, "SLURM_STEP_NUM_NODES")
    tasks = -(-_number(environ, "SLURM_NTASKS") // nodes)  # on the fullest node
    if visible * tasks <= max(on_node, visible):  # Slurm shows each task only its own
        return list(range(visible))
    share, place = visible // tasks, _number(environ, "SLURM_LOCALID")
    return list(range(place * share, (place + 1) * share)) if share else None


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    text = environ.get(name) or default
    if not text.isdecimal():
        raise InputError(f"{name}={text}: must be a number")
    return int(text)


def _ignore_late_signals() -> None:
    """Everything is written; ending now would fail those that wait for this process to leave."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
