"""Private parts of JAX that are used are still there; and nothing else uses any."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import rb_jax
from rb_jax.runtime import jax_internals

ROOT = Path(rb_jax.__file__).parents[1]


def test_whether_this_is_a_tpu_machine():
    assert jax_internals.running_on_cloud_tpu() is False


def test_cudnn_is_there_after_it_is_allowed_to_be_absent():
    """In a process of its own, since it changes JAX."""
    code = """
from jax._src.cudnn import fused_attention_stablehlo as attention
from rb_jax.runtime.jax_internals import allow_absent_cudnn
allow_absent_cudnn((9, 12, 3))
assert attention.check_cudnn_version() >= 91200
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_else_looks_inside_of_jax():
    private = "jax._" + "src"
    files = [
        path
        for top in ("rb_jax", "tests", "benchmarks", "tpu", "configs")
        for path in (ROOT / top).rglob("*.py")
    ]
    users = {str(p.relative_to(ROOT)) for p in files if private in p.read_text("utf-8")}
    assert users == {"rb_jax/runtime/jax_internals.py", "tests/runtime/test_jax_internals.py"}


def test_where_programs_are_kept():
    """In a process of its own, since the tests keep none."""
    code = """
import sys, jax
from rb_jax.runtime import jax_internals
assert jax_internals.program_store() is None
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
store = jax_internals.program_store()
store.put("name", b"bytes")
assert store.get("name") == b"bytes" and store.get("other") is None
first = jax_internals.compiler_fingerprint()
assert first == jax_internals.compiler_fingerprint()
"""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code, folder], check=True, env=environ)
