"""Communication in compiled programs: which, over which mesh axes, how many bytes, how long.

Bytes are what one chip sends: (n-1) shards for an all-gather, (n-1)/n of the operand for a
reduce-scatter, twice that for an all-reduce.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from rb_jax.plan.hlo import Computation, Instruction, Module
from rb_jax.plan.work import operand_arrays
from rb_jax.sharding.chips import Chip

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
)
# Share of a link's published rate that collectives reach.
TPU_LINK_SHARE, GPU_LINK_SHARE, DCN_SHARE = 0.9, 0.8, 0.8


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the devices of a mesh are: entry i of each list is the device at flat position i."""

    axes: dict[str, int]
    coords: tuple[tuple[int, ...], ...]
    slices: tuple[int, ...]
    hosts: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Chips along each axis of a slice."""
        return tuple(1 + max(c[i] for c in self.coords) for i in range(len(self.coords[0])))


@dataclasses.dataclass(frozen=True)
class Collective:
    name: str
    kind: str
    channel: str
    groups: tuple[tuple[int, ...], ...]
    bytes: float  # one chip sends, per run

    @property
    def size(self) -> int:
        return max((len(group) for group in self.groups), default=1)


def find(
    module: Module, computation: Computation, instruction: Instruction, devices: int
) -> list[Collective]:
    """The collectives that an instruction runs or starts: itself, or inside a fusion or a call."""
    base = instruction.opcode.removesuffix("-start")
    if base in KINDS:
        found = _collective(computation, instruction, base, devices)
        return [found] if found else []
    if instruction.opcode not in ("fusion", "async-start", "call-start", "custom-call-start"):
        return []
    keys = ("calls", "to_apply", "called_computations")
    names = [name for key in keys for name in instruction.called.get(key, ())]
    result = []
    for name in names:
        inside = module.computations[name]
        for part in inside.instructions.values():
            for found in find(module, inside, part, devices):
                if found.kind == "all-reduce" and "all-reduce-scatter" in name:
                    found = dataclasses.replace(found, kind="reduce-scatter", bytes=found.bytes / 2)
                result.append(dataclasses.replace(found, name=instruction.name))
    return result


def _collective(
    computation: Computation, instruction: Instruction, kind: str, devices: int
) -> Collective | None:
    groups = replica_groups(instruction.attributes, devices)
    size = max(len(group) for group in groups)
    if size < 2 and kind != "send":
        return None
    payload = sum((a.bytes for a in operand_arrays(computation, instruction)), 0.0)
    factor = {
        "all-gather": size - 1.0,
        "all-reduce": 2 * (size - 1) / size,
        "collective-permute": 1.0,
        "collective-broadcast": 1.0,
        "send": 1.0,
    }.get(kind, (size - 1) / size)
    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
    return Collective(
        instruction.name, kind, channel[1] if channel else "", groups, payload * factor
    )


def replica_groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of flat device positions that talk to each other.

    Understands lists, iota and mesh notation and source-target pairs; all devices where none is
    given.
    """
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        numbers = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
        return tuple((int(a), int(b)) for a, b in numbers) or ((0,),)
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", attributes)
    if listed:
        groups = re.findall(r"\{([\d,]*)\}", listed[1])
        return tuple(tuple(int(n) for n in group.split(",") if n) for group in groups)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, source = _ints(iota[1]), _ints(iota[2])
        ids = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            ids = ids.transpose(_ints(iota[3]))
        return tuple(tuple(int(n) for n in row) for row in ids.reshape(shape))
    named = re.search(r"replica_groups=(?:@?\w*\s*)mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", attributes)
    if named:
        return _mesh_groups(named[1], named[2], named[3])
    return (tuple(range(devices)),)


def _mesh_groups(mesh: str, order: str, chosen: str) -> tuple[tuple[int, ...], ...]:
    """Groups of ``mesh['a'=2,'b'=4] {'b'}``: devices that differ in the chosen axes only.

    An axis may be split, ``'b':(pre)size``: ``size`` parts of it after the first ``pre``.
    """
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    count = math.prod(axes.values())
    ids = np.arange(count)
    listed = re.search(r"device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
    if listed:
        numbers = _ints(listed[1])
        if math.prod(numbers) == count:
            ids = ids.reshape(numbers)
            ids = (ids.transpose(_ints(listed[2])) if listed[2] else ids).reshape(-1)
    parts: list[tuple[int, bool]] = []
    wanted = {
        name: (int(pre) if pre else 1, int(size) if size else axes[name])
        for name, pre, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    }
    for name, size in axes.items():
        if name in wanted:
            pre, span = wanted[name]
            parts += [(pre, False), (span, True), (size // pre // span, False)]
        else:
            parts.append((size, False))
    grid = ids.reshape([size for size, _ in parts])
    inner = [i for i, (_, picked) in enumerate(parts) if picked]
    outer = [i for i, (_, picked) in enumerate(parts) if not picked]
    group = math.prod(parts[i][0] for i in inner)
    rows = grid.transpose(outer + inner).reshape(-1, group)
    return tuple(tuple(int(n) for n in row) for row in rows)


def axes_of(collective: Collective, layout: Layout) -> str:
    """The mesh axes along which a collective's groups differ, joined by "+".

    A send names no partner; it goes to the same device of the other slices.
    """
    shape = tuple(layout.axes.values())
    groups = collective.groups[:64]
    if collective.kind == "send":
        home = [i for i, other in enumerate(layout.slices) if other == layout.slices[0]]
        places = np.array(np.unravel_index(home, shape)).T
        fixed = [i for i in range(len(shape)) if len(set(places[:, i])) < shape[i]]
        return "+".join(list(layout.axes)[i] for i in fixed) or "none"
    varying: set[int] = set()
    for group in groups:
        places = np.array(np.unravel_index(list(group), shape)).T
        varying |= {i for i in range(len(shape)) if len(set(places[:, i])) > 1}
    return "+".join(list(layout.axes)[i] for i in sorted(varying)) or "none"


def seconds(collective: Collective, layout: Layout, chip: Chip) -> float:
    """Time of one run with nothing else on the links."""
    if not chip.is_tpu:
        return _gpu_seconds(collective, layout, chip)
    group = max(collective.groups[:64], key=len)
    slices = {layout.slices[i] for i in group}
    if collective.kind == "send":
        return collective.bytes / (chip.dcn * DCN_SHARE)
    if len(slices) > 1:
        share = _across(len(group), len(slices))
        dcn = collective.bytes * share / (chip.dcn * DCN_SHARE)
        inside = collective.bytes * (1 - share) / _torus_rate(group, layout, chip)
        return dcn + inside
    if collective.kind == "collective-permute":
        hops = max(_hops(pair, layout, chip) for pair in collective.groups)
        return collective.bytes * hops / (chip.link * TPU_LINK_SHARE)
    if "all-to-all" in collective.kind:
        # Half of the data crosses the middle of a ring or line.
        held = collective.bytes * len(group) / (len(group) - 1)
        dims = _dims(group, layout, chip)
        rate = chip.link * TPU_LINK_SHARE
        return max((held * n / (4 * links * rate) for n, links in dims), default=0.0)
    return collective.bytes / _torus_rate(group, layout, chip)


def _dims(group: Sequence[int], layout: Layout, chip: Chip) -> list[tuple[int, float]]:
    """(chips, links of a device) for each torus axis along which a group extends."""
    dims = []
    for axis, full in enumerate(layout.extent):
        span = len({layout.coords[i][axis] for i in group})
        if span > 1:
            links = 2 if span == full and _closed(layout, axis, chip) else 1
            dims.append((span, links / chip.devices))
    return dims


def _closed(layout: Layout, axis: int, chip: Chip) -> bool:
    """Whether a torus axis is a ring: on v5e and v6e at 16 chips, else in whole cubes of 4."""
    if chip.name in ("v5e", "v6e"):
        return layout.extent[axis] == 16
    return all(n % 4 == 0 for n in layout.extent)


def _torus_rate(group: Sequence[int], layout: Layout, chip: Chip) -> float:
    links = sum(links for _, links in _dims(group, layout, chip))
    return chip.link * (links or 1.0) * TPU_LINK_SHARE


def _hops(pair: Sequence[int], layout: Layout, chip: Chip) -> int:
    total = 0
    for axis, full in enumerate(layout.extent):
        distance = abs(layout.coords[pair[0]][axis] - layout.coords[pair[1]][axis])
        total += min(distance, full - distance) if _closed(layout, axis, chip) else distance
    return max(total, 1)


def _across(members: int, parts: int) -> float:
    """Of what a chip sends in a ring over ``parts`` hosts or slices, the share that leaves its own.

    Hierarchical: chips of a part share the outside traffic.
    """
    inside = members // parts
    return (parts - 1) / parts / inside / ((members - 1) / members) if members > 1 else 1.0


def _gpu_seconds(collective: Collective, layout: Layout, chip: Chip) -> float:
    group = max(collective.groups[:64], key=len)
    hosts = {layout.hosts[i] for i in group}
    inside = collective.bytes / (chip.link * GPU_LINK_SHARE)
    if len(hosts) == 1:
        return inside
    outside = collective.bytes * _across(len(group), len(hosts)) / (chip.dcn * DCN_SHARE)
    return max(inside, outside)


def _ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
