"""Compiled programs are kept, found again, shared, and never trusted when they are damaged."""

import os
import subprocess
import sys

import pytest

from rb_jax.runtime import compiling
from rb_jax.storage import files, place

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from rb_jax.runtime.compiling import keep_programs
keep_programs(sys.argv[1] if len(sys.argv) > 1 else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None
)
x = jax.jit(lambda x: jnp.tanh(x @ x.T).sum(axis=0) * 3)(jnp.ones((7, 5)))
print(len(hits), float(x[0]))
"""


def start(*words, **environ):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    hits, value = out.split()
    return int(hits), float(value)


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    first, value = finish(start(tmp_path / "programs"))
    second, again = finish(start(tmp_path / "programs"))
    assert first == 0 and second > 0 and value == again


def test_processes_at_once_share_a_folder(tmp_path):
    values = {finish(p)[1] for p in [start(tmp_path / "programs") for _ in range(3)]}
    assert len(values) == 1
    assert finish(start(tmp_path / "programs"))[0] > 0


def test_damaged_programs_are_compiled_again(tmp_path):
    _, value = finish(start(tmp_path))
    for path in tmp_path.glob("*-cache"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert finish(start(tmp_path)) == (0, value)


@pytest.mark.parametrize(
    ("words", "environ", "where"),
    [
        ([], {"XDG_CACHE_HOME": "{}/cache"}, "cache/rb_jax/programs"),
        ([], {"JAX_COMPILATION_CACHE_DIR": "{}/named"}, "named"),
        (["off"], {"JAX_COMPILATION_CACHE_DIR": "{}/named"}, None),
        (["OFF"], {"JAX_COMPILATION_CACHE_DIR": "{}/named"}, None),
    ],
)
def test_where_they_are(tmp_path, words, environ, where):
    environ = {name: value.format(tmp_path) for name, value in environ.items()}
    finish(start(*words, **environ))
    found = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*-cache")}
    assert found == ({where} if where else set())


def test_a_folder_that_cannot_be_made_only_warns(tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    compiling.keep_programs(str(tmp_path / "file" / "programs"))
    assert "compiled programs are not kept" in caplog.text


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_programs_are_kept_in_a_bucket(buckets, tmp_path, kind):
    folder = f"{buckets[kind]}/{tmp_path.name}"
    first, value = finish(start(folder))
    assert first == 0 and any(name.endswith("-cache") for name in files(place(folder)))
    second, again = finish(start(folder))
    assert second > 0 and value == again


def test_what_the_user_chose_is_left_open(monkeypatch):
    level, emitters = "xla_backend_optimization_level", "xla_cpu_use_fusion_emitters"
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=6")
    assert compiling.cpu_level(1) == {level: 1}
    assert (compiling.fast_compile(["cpu"], level=2) or {})[level] == 2
    monkeypatch.setenv("XLA_FLAGS", f"--{level}=3 --{emitters}")
    assert compiling.cpu_level(1) == {} and compiling.fast_compile(["cpu"]) == {}
    assert (
        compiling.fast_compile(["gpu"]) is None and compiling.fast_compile(["cpu", "gpu"]) is None
    )
