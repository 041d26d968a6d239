"""Every compiler flag is one that the installed compilers know, and the sets of them compile."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from rb_jax.sharding import xla_flags
from tests.tpu.launchers import TPU

README_FLAGS = re.findall(r"--((?:xla|megascale)_\w+)(?:=(\w+))?", (TPU / "README.md").read_text())

# A sharded step with weights that are gathered and gradients that are scattered, for chips that
# need not be there.
TPU_STEP = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
mesh = Mesh(np.array(topology.devices), ("fsdp",))
def like(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))
def loss(weights, x):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)
    return x.astype(jnp.float32).sum()
step = jax.jit(jax.grad(loss)).trace(like((4, 1024, 1024), None, "fsdp"), like((256, 1024), "fsdp"))
step.lower(lowering_platforms=("tpu",)).compile()
"""
GPU_STEP = "import jax; jax.devices()"
TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, TPU's compiler, is not installed"
)


def python(code: str, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the compilers read their flags once, and end it if one is wrong."""
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    # Nothing is driven, so another process may use libtpu at the same time.
    alone = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        env={**clean, **alone, **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_libtpu
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_tpu_flags_compile(chip):
    flags = " ".join(xla_flags.flags(chip))
    done = python(TPU_STEP, TOPOLOGIES[chip], LIBTPU_INIT_ARGS=flags)
    assert done.returncode == 0, done.stderr[-2000:]


@needs_libtpu
def test_an_unknown_tpu_flag_is_noticed():
    done = python(TPU_STEP, "v5e:2x2", LIBTPU_INIT_ARGS="--xla_tpu_no_such_flag=true")
    assert done.returncode != 0 and "xla_tpu_no_such_flag" in done.stderr


@needs_libtpu
def test_tpu_flags_of_the_guide():
    names = [(name, value or "0") for name, value in README_FLAGS if "_gpu_" not in name]
    assert names
    flags = " ".join(f"--{name}={value}" for name, value in names)
    code = TPU_STEP.split("mesh =")[0]
    done = python(code, "v5p:2x2x1", LIBTPU_INIT_ARGS=flags)
    assert done.returncode == 0, done.stderr[-2000:]


def test_gpu_flags_are_known():
    guide = [f"--{name}={value or 0}" for name, value in README_FLAGS if "_gpu_" in name]
    assert guide
    flags = {flag for chip in xla_flags.GPUS for flag in xla_flags.flags(chip)} | set(guide)
    done = python(GPU_STEP, XLA_FLAGS=" ".join(flags))
    assert done.returncode == 0, done.stderr[-2000:]
    done = python(GPU_STEP, XLA_FLAGS="--xla_gpu_no_such_flag=true")
    assert done.returncode != 0 and "xla_gpu_no_such_flag" in done.stderr


def test_the_table_is_whole():
    for name, (meaning, values) in xla_flags.FLAGS.items():
        assert meaning and values and set(values) <= set(xla_flags.NAMES), name
        gpu = name.startswith("xla_gpu_")
        assert set(values) <= set(xla_flags.GPUS if gpu else xla_flags.TPUS), name
    assert all(len(xla_flags.flags(chip)) > 5 for chip in xla_flags.NAMES)
    assert set(TOPOLOGIES) == set(xla_flags.TPUS)


def test_flags_that_a_newer_compiler_lacks_are_left_out(monkeypatch):
    """An unknown option ends training where it compiles; jaxlib 0.11 knows three fewer."""
    kept = {}
    for version in ("0.10.2", "0.11.2"):
        monkeypatch.setattr(xla_flags.metadata, "version", lambda _, version=version: version)
        kept[version] = set(xla_flags.options("NVIDIA H200"))
        assert kept[version] == {f[2:].split("=")[0] for f in xla_flags.flags("h200")}
    assert kept["0.10.2"] - kept["0.11.2"] == set(xla_flags.REMOVED)
    assert set(xla_flags.REMOVED) <= set(xla_flags.FLAGS)


def test_command_line(capsys):
    assert xla_flags.main(["v5litepod-16"]) == 0
    assert capsys.readouterr().out.split() == xla_flags.flags("v5e")
    assert xla_flags.main(["h200", "--variable"]) == 0
    assert capsys.readouterr().out == "XLA_FLAGS\n"
    assert xla_flags.main(["v5p-8", "--variable"]) == 0
    assert capsys.readouterr().out == "LIBTPU_INIT_ARGS\n"
    assert xla_flags.main(["p100"]) == 2
    assert "unknown chip 'p100'" in capsys.readouterr().err
    assert xla_flags.main(["--explain"]) == 0
    explained = capsys.readouterr().out
    assert all(f"--{name}\n" in explained for name in xla_flags.FLAGS)
    assert "true on v5p v6e tpu7x" in explained
