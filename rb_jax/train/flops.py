"""Model FLOPs, counted from the traced program: what the mathematics asks for.

Matrix products and convolutions only (2 per multiply-add), scans times their length; recomputation
by remat and whatever a compiler adds do not count. The program is that for one CPU, where nothing
hides in a fused kernel or fills up a mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.sharding import AbstractDevice, use_abstract_mesh

from rb_jax.sharding.mesh import AXES, abstract_mesh


def count_flops(function: Callable, *args) -> float:
    """FLOPs of one call; ``args`` may be arrays or ShapeDtypeStructs.

    Traced as for a CPU, where no kernel hides its products.
    """
    cpu = AbstractDevice("cpu", None, "cpu")
    with use_abstract_mesh(abstract_mesh((1,) * len(AXES), cpu)):
        return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> float:
    return sum((_of_equation(equation) for equation in jaxpr.eqns), 0.0)


def _of_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    inputs: list[Any] = [x.aval for x in equation.invars]
    outputs: list[Any] = [x.aval for x in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = inputs[0], outputs[0]
        return 2.0 * math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, out = inputs[1], outputs[0]
        out_channels = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(out.shape) * math.prod(kernel.shape) / out_channels
    repeats = params["length"] if name == "scan" else 1
    inner = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)))
    jaxprs = (x.jaxpr if isinstance(x, core.ClosedJaxpr) else x for x in inner)
    return repeats * sum((_of_jaxpr(x) for x in jaxprs if isinstance(x, core.Jaxpr)), 0.0)
