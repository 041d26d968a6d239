"""Weight tables: what a tensor is called in another code base, and how its axes differ.

A family of models is one list of rules, read in both directions:

    Rule(("blocks.{}.q.weight", "blocks.{}.k.weight"), ("blocks/qk/kernel",), LINEAR, ...)

The left names are the other code base's, "{}" is a layer's number; the right ones are ours, where
the layers are stacked on a leading axis. Several names on the left are joined along torch's first
axis (separate q, k, v against one fused matrix), several on the right cut it (a vocabulary and its
new words). Every tensor of either side must be named by exactly one rule; ``Porter`` lists all that
are not, with every wrong shape and dtype, before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from rb_jax.errors import InputError, listed
from rb_jax.port.transposition import transpose_last

Shape = tuple[int, ...]
EXTRAS = "extras/"  # our paths of tensors that are only carried along


class Transform(NamedTuple):
    """One tensor's change of axes; ``to_torch(to_ours(x))`` is x, bit for bit.

    ``axes`` gives an array of to_torch's shape without touching a value (None: to_torch does).
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    axes: Callable[[np.ndarray], np.ndarray] | None = None

    def torch_shape(self, shape: Shape) -> Shape:
        """The shape in torch of a tensor of ours; costs nothing, however large it claims to be."""
        return (self.axes or self.to_torch)(np.broadcast_to(np.int8(0), shape)).shape


def _axes(*axes: int) -> Transform:
    inverse = tuple(int(i) for i in np.argsort(axes))
    return Transform(lambda x: x.transpose(axes), lambda x: x.transpose(inverse))


def _leading(ones: int) -> Transform:
    return Transform(
        lambda x: x.reshape(x.shape[ones:]), lambda x: x.reshape(*[1] * ones, *x.shape)
    )


def _swap(x: np.ndarray) -> np.ndarray:
    half = len(x) // 2
    return np.concatenate([x[half:], x[:half]])


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = _axes(1, 0)  # torch [out, in], ours [in, out]
CONV = _axes(2, 3, 1, 0)  # torch [out, in, height, width], ours [height, width, in, out]
# torch [in, out, height, width] of a transposed convolution, ours [in, height, width, out].
TRANSPOSED_CONV = _axes(0, 2, 3, 1)
# A convolution of one pixel that is a linear layer here.
POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
ONE_AXIS_MORE = _leading(1)  # torch keeps a leading axis of 1
TWO_AXES_MORE = _leading(2)
# diffusers keeps adaLN's (scale, shift) where the others have (shift, scale).
SWAPPED = Transform(_swap, _swap, SAME.to_torch)
SWAPPED_LINEAR = Transform(lambda x: _swap(x).T, lambda x: _swap(x.T), LINEAR.to_torch)


@dataclass(frozen=True)
class Rule:
    """``sizes``: rows of each of several sources; ``layers``: the source's layer numbers."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    transform: Transform = SAME
    sizes: tuple[int, ...] = ()
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Table:
    """The rules of a family; ``carried``: patterns of source names that are kept as they are."""

    rules: tuple[Rule, ...]
    carried: tuple[str, ...] = ()


def rule(source: str, target: str, transform: Transform = SAME) -> Rule:
    return Rule((source,), (target,), transform)


def linear(
    source: str | Sequence[str], target: str, *, bias: bool = True, sizes: tuple[int, ...] = ()
) -> list[Rule]:
    """torch.nn.Linear, or several side by side that are one layer here."""
    names = (source,) if isinstance(source, str) else tuple(source)
    rules = [Rule(tuple(f"{n}.weight" for n in names), (f"{target}/kernel",), LINEAR, sizes)]
    if bias:
        rules.append(Rule(tuple(f"{n}.bias" for n in names), (f"{target}/bias",), SAME, sizes))
    return rules


def conv(source: str, target: str, *, bias: bool = True) -> list[Rule]:
    rules = [rule(f"{source}.weight", f"{target}/kernel", CONV)]
    return rules + [rule(f"{source}.bias", f"{target}/bias")] * bias


def norm(source: str, target: str, *, bias: bool = True) -> list[Rule]:
    """LayerNorm, GroupNorm, and RMSNorm without ``bias``."""
    rules = [rule(f"{source}.weight", f"{target}/scale")]
    return rules + [rule(f"{source}.bias", f"{target}/bias")] * bias


def prefixed(source: str, target: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of a part, under its name on either side."""
    return [
        Rule(
            tuple(source + name for name in r.source),
            tuple(target + path for path in r.target),
            r.transform,
            r.sizes,
            r.layers,
        )
        for r in rules
    ]


def stacked(
    source: str, target: str, layers: int | Sequence[int], rules: Iterable[Rule]
) -> list[Rule]:
    """The rules of a block, for ``layers`` of them stacked; ``source`` holds the "{}"."""
    numbers = tuple(range(layers)) if isinstance(layers, int) else tuple(layers)
    return [
        Rule(r.source, r.target, r.transform, r.sizes, numbers)
        for r in prefixed(source, target, rules)
    ]


@runtime_checkable
class Tensor(Protocol):
    """What is known of a tensor without reading it."""

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> np.dtype: ...


@runtime_checkable
class Tensors(Protocol):
    """Named tensors that are read one at a time (rb_jax.weights.safetensors.reader.TensorFiles)."""

    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def read(self, name: str) -> np.ndarray: ...
    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray: ...


class Slot(NamedTuple):
    """The place of one layer's tensor: its rule and the position in the stack."""

    rule: Rule
    layer: int | None
    part: int  # which of the rule's sources or targets


@dataclass(frozen=True)
class Porter:
    """A table applied to a model: ``shapes`` are those of our parameters.

    Raises ValueError when the table and our parameters do not name each other exactly once.
    """

    table: Table
    shapes: Mapping[str, Shape]
    targets: dict[str, Slot] = field(init=False)  # our path -> its rule
    sources: dict[str, Slot] = field(init=False)  # the source's name, layer filled in -> its rule
    _last: list = field(init=False, default_factory=list)

    def __post_init__(self):
        targets: dict[str, Slot] = {}
        sources: dict[str, Slot] = {}
        for r in self.table.rules:
            for part, path in enumerate(r.target):
                if path in targets:
                    raise ValueError(f"two rules for {path}")
                targets[path] = Slot(r, None, part)
            for layer, number in enumerate(r.layers or (None,)):
                for part, name in enumerate(r.source):
                    full = name if number is None else name.format(number)
                    if full in sources:
                        raise ValueError(f"two rules for {full}")
                    sources[full] = Slot(r, None if number is None else layer, part)
        differing = set(targets) ^ set(self.shapes)
        if differing:
            raise ValueError(f"the table and the model differ: {listed(sorted(differing))}")
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "sources", sources)

    # Shapes -------------------------------------------------------------------------------------

    def joined_shape(self, r: Rule) -> Shape:
        """Shape in torch of one layer of the rule, all its sources joined."""
        shapes = []
        for path in r.target:
            shape = self.shapes[path] if r.layers is None else self.shapes[path][1:]
            shapes.append(r.transform.torch_shape(shape))
        if len(shapes) == 1:
            return shapes[0]
        return (sum(s[0] for s in shapes), *shapes[0][1:])

    def source_shape(self, name: str) -> Shape:
        """The shape that a tensor of the source must have."""
        slot = self.sources[name]
        joined = self.joined_shape(slot.rule)
        if len(slot.rule.source) == 1:
            return joined
        return (slot.rule.sizes[slot.part], *joined[1:])

    def carries(self, name: str) -> bool:
        """Whether a tensor of the source is only kept, under extras/."""
        return name not in self.sources and any(re.fullmatch(p, name) for p in self.table.carried)

    # From another code base to ours -------------------------------------------------------------

    def check_import(self, source: Tensors, where: str) -> None:
        """Raises InputError listing every key left over on either side and every wrong shape."""
        names = set(source)
        unknown = [n for n in names - set(self.sources) if not self.carries(n)]
        problems = [f"missing {name}" for name in grouped(set(self.sources) - names)]
        problems += [f"unknown {name}" for name in grouped(unknown)]
        for name in self.sources:
            if name in names and tuple(source[name].shape) != self.source_shape(name):
                have, want = tuple(source[name].shape), self.source_shape(name)
                problems.append(f"{name} has shape {have}, expected {want}")
        for r in self.table.rules:
            problems += _mixed(source, [name for name in self._names(r) if name in names])
        raise_problems(problems, where)

    def to_ours(self, source: Tensors, path: str) -> Iterator[np.ndarray]:
        """One of our parameters, a layer at a time; contiguous."""
        if path.startswith(EXTRAS):
            yield source.read(path.removeprefix(EXTRAS))
            return
        r, _, part = self.targets[path]
        for number in r.layers or (None,):
            names = [n if number is None else n.format(number) for n in r.source]
            tensors = [source.read(name) for name in names]
            joined = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
            if len(r.target) > 1:
                start, stop = self._rows(r)[part]
                joined = joined[start:stop]
            yield _contiguous(r.transform.to_ours(joined))

    # From ours to another code base -------------------------------------------------------------

    def check_export(self, params: Tensors, where: str, *, whole: bool = False) -> None:
        """Raises InputError listing every missing, wrongly shaped or unfitting parameter.

        Of a ``whole`` model the table takes a part, and new words may be float32 beside an old
        vocabulary that is not; otherwise what is left over or differs in dtype is an error.
        """
        names = {path for path in params if not path.startswith(EXTRAS)}
        problems = [f"missing {path}" for path in grouped(set(self.targets) - names)]
        if not whole:
            problems += [f"unknown {path}" for path in grouped(names - set(self.targets))]
        for path in self.targets:
            if path in names and tuple(params[path].shape) != tuple(self.shapes[path]):
                have, want = tuple(params[path].shape), tuple(self.shapes[path])
                problems.append(f"{path} has shape {have}, expected {want}")
        for r in () if whole else self.table.rules:
            problems += _mixed(params, [path for path in r.target if path in names])
        raise_problems(problems, where)

    def torch_dtype(self, params: Tensors, name: str) -> np.dtype:
        """That of a tensor of the other code base; float32 holds all of different floats."""
        dtypes = {params[path].dtype for path in self.sources[name].rule.target}
        return np.dtype(np.float32) if len(dtypes) > 1 else dtypes.pop()

    def to_torch(self, params: Tensors, name: str) -> Iterator[np.ndarray]:
        """One tensor of the other code base, contiguous."""
        if EXTRAS + name in params:
            yield params.read(EXTRAS + name)
            return
        r, layer, part = self.sources[name]
        joined = self._joined(params, r, layer)
        if len(r.source) > 1:
            ends = np.cumsum((0, *r.sizes))
            joined = joined[ends[part] : ends[part + 1]]
        yield _contiguous(joined)

    def _joined(self, params: Tensors, r: Rule, layer: int | None) -> np.ndarray:
        """One layer of a rule as torch has it; the last one is kept, for its next source."""
        if self._last and self._last[0] is params and self._last[1] == (id(r), layer):
            return self._last[2]
        tensors = []
        for path in r.target:
            x = params.read(path) if layer is None else params.read_rows(path, layer, layer + 1)[0]
            tensors.append(r.transform.to_torch(x))
        if len({x.dtype for x in tensors}) > 1:
            tensors = [x.astype(np.float32) for x in tensors]
        joined = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        self._last[:] = [params, (id(r), layer), joined] if len(r.source) > 1 else []
        return joined

    def _rows(self, r: Rule) -> list[tuple[int, int]]:
        """Rows of the joined tensor that each target of the rule takes."""
        one = [self.joined_shape(Rule(r.source, (p,), r.transform, (), r.layers)) for p in r.target]
        ends = [0, *np.cumsum([shape[0] for shape in one]).tolist()]
        return list(zip(ends[:-1], ends[1:], strict=True))

    def _names(self, r: Rule) -> Iterator[str]:
        for name in r.source:
            for number in r.layers or (None,):
                yield name if number is None else name.format(number)


def raise_problems(problems: Sequence[str], where: str) -> None:
    """One InputError with all problems, if there are any."""
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")


def _mixed(tensors: Tensors, names: Sequence[str]) -> list[str]:
    """What to say when tensors that are one on the other side differ in dtype."""
    dtypes = sorted({str(tensors[name].dtype) for name in names})
    if len(dtypes) < 2:
        return []
    return [f"{', '.join(grouped(names))} must have one dtype, not {', '.join(dtypes)}"]


def grouped(names: Iterable[str]) -> list[str]:
    """Sorted names; those that differ in their first number only are one: "blocks.{0-18}.bias"."""
    groups: dict[tuple[str, str], list[int]] = {}
    alone = []
    for name in names:
        match = re.search(r"(?<=[./])\d+(?=[./])", name)
        if match:
            key = (name[: match.start()], name[match.end() :])
            groups.setdefault(key, []).append(int(match.group()))
        else:
            alone.append(name)
    for (before, after), numbers in groups.items():
        alone.append(f"{before}{_ranges(numbers)}{after}")
    return sorted(alone)


def _ranges(numbers: Iterable[int]) -> str:
    """[3] is "3", [0, 1, 2, 5] is "{0-2,5}"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return shown if shown.isdigit() else f"{{{shown}}}"


def _contiguous(x: np.ndarray) -> np.ndarray:
    if x.ndim == 2 and x.strides[0] < x.strides[1]:
        return transpose_last(x.T)
    return np.ascontiguousarray(x) if x.ndim else x
