"""Reads optimized HLO text: computations, instructions, and how often each runs in a step."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "f8e4m3": 1,
    "token": 0,
    "opaque": 0,
}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_COMMENT = re.compile(r"/\*[^*]*\*/")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-<>$]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-<>$]+) = ")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|called_computations|branch_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-<>$]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: element type, sizes, and where the layout puts it (0 is HBM)."""

    dtype: str
    sizes: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> float:
        return float(math.prod(self.sizes) * BYTES.get(self.dtype, 4))


@dataclasses.dataclass
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool = False

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result, a tuple's in order."""
        return parse_shape(self.shape)

    @property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> names of the computations it calls."""
        attributes: dict[str, tuple[str, ...]] = {}
        for key, value in _CALLED.findall(self.attributes):
            names = (name.strip().lstrip("%") for name in value.strip("{}").split(","))
            attributes[key] = attributes.get(key, ()) + tuple(name for name in names if name)
        return attributes

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from, empty where the compiler made it."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass
class Computation:
    name: str
    entry: bool
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)

    def parameter(self, number: int) -> Instruction | None:
        """The instruction of a numbered parameter."""
        for instruction in self.instructions.values():
            if instruction.opcode == "parameter" and instruction.operands == (str(number),):
                return instruction
        return None


@dataclasses.dataclass
class Module:
    computations: dict[str, Computation]
    header: str

    @property
    def entry(self) -> Computation:
        return next(c for c in self.computations.values() if c.entry)


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction outside fusions, and how often a step runs it."""

    instruction: Instruction
    computation: Computation
    count: float


def parse_shape(text: str) -> tuple[Array, ...]:
    """Every array of a shape's text."""
    arrays = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        numbers = tuple(int(n) for n in sizes.split(",") if n)
        arrays.append(Array(dtype, numbers, int(space[1]) if space else 0))
    return tuple(arrays)


def parse(text: str) -> Module:
    """The module of ``compiled.as_text()``; ValueError when no computation is in it."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    last: Instruction | None = None
    lines = text.splitlines()
    for line in lines:
        if current is None:
            header = _HEADER.match(line)
            if header and not line.startswith(("HloModule", " ")):
                current = Computation(header[2], bool(header[1]), {})
        elif _END.match(line):
            computations[current.name] = current
            current = last = None
        elif instruction := parse_instruction(line):
            current.instructions[instruction.name] = last = instruction
        elif last is not None:  # a kernel's metadata may hold line breaks
            last.attributes += line
    if not any(c.entry for c in computations.values()):
        raise ValueError("no ENTRY computation in this HLO text")
    return Module(computations, lines[0])


def parse_instruction(line: str) -> Instruction | None:
    """One line of a computation; None for a line that is no instruction."""
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = _COMMENT.sub("", line[match.end() :])
    end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opened = rest.index("(")
    closed = _balanced(rest, opened)
    operands = tuple(_operand(part) for part in _split(rest[opened + 1 : closed - 1]))
    opcode = rest[:opened]
    return Instruction(match[2], shape, opcode, operands, rest[closed:], bool(match[1]))


def executed(module: Module) -> Iterator[Executed]:
    """Every instruction outside fusions in the order of the schedule, with its count a step.

    Loops multiply by their trip count (1 where it cannot be read, see ``unknown_loops``);
    the branches of a conditional each count once.
    """
    yield from _walk(module, module.entry, 1.0)


def _walk(module: Module, computation: Computation, count: float) -> Iterator[Executed]:
    for instruction in computation.instructions.values():
        yield Executed(instruction, computation, count)
        for name, times in inner(module, computation, instruction):
            yield from _walk(module, module.computations[name], count * times)


def inner(
    module: Module, computation: Computation, instruction: Instruction
) -> list[tuple[str, float]]:
    """The computations an instruction runs as programs of their own, and how often each."""
    called = instruction.called
    if instruction.opcode == "while":
        trips = float(trip_count(module, computation, instruction) or 1)
        return [(called["condition"][0], trips), (called["body"][0], trips)]
    if instruction.opcode == "conditional":
        return [(name, 1.0) for names in called.values() for name in names]
    if instruction.opcode == "call":
        return [(name, 1.0) for name in called.get("to_apply", ())]
    return []


def unknown_loops(module: Module) -> list[str]:
    """Names of the loops whose trip count cannot be read from the text."""
    return [
        found.instruction.name
        for found in executed(module)
        if found.instruction.opcode == "while"
        and trip_count(module, found.computation, found.instruction) is None
    ]


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs: the compiler's note, else start, step and bound of its counter.

    None where the counter cannot be followed.
    """
    noted = re.search(r'"?known_trip_count"?[:=]\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted[1])
    condition = module.computations[loop.called["condition"][0]]
    body = module.computations[loop.called["body"][0]]
    test = _comparison(module, condition)
    if test is None:
        return None
    index, direction, bound_source = test
    start = _constant(module, computation, loop.operands[0], index)
    bound = _bound(module, computation, condition, loop, bound_source)
    step = _step(body, index, module)
    if start is None or bound is None or not step:
        return None
    span = (bound - start) if step > 0 else (start - bound)
    span += direction in ("LE", "GE")
    return max(0, -(-span // abs(step)))


def _comparison(module: Module, condition: Computation):
    """(tuple index of the counter, direction, name of the bound) of a loop's condition."""
    root, scope, names = condition.root, condition, None
    if root.opcode == "fusion":
        names = root.operands
        scope = module.computations[root.called["calls"][0]]
        root = scope.root
    direction = re.search(r"direction=(\w+)", root.attributes)
    if root.opcode != "compare" or not direction:
        return None
    outer = []
    for operand in root.operands:
        inside = scope.instructions[operand]
        if names is not None and inside.opcode == "parameter":
            outer.append(names[int(inside.operands[0])])
        elif names is not None and inside.opcode == "constant":
            outer.append(f"={inside.operands[0]}")
        else:
            outer.append(operand)
    counter = condition.instructions.get(outer[0])
    index = _index(counter) if counter else None
    return None if index is None else (index, direction[1], outer[1])


def _bound(module, computation, condition, loop, source: str) -> int | None:
    if source.startswith("="):
        return _integer(source[1:])
    index = _index(condition.instructions[source])
    if index is not None:  # carried by the loop, unchanged
        return _constant(module, computation, loop.operands[0], index)
    return _constant(module, condition, source, None)


def _constant(module: Module, scope: Computation, name: str, index: int | None) -> int | None:
    """The integer a name stands for, through copies, tuples and fusions that only repeat one."""
    for _ in range(20):
        found = scope.instructions.get(name)
        if found is None:
            return None
        if found.opcode == "constant":
            return _integer(found.operands[0])
        if found.opcode == "tuple" and index is not None:
            name, index = found.operands[index], None
        elif found.opcode == "get-tuple-element":
            name, index = found.operands[0], _index(found)
        elif found.opcode in ("copy", "bitcast", "convert", "optimization-barrier", "reshape"):
            name = found.operands[0]
        elif found.opcode == "fusion":
            scope = module.computations[found.called["calls"][0]]
            name = scope.root.name
        else:
            return None
    return None


def _step(body: Computation, index: int, module: Module) -> int | None:
    """What one pass adds to the counter."""
    if body.root.opcode != "tuple":
        return None
    found = body.instructions.get(body.root.operands[index])
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = body.instructions.get(found.operands[0])
    scope = body
    if found is not None and found.opcode == "fusion":
        scope = module.computations[found.called["calls"][0]]
        found = scope.root
    if found is None or found.opcode not in ("add", "subtract"):
        return None
    values = [_constant(module, scope, name, None) for name in found.operands]
    known = [v for v in values if v is not None]
    if not known and scope is not body:
        return 1  # the step is an operand of the fusion; counters of scans go up by one
    sign = -1 if found.opcode == "subtract" else 1
    return sign * known[-1] if known else None


def _index(instruction: Instruction) -> int | None:
    if instruction.opcode in ("copy", "bitcast"):
        return None
    match = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(match[1]) if match and instruction.opcode == "get-tuple-element" else None


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _operand(text: str) -> str:
    return text.split(" ")[-1].lstrip("%")


def _balanced(text: str, start: int) -> int:
    """Position after the bracket that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced brackets: {text[:80]}")


def _split(text: str) -> list[str]:
    """Top-level parts between commas."""
    parts, depth, last = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[last:i].strip())
            last = i + 1
    tail = text[last:].strip()
    return [*parts, tail] if tail else parts
