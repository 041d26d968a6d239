"""An imported part beside the PyTorch module that it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax import nnx

from rb_jax.errors import InputError
from rb_jax.port.component import Component, checked_values
from rb_jax.port.family import Part, open_source, shapes
from rb_jax.port.importing import detect
from rb_jax.port.parity.official import OFFICIAL
from rb_jax.port.parity.pair import Inputs, Ours, Pair
from rb_jax.port.parity.report import Stages
from rb_jax.port.parity.stock import STOCK
from rb_jax.port.table import grouped, raise_problems
from rb_jax.weights.params import merge

PAIRS: dict[str, Pair] = STOCK | {"reasonbrain": OFFICIAL}


class Sides(NamedTuple):
    """A pair with its weights: ``forward(params, inputs)`` is ours, ``stock`` PyTorch's."""

    pair: Pair
    part: Part
    params: dict[str, np.ndarray]
    forward: Callable[[Mapping[str, Any], Inputs], Ours]
    stock: Any
    inputs: Inputs


def run_part(component: Component, reference: Path, seed: int) -> Stages:
    """Every stage of an imported part; raises InputError when the reference is of another model."""
    sides = open_sides(component, reference, seed)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        ours = jax.jit(sides.forward)(sides.params, sides.inputs)
        theirs = sides.pair.theirs(sides.stock, sides.part, sides.inputs)
    # In the order of the computation; JAX has sorted them.
    return {name: (np.asarray(ours[name]), x.numpy()) for name, x in theirs.items()}


def open_sides(component: Component, reference: Path, seed: int) -> Sides:
    """Both sides in float32 and their inputs; weights of another dtype are widened."""
    pair = PAIRS[component.family.name]
    part = Part(_common_values(component, reference, pair))
    graphs = {
        at: nnx.split(nnx.eval_shape(lambda make=make: make(nnx.Rngs(0))))[0]
        for at, make in component.family.modules(part).items()
    }
    params = {
        path: component.files.read(path).astype(np.float32)
        for path in component.paths
        if path.split("/")[0] in graphs
    }

    def forward(params: Mapping[str, Any], inputs: Inputs) -> Ours:
        modules = {at: merge(graph, _under(params, f"{at}/")) for at, graph in graphs.items()}
        return pair.ours(modules, part, inputs)

    stock = pair.stock(reference, part).eval()
    inputs = pair.inputs(part, stock, np.random.default_rng(seed))
    return Sides(pair, part, params, forward, stock, inputs)


def _under(params: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {p.removeprefix(prefix): x for p, x in params.items() if p.startswith(prefix)}


def _common_values(component: Component, reference: Path, pair: Pair) -> dict[str, dict[str, Any]]:
    """The part's values without the groups of parameters that the reference lacks.

    Raises InputError when the reference is in a layout that no stock class reads, and when what
    both have differs in shape.
    """
    family, values = component.family, {k: dict(v) for k, v in component.part.values.items()}
    source = open_source(reference)
    _, layout, names = detect(source, family.name)
    if layout.name != pair.layout or (reference.is_file() and pair.layout != "official"):
        raise InputError(
            f"{reference}: no folder in the {pair.layout} layout; give one, such as "
            f"rb-jax export --format={pair.layout} makes of the imported part"
        )
    expected = shapes(
        family.modules(Part(checked_values(layout.read(source, names), str(reference))))
    )
    have = {path: tuple(component.files[path].shape) for path in component.paths}
    for group in {path.split("/")[0] for path in have} - {path.split("/")[0] for path in expected}:
        have = {path: shape for path, shape in have.items() if not path.startswith(f"{group}/")}
        values.pop(group, None)
    if not have:
        raise InputError(f"{reference} holds nothing of {component.folder}")
    groups = {path.split("/")[0] for path in have}
    expected = {path: shape for path, shape in expected.items() if path.split("/")[0] in groups}
    problems = [f"{path} is in one of them only" for path in grouped(set(have) ^ set(expected))]
    problems += [
        f"{path} has shape {have[path]} and {expected[path]}"
        for path in have
        if path in expected and have[path] != expected[path]
    ]
    raise_problems(problems, f"{component.folder} and {reference} are not of one model")
    return values
