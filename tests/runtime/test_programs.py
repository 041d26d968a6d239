"""Programs of earlier processes are found without tracing, for the same things alone."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from rb_jax.runtime import compiling, programs
folder, factor, size, dtype, double = sys.argv[1:]
compiling.keep_programs(folder)
if double == "precise":
    jax.config.update("jax_default_matmul_precision", "highest")
traced = []
def function(tree):
    traced.append(True)
    return {"y": jnp.tanh(tree["x"] @ tree["x"].T) * float(factor)}
args = {"x": jnp.asarray(np.arange(2 * int(size)).reshape(2, -1) / 99, dtype)}
run = compiling.compiled(
    lambda: jax.jit(function).lower(args), "a product", None, (factor, args)
)
value = programs.recalled("a number", factor, lambda: traced.append(True) or 4.5)
assert value == 4.5
print(len(traced), float(run(args)["y"].sum()))
"""


def run(folder, factor="2", size="3", dtype="float32", double=""):
    """How much was traced or computed, and the result."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    words = [str(folder), factor, size, dtype, double]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=clean | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    traced, value = done.stdout.split()
    return int(traced), float(value)


def test_the_second_process_traces_nothing(tmp_path):
    first, value = run(tmp_path)
    assert first == 2
    assert run(tmp_path) == (0, value)
    assert run("off") == (2, value)


@pytest.mark.parametrize(
    "other", [{"factor": "3"}, {"size": "4"}, {"dtype": "float16"}, {"double": "precise"}]
)
def test_other_things_are_other_programs(tmp_path, other):
    run(tmp_path)
    traced, value = run(tmp_path, **other)
    assert traced > 0
    assert run("off", **other)[1] == value


def test_damaged_programs_are_made_again(tmp_path):
    value = run(tmp_path)[1]
    kept = list(tmp_path.glob("rb_jax-*-cache"))
    assert len(kept) == 2
    for path in kept:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert run(tmp_path) == (2, value)
