"""Configuration files: ``reasonworld`` by name, ``mine.py`` by path, either with ``:PRESET``."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from rb_jax.errors import InputError, refuse_url


def folder() -> Path:
    """Where the configurations that come with the package are: in a wheel, or in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """The names of the configurations that come with the package."""
    return sorted(p.stem for p in folder().glob("*.py") if not p.stem.startswith("_"))


def find(name: str) -> Path:
    """The file that a path or a name means; InputError, with names near to it, for none."""
    path = Path(name)
    if path.is_file():
        return path
    if name in names():
        return folder() / f"{name}.py"
    close = difflib.get_close_matches(path.stem, names(), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise InputError(f"--config={name}: no such file; {hint}by name there are {', '.join(names())}")


class _Loader(SourceFileLoader):
    """Leaves nothing beside a user's file."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        pass  # the compiled file


def load_module(name: str) -> ModuleType:
    """Runs a configuration file; InputError for whatever it raises."""
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"rb_jax_config_{path.stem}", path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise InputError(f"--config={name}: not a Python file")
    spec.loader = _Loader(spec.name, str(path))
    module = importlib.util.module_from_spec(spec)
    _run(lambda: spec.loader.exec_module(module), path)  # pyright: ignore
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"--config={name}: has no function get_config()")
    return module


def load(spec: str, preset: str = "") -> ml_collections.ConfigDict:
    """What ``NAME_OR_PATH[:PRESET]`` configures; a ``preset`` of its own counts more.

    Raises InputError, in one line, for whatever is wrong with the file or the preset.
    """
    from_checkpoint = spec.startswith("from_checkpoint:")
    refuse_url("--config", spec.removeprefix("from_checkpoint:"), buckets=from_checkpoint)
    name, _, own = spec.partition(":")
    module, preset = load_module(name), preset or own
    get_config = module.get_config
    arguments = (preset,) if preset else ()
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        needs = "needs an argument" if not arguments else "takes no argument"
        raise InputError(f"--config={spec}: get_config {needs} (--config=FILE:ARGUMENT)") from None
    config = _run(lambda: get_config(*arguments), find(name))
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"--config={spec}: get_config() gives no ConfigDict")
    return config


def _run(function: Callable[[], Any], path: Path) -> Any:
    """InputError with file and line for what a user's code raises."""
    try:
        return function()
    except InputError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may even end the interpreter
        here = path.resolve()
        frames = traceback.extract_tb(error.__traceback__)
        frames = [frame for frame in frames if Path(frame.filename).resolve() == here]
        line = getattr(error, "lineno", None) or (frames[-1].lineno if frames else None)
        place = f"{path}:{line}" if line else str(path)
        raise InputError(f"{place}: {type(error).__name__}: {error}") from None
