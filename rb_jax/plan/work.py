"""FLOPs of compiled instructions: matrix products, convolutions and attention kernels.

Two per multiply-add, of what runs: recomputation counts, padding and zeros between dilated
elements do not. XLA:TPU writes matrix products as convolutions whose batch sits in window axes, so
that the positions a window really touches must be counted.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from rb_jax.plan.hlo import Array, Computation, Instruction, Module

# Kernels known by a part of their name: matrix products of size (queries x keys x width) that each
# runs, the queries' and keys' operands counted from the last of the rank-4 ones they begin with.
KERNELS: dict[str, float] = {
    "splash_mha_fwd": 2,  # scores, values
    "splash_mqa_fwd": 2,
    "splash_mha_dq": 3,  # scores, dP, dQ
    "splash_mqa_dq": 3,
    "splash_mha_dkv": 4,  # scores, dV, dP, dK
    "splash_mqa_dkv": 4,
    "fmhaSoftmaxBackward": 5,  # scores, dV, dP, dQ, dK
    "fmhaSoftmax": 2,
    "fmhaScaleBiasSoftmaxBackward": 5,
    "fmhaScaleBiasSoftmax": 2,
}
Costs = Mapping[str, float]  # part of a kernel's name -> FLOPs of one call


def instruction_flops(
    module: Module, computation: Computation, instruction: Instruction, costs: Costs | None = None
) -> float:
    """FLOPs of one run on one device, those inside a fusion included."""
    opcode = instruction.opcode
    if opcode == "dot":
        return _dot(computation, instruction)
    if opcode == "convolution":
        return _convolution(computation, instruction)
    if opcode == "custom-call":
        return _custom_call(computation, instruction, costs or {})
    if opcode == "fusion":
        total = 0.0
        for name in instruction.called.get("calls", ()):
            inside = module.computations[name]
            for part in inside.instructions.values():
                total += instruction_flops(module, inside, part, costs)
        return total
    return 0.0


def operand_arrays(computation: Computation, instruction: Instruction) -> list[Array]:
    """The arrays that an instruction reads, tuples flattened."""
    operands = (computation.instructions.get(name) for name in instruction.operands)
    return [array for operand in operands if operand for array in operand.arrays]


def _dot(computation: Computation, instruction: Instruction) -> float:
    left = operand_arrays(computation, instruction)[0]
    contracted = _numbers(instruction.attributes, "lhs_contracting_dims")
    out = math.prod(instruction.arrays[0].sizes)
    return 2.0 * out * math.prod(left.sizes[i] for i in contracted)


def _convolution(computation: Computation, instruction: Instruction) -> float:
    left, kernel = operand_arrays(computation, instruction)[:2]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"{instruction.name}: a convolution without dim_labels")
    window = _window(instruction.attributes, sum(c.isdigit() for c in labels[1]))
    out = instruction.arrays[0]
    positions = 1
    for i, axis in enumerate(window):
        digit = str(i)
        sizes = (
            left.sizes[labels[1].index(digit)],
            kernel.sizes[labels[2].index(digit)],
            out.sizes[labels[3].index(digit)],
        )
        positions *= _valid_positions(*sizes, **axis)
    batches = _number(instruction.attributes, "batch_group_count", 1)
    features = kernel.sizes[labels[2].index("i")]  # already of one group
    rows = left.sizes[labels[1].index("b")] // batches
    out_features = kernel.sizes[labels[2].index("o")]
    return 2.0 * positions * features * rows * out_features


@functools.lru_cache(maxsize=4096)
def _valid_positions(
    left: int,
    kernel: int,
    out: int,
    stride: int = 1,
    low: int = 0,
    left_dilation: int = 1,
    kernel_dilation: int = 1,
) -> int:
    """Pairs (output, kernel element) of one window axis that meet an element of the input."""
    begin = np.arange(out, dtype=np.int64) * stride - low
    extent = (left - 1) * left_dilation + 1
    total = 0
    for element in range(kernel):
        position = begin + element * kernel_dilation
        inside = (position >= 0) & (position < extent)
        if left_dilation > 1:
            inside &= position % left_dilation == 0
        total += int(inside.sum())
    return total


def _window(attributes: str, axes: int) -> list[dict[str, int]]:
    """Keyword arguments of ``_valid_positions`` for each window axis."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in (match[1].split() if match else []))
    window: list[dict[str, int]] = [{} for _ in range(axes)]
    for field, key in (
        ("stride", "stride"),
        ("lhs_dilate", "left_dilation"),
        ("rhs_dilate", "kernel_dilation"),
    ):
        for axis, value in zip(window, fields.get(field, "").split("x"), strict=False):
            if value:
                axis[key] = int(value)
    for axis, value in zip(window, fields.get("pad", "").split("x"), strict=False):
        if value:
            axis["low"] = int(value.split("_")[0])
    return window


def _custom_call(computation: Computation, instruction: Instruction, costs: Costs) -> float:
    target = custom_call_target(instruction)
    label = f"{instruction.name} {target} {instruction.op_name}"
    for part, flops in costs.items():
        if part in label:
            return flops
    if "gemm" in target or "matmul" in target:
        return _library_matmul(computation, instruction)
    for part, products in KERNELS.items():
        if part in label:
            return products * _attention_product(computation, instruction)
    return 0.0


def custom_call_target(instruction: Instruction) -> str:
    """The target of a custom call, empty for other instructions."""
    match = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return match[1] if match else ""


def unpriced_kernels(module: Module, costs: Costs | None = None) -> list[str]:
    """Kernels whose FLOPs nobody stated and no shape gives."""
    names = []
    for computation in module.computations.values():
        for instruction in computation.instructions.values():
            target = custom_call_target(instruction)
            kernel = "tpu_custom_call" in target or target.startswith(("__cudnn", "mosaic"))
            if kernel and not _custom_call(computation, instruction, costs or {}):
                names.append(instruction.name)
    return names


def _attention_product(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of one (queries x keys x width) product of all heads of an attention kernel."""
    arrays = operand_arrays(computation, instruction)
    wide = [a for a in arrays if a.dtype in ("bf16", "f16", "f32") and len(a.sizes) in (3, 4)]
    if len(wide) < 2:
        return 0.0
    queries, keys = wide[0].sizes, wide[1].sizes
    if custom_call_target(instruction).startswith("__cudnn"):
        return 2.0 * math.prod(queries) * keys[1]  # (batch, length, heads, width)
    return 2.0 * math.prod(queries) * keys[-2]


def _library_matmul(computation: Computation, instruction: Instruction) -> float:
    """cuBLAS calls carry the contracted dimensions in their backend configuration."""
    left = operand_arrays(computation, instruction)[0]
    match = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    contracted = [int(n) for n in re.findall(r"\d+", match[1])] if match else []
    out = math.prod(instruction.arrays[0].sizes)
    return 2.0 * out * math.prod(left.sizes[i] for i in contracted) if contracted else 0.0


def _numbers(attributes: str, key: str) -> list[int]:
    match = re.search(rf"\b{key}=\{{([^}}]*)\}}", attributes)
    return [int(n) for n in match[1].split(",") if n] if match else []


def _number(attributes: str, key: str, default: int) -> int:
    match = re.search(rf"\b{key}=(\d+)", attributes)
    return int(match[1]) if match else default
