"""``rb-jax data import``: a data set in any layout to shards of records.

The source is cut into units, one per shard, by nothing but its content and the options. Every unit
is made on its own, aside, and put down with a report when it is done; so the work is divided over
processes by number, and a run that was killed goes on with the units that have no report. When all
are there, whoever sees it first gives the shards their names. The result does not depend on how
often it was interrupted or on how many processes made it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rb_jax.data.formats import shards
from rb_jax.data.formats.records import SCHEMA_VERSION, EditRecord
from rb_jax.data.formats.shards import Manifest, Shard, manifest_path
from rb_jax.data.importers import IMPORTERS
from rb_jax.data.importers.layout import Layout, Reject, Unit, pack, read_piece
from rb_jax.errors import InputError, reason
from rb_jax.files import locked, to_json, write_text
from rb_jax.runtime.progress import progress_bar

SHARD_EXAMPLES = 1000
MIN_REJECTS = 10  # the default budget is one in a hundred items, but at least this many


@dataclasses.dataclass(frozen=True)
class Work:
    """One import: what to do, and where."""

    dataset: str
    root: Path
    out: Path
    split: str
    layout: Layout
    units: Sequence[Unit]
    fingerprint: str
    options: Mapping[str, Any]
    max_rejects: int

    @property
    def folder(self) -> Path:
        """Where finished units wait for the others."""
        return self.out / f".import-{self.split}"

    @property
    def total(self) -> int:
        return sum(piece.count for unit in self.units for piece in unit)

    def name(self, unit: int) -> str:
        return f"{unit:05d}"

    def report(self, unit: int) -> Path:
        return self.folder / f"{self.name(unit)}.json"

    def shard(self, unit: int) -> Path:
        return self.folder / f"{self.name(unit)}.array_record"


def import_dataset(
    dataset: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str | None = None,
    *,
    shard_examples: int = SHARD_EXAMPLES,
    max_rejects: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
) -> Manifest | None:
    """Converts a split, or goes on converting it; None while other processes are not done.

    Raises InputError if the source is not what ``dataset`` says, if more than ``max_rejects`` items
    are not usable, if ``out`` holds something else, or if it cannot be written.
    """
    work = _plan(dataset, Path(source), Path(out), split, shard_examples, max_rejects)
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index={process_index} is not below {process_count=}, from 0")
    try:
        if _finished(work):
            return shards.read_manifest(work.out, work.split)
        work.folder.mkdir(parents=True, exist_ok=True)
        plan = {"dataset": work.dataset, "fingerprint": work.fingerprint}
        write_text(work.folder / "plan.json", to_json(plan))
        _make_units(work, process_index, process_count, progress)
        return _publish(work)
    except (OSError, InputError) as error:
        if _made_elsewhere(work):
            shutil.rmtree(work.folder, ignore_errors=True)
            return shards.read_manifest(work.out, work.split)
        if isinstance(error, InputError):
            raise
        raise InputError(f"{out}: cannot be written ({reason(error)})") from error


def _plan(
    dataset: str, root: Path, out: Path, split: str | None, rows: int, max_rejects: int | None
) -> Work:
    if dataset not in IMPORTERS:
        raise InputError(f"no such layout: {dataset}; choose {', '.join(IMPORTERS)}")
    split = split or IMPORTERS[dataset].split
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", split):
        raise InputError(f"{split!r} is not a name for a split; use letters, digits, - and _")
    if rows < 1:
        raise InputError(f"shard_examples must be at least 1, got {rows}")
    if max_rejects is not None and max_rejects < 0:
        raise InputError(f"max_rejects must not be negative, got {max_rejects}")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of the data set")
    try:
        layout = IMPORTERS[dataset].open_layout(root, split, rows)
        units = pack(layout.pieces, rows)
        sizes = [(name, *_size(root / name)) for name in layout.files]
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({reason(error)})") from error
    if not units:
        raise InputError(f"{root}: split {split!r} has no rows; at least one is needed")
    options = {"shard_examples": rows}
    recipe = [SCHEMA_VERSION, dataset, split, options, sizes, units]
    fingerprint = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    total = sum(piece.count for unit in units for piece in unit)
    budget = max(MIN_REJECTS, total // 100) if max_rejects is None else max_rejects
    return Work(dataset, root, out, split, layout, units, fingerprint, options, budget)


def _size(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _finished(work: Work) -> bool:
    """Whether this very import is done; InputError if the folder holds something else."""
    out = work.out
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"{out}: is a file; choose another folder")
    other = "choose another folder, or delete this one"
    begun = {path.parent: _read_plan(path) for path in out.glob(".import-*/plan.json")}
    done = [shards.read_manifest(out, split) for split in shards.splits_in(out)]
    strangers = [p for p in out.iterdir() if not p.name.startswith(".import-")]
    if strangers and not begun and not done:
        raise InputError(f"{out}: is not empty and holds no import; {other}")
    for name in [*(manifest.dataset for manifest in done), *(p["dataset"] for p in begun.values())]:
        if name != work.dataset:
            raise InputError(f"{out}: holds an import of {name}; {other}")
    for manifest in done:
        if manifest.split == work.split:
            if manifest.fingerprint != work.fingerprint:
                raise InputError(
                    f"{out}: holds {work.split!r} of another source, or with other options; {other}"
                )
            if work.folder.exists():  # killed after the manifest was written
                _publish(work)
            return True
    if work.folder in begun and begun[work.folder]["fingerprint"] != work.fingerprint:
        raise InputError(
            f"{out}: an import of {work.split!r} from another source, from one that has "
            f"changed, or with other options was begun here; delete {work.folder}"
        )
    return False


def _read_plan(path: Path) -> dict[str, str]:
    try:
        plan = json.loads(path.read_text("utf-8"))
        return {key: plan[key] for key in ("dataset", "fingerprint")}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path.parent}: damaged; delete it") from None


def _seal(work: Work) -> None:
    """What is left to do once a manifest is there."""
    shards.write_tfds_info(work.out, aside=work.folder)
    shutil.rmtree(work.folder, ignore_errors=True)


def _made_elsewhere(work: Work) -> bool:
    """Whether another process has finished the same import, and taken its files away meanwhile."""
    with contextlib.suppress(OSError), locked(work.folder / "lock"):
        pass  # until whoever is finishing it has
    if not manifest_path(work.out, work.split).exists():
        return False
    mine = shards.read_manifest(work.out, work.split).fingerprint == work.fingerprint
    return mine and work.split in shards.splits_in_tfds_info(work.out)


def _make_units(work: Work, index: int, count: int, progress: bool) -> None:
    """Makes this process's units that are not there yet."""
    mine = range(index, len(work.units), count)
    missing = [unit for unit in mine if not work.report(unit).exists()]
    rejected = [reject for report in _reports(work) for reject in report["rejects"]]
    items = [sum(piece.count for piece in work.units[unit]) for unit in mine]
    left = sum(piece.count for unit in missing for piece in work.units[unit])
    label = f"importing {work.split}"
    bar = progress_bar(sum(items), label, "item", enabled=progress, done=sum(items) - left)
    with bar:
        for unit in missing:
            rejected += _make_unit(work, unit, rejected, bar)


def _make_unit(work: Work, unit: int, before: list[Any], bar: Any) -> list[Any]:
    """Writes the shard of a unit, then its report; returns the rows that are not in it."""
    rejects: list[Reject] = []
    categories: Counter[str] = Counter()
    targets = 0

    def records() -> Iterator[EditRecord]:
        nonlocal targets
        for piece in work.units[unit]:
            for item in read_piece(work.layout, piece):
                bar.update(1)
                if isinstance(item, Reject):
                    rejects.append(item)
                    _check_budget(work, [*before, *rejects])
                    continue
                categories[item.category] += 1
                targets += item.target is not None
                yield item

    written = shards.write_shard(work.shard(unit), work.name(unit), records())
    shard = None
    if written:
        shard = shards.describe_shard(work.shard(unit), work.name(unit), written)
    report = {
        "shard": None if shard is None else dataclasses.asdict(shard),
        "targets": targets,
        "categories": dict(sorted(categories.items())),
        "rejects": rejects,
    }
    write_text(work.report(unit), to_json(report))
    return rejects


def _check_budget(work: Work, rejects: Sequence[Any]) -> None:
    """InputError if there are too many rejects, after writing all of them down."""
    if len(rejects) <= work.max_rejects:
        return
    path = _write_rejects(work, rejects)
    file, row, reason = rejects[-1]
    raise InputError(
        f"stopped: more than --max_rejects={work.max_rejects} of {work.total} items are not "
        f"usable; the last, {work.root / file}:{row}: {reason}; all are listed in {path}"
    )


def _write_rejects(work: Work, rejects: Sequence[Any]) -> Path:
    path = work.out / f"{work.split}.rejects.jsonl"
    named = (dict(zip(Reject._fields, reject, strict=True)) for reject in rejects)
    content = "".join(f"{json.dumps(reject)}\n" for reject in named)
    write_text(path, content, aside=work.folder)
    return path


def _reports(work: Work) -> list[dict[str, Any]]:
    """The reports of the units that are done, in order."""
    reports = []
    for unit in range(len(work.units)):
        try:
            reports.append(json.loads(work.report(unit).read_text("utf-8")))
        except FileNotFoundError:
            continue
        except ValueError:
            raise InputError(f"{work.report(unit)}: damaged; delete it and go on") from None
    return reports


def _publish(work: Work) -> Manifest | None:
    """Names the shards and writes the manifest, once every unit is done; else None."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(work.folder / "lock"))
        except FileNotFoundError:
            return shards.read_manifest(work.out, work.split)  # another process was first
        if manifest_path(work.out, work.split).exists():
            if work.folder.exists():  # else another process held this lock and removed it
                _seal(work)
            return shards.read_manifest(work.out, work.split)
        reports = _reports(work)
        if len(reports) < len(work.units):
            return None
        rejects = [reject for report in reports for reject in report["rejects"]]
        _check_budget(work, rejects)
        finished = [Shard(**r["shard"]) for r in reports if r["shard"] is not None]
        if not finished:
            _write_rejects(work, rejects)
            raise InputError(f"{work.root}: none of the {work.total} items is an edit to keep")
        named = _name_shards(work, finished)
        _write_rejects(work, rejects)
        described = to_json(_describe(work, reports, named))
        write_text(manifest_path(work.out, work.split), described, aside=work.folder)
        _seal(work)
    return shards.read_manifest(work.out, work.split)


def _name_shards(work: Work, finished: Sequence[Shard]) -> list[Shard]:
    named = []
    for number, shard in enumerate(finished):
        name = shards.shard_name(work.split, number, len(finished))
        waiting, final = work.folder / shard.file, work.out / name
        if waiting.exists():
            os.replace(waiting, final)
        elif not final.exists():  # killed while naming: some have their names already
            raise InputError(f"{waiting}: gone; delete {work.folder} and import again")
        named.append(dataclasses.replace(shard, file=name))
    return named


def _describe(work: Work, reports: Sequence[Mapping], named: list[Shard]) -> dict[str, Any]:
    categories: Counter[str] = Counter()
    for report in reports:
        categories.update(report["categories"])
    files = work.layout.files
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        dataset=work.dataset,
        split=work.split,
        fingerprint=work.fingerprint,
        options=dict(work.options),
        source={
            "path": str(work.root),
            "files": len(files),
            "bytes": sum((work.root / name).stat().st_size for name in files),
        },
        examples=sum(shard.examples for shard in named),
        targets=sum(report["targets"] for report in reports),
        categories=dict(sorted(categories.items())),
        rejects=sum(len(report["rejects"]) for report in reports),
        notes=list(work.layout.notes),
        shards=named,
    )
    return dataclasses.asdict(manifest)
