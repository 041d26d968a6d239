"""Import: files of another code base to a component folder, a tensor at a time."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rb_jax.errors import InputError
from rb_jax.files import check_new_folder, new_folder
from rb_jax.port.component import CONFIG, STEM, TOKENIZER, checked_values, describe
from rb_jax.port.families import FAMILIES
from rb_jax.port.family import Family, Layout, Names, Part, Source, open_source, porter
from rb_jax.port.table import EXTRAS, Porter, grouped, raise_problems
from rb_jax.weights.safetensors.writer import TensorSpec, write_tensors

DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float32", "float16", "bfloat16")
}
# The folders of a diffusers pipeline that hold something we know.
PIPELINE = {"transformer": "flux", "vae": "flux_vae", "text_encoder": "clip"}
# What arithmetic with a configuration's values raises when they are of any other kind.
BROKEN = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, MemoryError)


def import_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    family: str | None = None,
    dtype: str | None = None,
    allow_pickle: bool = False,
    allow_rounding: bool = False,
    settings: Sequence[str] = (),
    progress: bool = False,
) -> tuple[Family, Layout, Part]:
    """Reads a checkpoint of a family and writes it to ``out`` under our names.

    ``family`` is found from the names of the tensors when None. ``dtype`` converts floating
    tensors (None keeps each one's own); a value that it would change is an error unless
    ``allow_rounding``. ``settings`` ("frce.heads=8") are values of config.model that the files do
    not tell. Raises InputError listing everything that does not fit; ``out`` then is untouched.
    """
    check_new_folder(Path(out))
    refuse_pipeline(Path(source))
    opened = open_source(source, allow_pickle)
    found, layout, names = detect(opened, family)
    part, table = fit(opened, found, layout, names, settings)
    table.check_import(opened.files, str(source))
    target = None if dtype is None else DTYPES[dtype]
    specs = _specs(table, opened, target)
    changed: list[str] = []
    with new_folder(Path(out)) as folder:
        write_tensors(
            folder,
            STEM,
            specs,
            lambda path: _cast(table, opened, path, target, changed),
            checksums=True,
            label=f"importing {found.name}",
            progress=progress,
        )
        if changed and not allow_rounding:
            raise_problems(
                [f"{path} would lose bits as {dtype}" for path in grouped(changed)],
                f"{source} (leave --dtype out to keep every bit, or pass --allow_rounding)",
            )
        text = describe(found, layout, names, part, opened.config)
        (folder / CONFIG).write_text(text, encoding="utf-8")
        tokenizer = (opened.path if opened.path.is_dir() else opened.path.parent) / TOKENIZER
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, folder / TOKENIZER)
    return found, layout, part


def refuse_pipeline(path: Path) -> None:
    """InputError for a diffusers pipeline, naming its folders that can be imported."""
    if not (path / "model_index.json").is_file():
        return
    parts = [
        f"{path / name} ({family})" for name, family in PIPELINE.items() if (path / name).is_dir()
    ]
    what = f"give one of its parts as --source: {', '.join(parts)}" if parts else "no part is known"
    raise InputError(f"{path}: a whole diffusers pipeline; {what}")


def fit(
    source: Source, family: Family, layout: Layout, names: Names, settings: Sequence[str]
) -> tuple[Part, Porter]:
    """The sizes that the files and ``settings`` tell, and the table for them.

    Raises InputError when they are not those of any model: nothing in a file is to be trusted.
    """
    where = str(source.path)
    try:
        values = merge_settings(layout.read(source, names), settings)
        part = Part(checked_values(values, where))
        _check_depth(part, len(source.files), where)
        return part, porter(family, layout, part, names)
    except InputError:
        raise
    except BROKEN as error:
        what = f"not the sizes of a {family.name} ({type(error).__name__}: {error})"
        raise InputError(f"{where}: its configuration and shapes are {what}") from error


def _check_depth(part: Part, tensors: int, where: str) -> None:
    for group, inner in part.values.items():
        for key, value in inner.items():
            if key.endswith(("layers", "blocks")) and isinstance(value, int) and value > tensors:
                raise InputError(f"{where}: {group}.{key}={value} is more than its tensors")


def detect(source: Source, family: str | None = None) -> tuple[Family, Layout, Names]:
    """The family and layout of these files; InputError when none (or not ``family``) fits."""
    tried = FAMILIES.values() if family is None else [FAMILIES[family]]
    for candidate in tried:
        for layout in candidate.layouts:
            names = layout.names(source.files)
            if names is not None:
                return candidate, layout, names
    some = ", ".join(list(source.files)[:4])
    what = "any family" if family is None else family
    raise InputError(
        f"{source.path}: not the names of {what} ({', '.join(FAMILIES)}); it begins with {some}"
    )


def merge_settings(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """``values`` with "group.key=value" put in; InputError for anything else."""
    merged = {group: dict(inner) for group, inner in values.items()}
    for setting in settings:
        key, equals, text = setting.partition("=")
        group, dot, name = key.partition(".")
        if not (equals and dot and name):
            raise InputError(f"--set={setting}: expected GROUP.KEY=VALUE, such as frce.heads=8")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        merged.setdefault(group, {})[name] = value
    return merged


def _specs(table: Porter, source: Source, dtype: np.dtype | None) -> list[TensorSpec]:
    specs = []
    for path, slot in table.targets.items():
        first = slot.rule.source[0]
        name = first if slot.rule.layers is None else first.format(slot.rule.layers[0])
        given = source.files[name].dtype
        specs.append(TensorSpec(path, _target(given, dtype), tuple(table.shapes[path])))
    for name in source.files:
        if table.carries(name):
            info = source.files[name]
            specs.append(TensorSpec(EXTRAS + name, info.dtype, info.shape))
    return specs


def _target(given: np.dtype, dtype: np.dtype | None) -> np.dtype:
    return dtype if dtype is not None and is_float(given) else given


def is_float(dtype: np.dtype) -> bool:
    return dtype in DTYPES.values() or dtype == np.float64


def _cast(
    table: Porter, source: Source, path: str, dtype: np.dtype | None, changed: list[str]
) -> Iterator[np.ndarray]:
    for x in table.to_ours(source.files, path):
        if dtype is None or path.startswith(EXTRAS) or not is_float(x.dtype) or x.dtype == dtype:
            yield x
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            cast = x.astype(dtype)
            same = np.array_equal(cast.astype(x.dtype), x, equal_nan=True)
        if not same and path not in changed:
            changed.append(path)
        yield cast
