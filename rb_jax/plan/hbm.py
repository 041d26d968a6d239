"""Bytes between HBM and the chip that one run of an instruction needs at least."""

from __future__ import annotations

from rb_jax.plan.hlo import Computation, Instruction, Module

# These move nothing, or are counted where their work is.
FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "optimization-barrier",
        "iota-free",
        "add-dependency",
        "domain",
    ]
)
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Operands read once and results written once, without those kept in the chip's own memory.

    Of an operand that is only sliced, the slices count; of one updated in place, the update.
    """
    if instruction.opcode in FREE or instruction.opcode.endswith(("-start", "-done", "-update")):
        return 0.0
    if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
        return 0.0
    scope = _body(module, instruction)
    read = 0.0
    for number, name in enumerate(instruction.operands):
        operand = computation.instructions.get(name)
        if operand is None:
            continue
        size = sum((a.bytes for a in operand.arrays if a.space == 0), 0.0)
        if size and scope is not None:
            size = min(size, _read_in_fusion(module, scope, number, size))
        elif size and instruction.opcode in _SLICES:
            size = min(size, _written(instruction))
        elif size and instruction.opcode == "dynamic-update-slice" and number == 0:
            size = 0.0
        read += size
    return read + _result_bytes(module, computation, instruction, scope)


def _body(module: Module, instruction: Instruction) -> Computation | None:
    names = instruction.called.get("calls", ()) if instruction.opcode == "fusion" else ()
    return module.computations[names[0]] if names else None


def _written(instruction: Instruction) -> float:
    return sum((a.bytes for a in instruction.arrays if a.space == 0), 0.0)


def _read_in_fusion(module: Module, scope: Computation, number: int, size: float) -> float:
    """What a fusion reads of one parameter: its slices where nothing else uses it."""
    parameter = scope.parameter(number)
    if parameter is None:
        return size
    total = 0.0
    for user, position in _uses(scope, parameter.name):
        if user.opcode in _SLICES and position == 0:
            total += sum((a.bytes for a in user.arrays), 0.0)
        elif user.opcode == "dynamic-update-slice" and position == 0:
            continue
        elif user.opcode == "fusion" and (inner := _body(module, user)) is not None:
            total += _read_in_fusion(module, inner, position, size)
        elif user.opcode == "bitcast":
            total += _read_through(module, scope, user, size)
        else:
            return size
    return total


def _read_through(module: Module, scope: Computation, view: Instruction, size: float) -> float:
    total = 0.0
    for user, position in _uses(scope, view.name):
        sliced = user.opcode in _SLICES and position == 0
        if not sliced:
            if user.opcode == "dynamic-update-slice" and position == 0:
                continue
            return size
        total += sum((a.bytes for a in user.arrays), 0.0)
    return total if _uses(scope, view.name) else size


def _uses(scope: Computation, name: str) -> list[tuple[Instruction, int]]:
    return [
        (user, position)
        for user in scope.instructions.values()
        for position, operand in enumerate(user.operands)
        if operand == name and user.opcode != "parameter"
    ]


def _result_bytes(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    scope: Computation | None,
) -> float:
    """Results that go to HBM; an array updated in place counts as its update."""
    if instruction.opcode == "dynamic-update-slice":
        update = computation.instructions.get(instruction.operands[1])
        return sum((a.bytes for a in update.arrays), 0.0) if update else 0.0
    if scope is None:
        return _written(instruction)
    root = scope.root
    parts = [scope.instructions[n] for n in root.operands] if root.opcode == "tuple" else [root]
    arrays = instruction.arrays
    if len(parts) != len(arrays):
        return _written(instruction)
    total = 0.0
    for part, array in zip(parts, arrays, strict=True):
        if array.space == 0:
            total += _stored(module, scope, part, array.bytes)
    return total


def _stored(module: Module, scope: Computation, part: Instruction, size: float) -> float:
    for _ in range(10):
        if part.opcode == "bitcast" and part.operands[0] in scope.instructions:
            part = scope.instructions[part.operands[0]]
        elif part.opcode == "fusion" and (inner := _body(module, part)) is not None:
            scope, part = inner, inner.root
        else:
            break
    if part.opcode == "dynamic-update-slice":
        update = scope.instructions[part.operands[1]]
        return min(size, sum((a.bytes for a in update.arrays), 0.0))
    return size
