"""Compiling takes longest of all that happens before a first result: it is announced and kept."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from rb_jax.errors import InputError, reason
from rb_jax.runtime import programs
from rb_jax.runtime.logging import LOG
from rb_jax.runtime.progress import working
from rb_jax.storage import is_bucket, place

# Seconds of XLA for a line of the lowered program on two cores of a CPU: 1.3e-3 for the training
# step of configs/reasonworld.py (34,000 lines), 1.0e-3 for its sampler (7,000).
SECONDS_A_LINE = 1.2e-3


CACHE_BYTES = 4 * 2**30  # at most, of the programs used last


def keep_programs(where: str | None) -> None:
    """Lets JAX keep what it compiles in a folder, where the next process finds it.

    ``where`` is a folder or a bucket, ``off``, or None for ``rb_jax`` in the user's cache folder,
    unless JAX_COMPILATION_CACHE_DIR names another. Several processes may share it. Call it before
    anything is compiled. Raises InputError when a bucket's client is not installed.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if where == "":
        raise InputError("--compilation_cache: name a folder or a bucket, or off")
    if where is not None and where.lower() == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if where is None and named:
        return
    folder = where or str(user_cache() / "rb_jax" / "programs")
    if is_bucket(folder):
        place(folder, "--compilation_cache")
    else:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            LOG.warning("%s: compiled programs are not kept (%s)", folder, reason(error))
            return
        # The bound comes with a lock, without which two processes would write one file.
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def user_cache() -> Path:
    """The user's cache folder, as the XDG base directories say."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if os.path.isabs(named) else Path("~/.cache").expanduser()


def compiled(
    lower: Callable[[], jax.stages.Lowered],
    what: str,
    options: Mapping[str, Any] | None = None,
    about: Any = None,
) -> Any:
    """The program that ``lower`` traces, compiled; says what it is and how long it should take.

    ``about`` names all that decides what is traced besides this package's sources, such as the
    configuration and the arguments: then a program of an earlier process is found without tracing
    (see ``programs.find``). On other hardware than CPUs the seconds are not known ahead.
    """
    about = (about, options)
    if about[0] is not None and (program := programs.find(what, about)) is not None:
        return program
    with working(f"tracing {what}"):
        lowered = lower()
    on_cpu = jax.default_backend() == "cpu"
    expected = lowered.as_text().count("\n") * SECONDS_A_LINE if on_cpu else 0.0
    with working(f"compiling {what}", expected):
        if about[0] is not None:
            return programs.compile_and_keep(what, about, lowered, options)
        return lowered.compile(compiler_options=dict(options) if options else None)


def fast_compile(platforms: Collection[str] | None = None, level: int = 0) -> dict[str, Any] | None:
    """Compiler options for programs of hundreds of small kernels that do not run all day.

    On a CPU, optimising the random kernels of fresh parameters, which run once, takes a minute, and
    the newer emitters of fusions half of the rest. With ``level`` 1 a sampler runs as fast as with
    JAX's defaults, a training step a twentieth slower. ``platforms`` None means JAX's default
    devices; None is returned off CPUs.
    """
    platforms = {d.platform for d in jax.devices()} if platforms is None else platforms
    older = older_emitters(platforms)
    return None if older is None else cpu_level(level) | older


def cpu_level(level: int) -> dict[str, Any]:
    """The compiler option that says how much LLVM optimises a CPU's program, 0 to 3."""
    return _open({"xla_backend_optimization_level": level})


def older_emitters(platforms: Collection[str]) -> dict[str, Any] | None:
    """Compiler options for XLA's older CPU backend, which compiles faster; None off CPUs.

    jaxlib 0.11 has only the newer one, and no options to choose.
    """
    if set(platforms) != {"cpu"}:
        return None
    version = tuple(map(int, jaxlib.version.__version__.split(".")[:2]))
    return _open({"xla_cpu_use_fusion_emitters": False}) if version < (0, 11) else {}


def _open(options: dict[str, Any]) -> dict[str, Any]:
    """Those that the user's XLA_FLAGS do not decide."""
    named = re.findall(r"--(\w+)", os.environ.get("XLA_FLAGS", ""))
    return {name: value for name, value in options.items() if name not in named}
