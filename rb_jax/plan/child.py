"""The child process of ``rb_jax.plan.compiling``: lowers, compiles, notes what came out."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rb_jax.errors import InputError
from rb_jax.plan import topologies
from rb_jax.plan.analysis import FACTS, HLO, REFUSED
from rb_jax.runtime.jax_internals import allow_absent_cudnn
from rb_jax.sharding import xla_flags


def main() -> int:
    job = json.loads(sys.argv[1])
    try:
        run(job)
    except Exception as error:  # noqa: BLE001 - everything becomes one line for the parent
        import traceback

        traceback.print_exc()
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        print(f"rb_jax: {kind}{text[:600]}", file=sys.stderr)
        return REFUSED if isinstance(error, InputError) else 1
    return 0


def run(job: dict[str, Any]) -> None:
    """Compiles ``job`` and leaves its optimized HLO and its facts in the job's folder."""
    folder = Path(job["folder"])
    target = topologies.parse(job["topology"], job["slices"])
    devices = topologies.devices(target)
    if not target.chip.is_tpu:
        allow_absent_cudnn(topologies.CUDNN)
    begin = time.perf_counter()
    lowered = function(job["build"])(devices, **job["kwargs"])
    lower_s = time.perf_counter() - begin
    begin = time.perf_counter()
    compiled = lowered.compile(xla_flags.options(devices[0].device_kind))
    compile_s = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    facts = describe(compiled, devices) | {
        "lower_s": lower_s,
        "compile_s": compile_s,
        "memory": {
            "peak": memory.peak_memory_in_bytes,
            "argument": memory.argument_size_in_bytes,
            "output": memory.output_size_in_bytes,
            "alias": memory.alias_size_in_bytes,
            "temp": memory.temp_size_in_bytes,
        },
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_bytes": usage.ru_maxrss * 1024,
    }
    (folder / HLO).write_text(optimized(compiled, folder), encoding="utf-8")
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def function(name: str) -> Any:
    """``package.module:function``."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise InputError(f"{name!r}: write package.module:function")
    return getattr(importlib.import_module(module), attribute)


def optimized(compiled: Any, folder: Path) -> str:
    """The optimized HLO; where JAX cannot read it back, as the compiler dumped it."""
    try:
        return compiled.as_text()
    except Exception:
        dumps = sorted(folder.glob("*TLP-hlo.txt"), key=lambda path: path.stat().st_size)
        if not dumps:
            raise
        return dumps[-1].read_text(encoding="utf-8")


def describe(compiled: Any, devices: list[Any]) -> dict[str, Any]:
    """Mesh axes and places of the devices in the program's order."""
    import jax
    from jax.sharding import Mesh, NamedSharding

    leaves = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    meshes = [leaf.mesh for leaf in leaves if isinstance(leaf, NamedSharding)]
    axes = {"devices": len(devices)}
    if meshes and isinstance(meshes[0], Mesh):
        axes = {str(k): int(v) for k, v in meshes[0].shape.items()}
        devices = list(np.asarray(meshes[0].devices).flat)
    return {
        "axes": axes,
        "coords": [list(getattr(d, "coords", None) or (0,)) for d in devices],
        "slices": [getattr(d, "slice_index", None) or 0 for d in devices],
        "hosts": [d.process_index for d in devices],
    }


if __name__ == "__main__":
    raise SystemExit(main())
