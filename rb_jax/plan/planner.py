"""What a configuration would take on absent hardware, one row per topology.

Everything that can be known without compiling is checked first: names, meshes, batches, and whether
the training state alone exceeds the memory.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh

from rb_jax.config import Config, MeshConfig, RematConfig
from rb_jax.errors import InputError
from rb_jax.plan import program
from rb_jax.plan.analysis import Analysis
from rb_jax.plan.compiling import CompileError, analyse
from rb_jax.plan.topologies import Topology, parse
from rb_jax.report.html import count
from rb_jax.runtime.progress import working
from rb_jax.sharding.mesh import abstract_mesh, check_batch_size, check_heads, mesh_shape
from rb_jax.sharding.rules import bytes_per_device, param_shardings, state_shardings
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import TrainState, abstract_state

GIB = 2**30
BUILD = "rb_jax.plan.program:lower"


@dataclasses.dataclass
class Row:
    """One topology's answer; GiB and TFLOP are of one chip. None: it did not compile, so unknown.

    ``fits`` is the compiler's word. ``exposed_collective_gib`` is the part of the traffic that
    computation does not hide. ``predicted_mfu`` counts the model's FLOPs, not recomputed ones.
    """

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    batch_size: int
    params_b: float
    trainable_b: float
    state_gib: float
    hbm_peak_gib: float | None
    hbm_limit_gib: float
    fits: bool
    model_tflop: float
    executed_tflop: float | None = None
    collective_gib: float | None = None
    exposed_collective_gib: float | None = None
    predicted_step_s: float | None = None
    predicted_mfu: float | None = None
    compile_s: float | None = None
    compile_rss_gib: float | None = None
    collectives: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    assumptions: list[str] = dataclasses.field(default_factory=list)
    remat: dict[str, str] = dataclasses.field(default_factory=dict)
    frozen: str = "sharded"  # layout of the weights that never change: replicated or sharded
    note: str = ""

    @property
    def label(self) -> str:
        return self.topology if self.slices == 1 else f"{self.slices} x {self.topology}"

    @property
    def examples_per_chip_second(self) -> float | None:
        step = self.predicted_step_s
        return self.batch_size / self.chips / step if step else None


@dataclasses.dataclass(frozen=True)
class Target:
    """A topology with the configuration adapted to it."""

    topology: Topology
    config: Config
    mesh: AbstractMesh
    state_bytes: int  # of one device
    saving: int = 0  # bytes of them that splitting the frozen weights over fsdp would save

    @property
    def limit(self) -> float:
        """Bytes of HBM of one device."""
        return self.topology.chip.hbm / self.topology.chip.devices

    def over(self) -> float:
        """GiB by which the state alone exceeds a device; negative when it does not."""
        return (self.state_bytes - self.limit) / GIB


def target(config: Config, name: str, slices: int = 1, batch_per_chip: int = 0) -> Target:
    """Checks a topology against a configuration; nothing is compiled.

    ``batch_per_chip`` sets the batch by the number of chips (weak scaling); 0 keeps the
    configuration's. Raises InputError, with valid values near, for a name, a mesh or a batch that
    does not go with the others.
    """
    topology = parse(name, slices)
    mesh_config = dataclasses.replace(config.mesh, slices=max(slices, config.mesh.slices))
    batch = batch_per_chip * topology.chips or config.train.batch_size
    config = dataclasses.replace(
        config, mesh=mesh_config, train=dataclasses.replace(config.train, batch_size=batch)
    )
    try:
        mesh = abstract_mesh(mesh_shape(config.mesh, topology.devices), topology.device)
        check_batch_size(mesh, batch)
        check_heads(mesh, config.model)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    state = state_bytes(config, mesh)
    return Target(topology, config, mesh, state, state - state_bytes(_sharded(config), mesh))


def sharded(one: Target) -> Target:
    """The same with its frozen weights split over fsdp."""
    size = one.state_bytes - one.saving
    return dataclasses.replace(one, config=_sharded(one.config), state_bytes=size, saving=0)


def frozen_layout(one: Target, what: str = "train") -> str:
    """The layout of the weights that never change; when sampling, that is all of them."""
    return "replicated" if _saving(one, what) else "sharded"


def _saving(one: Target, what: str) -> int:
    """Bytes on one device that config.mesh.frozen=sharded would save."""
    if what == "train":
        return one.saving
    shapes = program.sampler_weights(one.config)
    now, split = (
        bytes_per_device(shapes, param_shardings(one.mesh, shapes, frozen))
        for frozen in (one.config.mesh.frozen, "sharded")
    )
    return now - split


def _sharded(config: Config) -> Config:
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, frozen="sharded"))


def state_bytes(config: Config, mesh: AbstractMesh) -> int:
    """Bytes of the training state on one device: weights, moments, average, frozen weights."""
    return _state_bytes(without_layout(config), mesh, config.mesh.frozen)


@functools.lru_cache(maxsize=64)
def _state_bytes(config: Config, mesh: AbstractMesh, frozen: str) -> int:
    state = _state(config)
    return bytes_per_device(state, state_shardings(mesh, state, frozen))


@functools.lru_cache(maxsize=8)
def _state(config: Config) -> TrainState:
    return abstract_state(config, make_optimizer(config))


def without_layout(config: Config) -> Config:
    """The configuration with everything at its default that changes no array of the state."""
    train = dataclasses.replace(config.train, batch_size=1, accumulation=1)
    return dataclasses.replace(config, mesh=MeshConfig(), remat=RematConfig(), train=train)


def plan(
    config: Config,
    names: Sequence[str],
    slices: int = 1,
    what: str = "train",
    batch_per_chip: int = 0,
    save: str | Path | None = None,
    take: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """A row for each topology, in the order of ``names``; raises InputError as ``target`` does.

    ``take`` gets each row as soon as it is done.
    """
    targets = [target(config, name, slices, batch_per_chip) for name in names]
    rows = []
    for one in targets:
        folder = Path(save) / one.topology.name.replace(":", "-") if save else None
        chips = one.topology.chips
        with working(f"compiling for {one.topology.name}, {chips} chip{'s' * (chips > 1)}"):
            rows.append(compile_row(one, what, folder))
        take(rows[-1])
    return rows


def compile_row(one: Target, what: str = "train", folder: Path | None = None) -> Row:
    """Compiles the step, unless its state alone does not fit."""
    row = _known(one, what)
    if what == "train" and one.over() > 0:
        row.note = (
            f"the state alone is {one.over():.1f} GiB over a device's memory{_advice(one, what)}"
        )
        return row
    kwargs = {"config": dataclasses.asdict(one.config), "program": what}
    try:
        analysis = analyse(BUILD, one.topology, kwargs=kwargs, save=folder)
    except CompileError as error:
        needed = memory_needed(error.log or str(error))
        if needed is None:
            row.note = f"not compiled: {error}"
            return row
        row.hbm_peak_gib = needed * one.topology.chip.devices
        row.note = f"{needed - one.limit / GIB:.1f} GiB over a device's memory{_advice(one, what)}"
        return row
    return _filled(row, analysis, one)


def _advice(one: Target, what: str) -> str:
    saving = _saving(one, what) / GIB
    return f"; config.mesh.frozen=sharded saves {saving:.1f} GiB" if saving else ""


def _known(one: Target, what: str) -> Row:
    """What needs no compiler."""
    total, trained = program.parameters(without_layout(one.config))
    topology = one.topology
    return Row(
        topology=topology.name,
        slices=topology.slices,
        chips=topology.chips,
        mesh=dict(one.mesh.shape),
        batch_size=one.config.train.batch_size,
        params_b=total / 1e9,
        trainable_b=trained / 1e9,
        state_gib=one.state_bytes * topology.chip.devices / GIB,
        hbm_peak_gib=None,
        hbm_limit_gib=topology.chip.hbm / GIB,
        fits=False,
        model_tflop=program.model_flops(one.config, what) / topology.chips / 1e12,
        remat=dataclasses.asdict(one.config.remat),
        frozen=frozen_layout(one, what),
    )


def _filled(row: Row, analysis: Analysis, one: Target) -> Row:
    peak = analysis.hbm_peak_gib * one.topology.chip.devices
    flops = one.topology.chip.flops
    return dataclasses.replace(
        row,
        hbm_peak_gib=peak,
        fits=peak <= row.hbm_limit_gib,
        executed_tflop=analysis.executed_tflop,
        collective_gib=sum(c["gib"] for c in analysis.collectives),
        exposed_collective_gib=sum(c["exposed_gib"] for c in analysis.collectives),
        predicted_step_s=analysis.predicted_step_s,
        predicted_mfu=row.model_tflop * 1e12 / (flops * analysis.predicted_step_s),
        compile_s=analysis.lower_s + analysis.compile_s,
        compile_rss_gib=analysis.rss_gib,
        collectives=analysis.collectives,
        assumptions=analysis.assumptions,
        note="" if peak <= row.hbm_limit_gib else f"{peak - row.hbm_limit_gib:.1f} GiB over",
    )


def memory_needed(log: str) -> float | None:
    """GiB that the compiler says a device would need; None if it complains of something else.

    Either of the whole program ("Used 33.0G of 31.25G hbm") or of one part that is too large
    already ("temporaries 41.39G exceed 31.25G"). The largest figure counts.
    """
    size = r"([\d.]+) ?([KMG])i?B?"
    sizes = re.findall(rf"Used {size} of [\d.]+[KMG]i?B? hbm", log)
    if not sizes and re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory|OOM", log):
        sizes = re.findall(rf"{size}\)? exceeds? ", log)
    scale = {"G": 1.0, "M": 2**-10, "K": 2**-20}
    return max((float(number) * scale[unit] for number, unit in sizes), default=None)


def to_json(rows: Sequence[Row]) -> str:
    """A list with one object per topology, with the fields of ``Row``."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("topology", lambda r: r.label),
    ("chips", lambda r: str(r.chips)),
    ("mesh", lambda r: " x ".join(f"{a} {n}" for a, n in r.mesh.items() if n > 1) or "1"),
    ("batch", lambda r: str(r.batch_size)),
    ("params", lambda r: count(round(r.params_b * 1e9))),
    ("HBM GiB", lambda r: f"{_number(r.hbm_peak_gib, 1)} / {r.hbm_limit_gib:.0f}"),
    ("fits", lambda r: "yes" if r.fits else "no"),
    ("model TF", lambda r: _number(r.model_tflop, 1)),
    ("executed TF", lambda r: _number(r.executed_tflop, 1)),
    ("sent GiB", lambda r: _number(r.collective_gib, 2)),
    ("exposed", lambda r: _number(r.exposed_collective_gib, 2)),
    ("step s", lambda r: _number(r.predicted_step_s, 3)),
    ("MFU", lambda r: "-" if r.predicted_mfu is None else f"{r.predicted_mfu:.1%}"),
    ("img/s/chip", lambda r: _number(r.examples_per_chip_second, 3)),
    ("compile s", lambda r: _number(r.compile_s, 0)),
)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, the traffic by kind and axis, notes and assumptions below."""
    cells = [[title for title, _ in COLUMNS]]
    cells += [[show(row) for _, show in COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    lines += ["", "per chip and step, by collective and mesh axis: GiB sent (exposed)"]
    for row in rows:
        if row.collectives:
            note = "; frozen weights replicated" if row.frozen == "replicated" else ""
            lines.append(f"  {row.topology}: {traffic(row)}{note}")
    lines += [f"  {row.topology}: {row.note}" for row in rows if row.note]
    said = dict.fromkeys(line for row in rows for line in row.assumptions)
    return "\n".join([*lines, *(f"* {line}" for line in said)])


def traffic(row: Row) -> str:
    """``all-gather fsdp 24.10 (0.29), ...``, the largest first."""
    parts = [
        f"{c['kind']} {c['axis']} {c['gib']:.2f} ({c['exposed_gib']:.2f})"
        for c in row.collectives
        if c["gib"] >= 0.005
    ]
    return ", ".join(parts) or "nothing"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
