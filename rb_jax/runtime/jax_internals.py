"""The only place that imports from ``jax._src``: what JAX has no public way to ask or do.

tests/runtime/test_jax_internals.py fails when a new JAX has moved them.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def running_on_cloud_tpu() -> bool:
    """Whether JAX found TPU chips, and a library that drives them, when it was imported.

    Its cluster detection decides by the same flag; to ask for devices would start the backend,
    which must not happen before ``jax.distributed.initialize``.
    """
    from jax._src import cloud_tpu_init

    return bool(cloud_tpu_init.running_in_cloud_tpu_vm)


def allow_absent_cudnn(version: tuple[int, int, int]) -> None:
    """Lets cuDNN attention be lowered without cuDNN, as if there were this version.

    Lowering asks the library for its version, although XLA compiles for a target that is told. No
    setting replaces the question.
    """
    from jax._src.cudnn import fused_attention_stablehlo as attention

    try:
        attention.check_cudnn_version()
    except RuntimeError:
        major, minor, patch = version
        attention.check_cudnn_version = lambda: major * 10000 + minor * 100 + patch


def detect_slurm() -> tuple[str, int, int, list[int]]:
    """Address, count, index and local devices, as JAX's cluster detection finds them on Slurm.

    ``jax.distributed.initialize`` uses what this finds at once, and does not show it.
    """
    from jax._src.clusters import ClusterEnv

    detect = ClusterEnv.auto_detect_unset_distributed_params
    address, count, index, devices = detect(None, None, None, None, "slurm", 10)
    assert address is not None and count is not None and index is not None and devices is not None
    return str(address), count, index, list(devices)


CACHE, ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"


def program_store() -> Any:
    """What JAX keeps compiled programs in, with ``get(name)`` and ``put(name, bytes)``.

    None where it is off, and then no backend is started.
    """
    from jax._src import compilation_cache

    if not (jax.config.values[CACHE] and jax.config.values[ENABLED]):
        return None
    return compilation_cache._get_cache(jax.devices()[0].client)


def compiler_fingerprint() -> str:
    """Changes with JAX's version, XLA's flags, and whatever of the devices compiled code needs."""
    from jax._src import cache_key, compiler

    module: Any = jax.jit(lambda: 0).lower().compiler_ir()
    devices = np.array(jax.devices())
    options = compiler.get_compile_options(num_replicas=1, num_partitions=1)
    return cache_key.get(module, devices, options, jax.devices()[0].client)


def coordination_client() -> Any:
    """The client of the service that joins the processes, or None for a process on its own.

    It keeps keys and values, of which JAX has no public use.
    """
    from jax._src import distributed

    return distributed.global_state.client
