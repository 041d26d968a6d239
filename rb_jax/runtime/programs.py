"""Compiled programs of earlier processes, found without tracing anything.

JAX's own cache of programs asks for the traced program, and tracing a large model takes many
seconds. Here a program is known by all that decides what would be traced: the sources of this
package, the versions of the libraries, the settings of JAX and XLA, the devices, and what the
caller names. It lies in the same folder, under the same bound.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from rb_jax.runtime import jax_internals
from rb_jax.runtime.logging import LOG

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
HIT = "/jax/compilation_cache/cache_hits"


def find(what: str, about: Any) -> Any:
    """What ``keep`` was given for the same ``what`` and ``about``, or None.

    ``about`` is a tree of arrays (or their shapes), configurations, classes and plain values, which
    must decide together with this package's sources what ``what`` is.
    """
    store = _store()
    if store is None:
        return None
    try:
        kept = store.get(_name(what, about))
        if kept is None or hashlib.sha256(kept[32:]).digest() != kept[:32]:
            return None
        is_program, value = pickle.loads(kept[32:])
        return serialize_executable.deserialize_and_load(*value) if is_program else value
    except Exception as error:  # of many kinds; a program can always be made anew
        LOG.debug("a kept program could not be used: %s", error)
        return None


def keep(what: str, about: Any, value: Any) -> None:
    """Keeps a compiled program, or another value that can be pickled, for later processes."""
    store = _store()
    if store is None:
        return
    try:
        is_program = isinstance(value, jax.stages.Compiled)
        kept = serialize_executable.serialize(value) if is_program else value
        data = pickle.dumps((is_program, kept))
        store.put(_name(what, about), hashlib.sha256(data).digest() + data)
    except Exception as error:  # of many kinds; it is only not kept
        LOG.debug("a program could not be kept: %s", error)


def recalled(what: str, about: Any, make: Callable[[], Any]) -> Any:
    """A value that takes long to compute, computed once for all processes."""
    value = find(what, about)
    if value is None:
        value = make()
        keep(what, about, value)
    return value


def compile_and_keep(
    what: str, about: Any, lowered: jax.stages.Lowered, options: Mapping[str, Any] | None
) -> jax.stages.Compiled:
    """Compiles, and keeps the program unless it came from JAX's cache.

    A CPU's program that was loaded cannot be stored a second time.
    """
    hits = []

    def listen(event: str, **_: Any) -> None:
        if event == HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        program = lowered.compile(compiler_options=dict(options) if options else None)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    if not hits:
        keep(what, about, program)
    return program


def _store() -> Any:
    """JAX's store of programs, if it is on; of several processes each would have its own part."""
    store = jax_internals.program_store()
    return store if store is not None and jax.process_count() == 1 else None


def _name(what: str, about: Any) -> str:
    leaves, structure = jax.tree.flatten(about)
    parts = [_surroundings(), what, structure, *map(_described, leaves)]
    parts.append(sorted(jax.config.values.items(), key=str))
    return f"rb_jax-{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _described(leaf: Any) -> Any:
    if isinstance(leaf, type) or inspect.isfunction(leaf):  # perhaps not of this package
        file = inspect.getsourcefile(leaf)
        text = Path(file).read_bytes() if file else b""
        return leaf.__module__, leaf.__qualname__, hashlib.sha256(text).hexdigest()
    if not hasattr(leaf, "dtype"):
        return leaf
    layout = getattr(leaf, "sharding", None)
    mesh = getattr(layout, "mesh", None)
    devices = getattr(mesh, "devices", None)
    places = None if devices is None else [d.id for d in devices.flat]
    return leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False), repr(layout), places


@functools.cache
def _surroundings() -> list[Any]:
    """Of this process: sources, versions, devices and the flags of compilers."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    devices = [(d.id, d.device_kind) for d in jax.devices()]
    return [digest.hexdigest(), versions, devices, jax_internals.compiler_fingerprint()]
