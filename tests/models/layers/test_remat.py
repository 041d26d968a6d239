"""What a block keeps for its backward pass: the same numbers, and as much work as the setting says.

Work is the number of matrix products in the program of the gradient, a scan's body counted once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from rb_jax.config import ConfigError, MLLMConfig
from rb_jax.config.remat import NAMES
from rb_jax.models.layers.remat import name
from rb_jax.models.layers.stack import scan_blocks, stack
from rb_jax.models.mllm.llama import LlamaBlock
from rb_jax.models.mmdit.blocks import DoubleBlock, SingleBlock, Sizes
from rb_jax.weights.params import merge
from tests import tiny

SIZES = Sizes(width=24, heads=3, mlp_width=40)
MLLM = MLLMConfig(width=24, mlp_width=36, heads=6, kv_heads=2, lora_rank=0)
TXT, IMG = jnp.asarray(tiny.normal(2, 5, 24)), jnp.asarray(tiny.normal(2, 7, 24))
VEC, ANGLE = jnp.asarray(tiny.normal(2, 24)), jnp.asarray(tiny.normal(12, 4))


def double(block, carry):
    return block(*carry, VEC, (ANGLE[:5], ANGLE[5:]))


def single(block, x):
    return block(x, VEC, ANGLE)


def llama(block, x):
    return block(x, jnp.ones((2, 7), bool), jnp.asarray(tiny.normal(2, 7, 2)))


# Stage -> how to make a block, the step of its scan, and the carry.
BLOCKS = {
    "double": (lambda r: DoubleBlock(SIZES, r), double, (IMG, TXT)),
    "single": (lambda r: SingleBlock(SIZES, r), single, jnp.concatenate([TXT, IMG], 1)),
    "llama": (lambda r: LlamaBlock(MLLM, r), llama, IMG),
}


@functools.cache
def stacked(stage: str):
    graphdef, variables = nnx.split(stack(BLOCKS[stage][0], 3, nnx.Rngs(0)))
    shapes = {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(variables)}
    return graphdef, tiny.weights(shapes)


def gradient(stage: str, remat: str):
    """The loss, with its gradient by the weights and by the carry, as a function of these."""
    graphdef, _ = stacked(stage)

    def loss(params, carry):
        out, _ = scan_blocks(merge(graphdef, params), carry, BLOCKS[stage][1], remat=remat)
        return sum((jnp.sin(x) * x).sum() for x in jax.tree.leaves(out))

    return jax.value_and_grad(loss, argnums=(0, 1))


def products(jaxpr: core.Jaxpr) -> int:
    """Matrix products in a program."""
    inner = [
        x.jaxpr if isinstance(x, core.ClosedJaxpr) else x
        for equation in jaxpr.eqns
        for x in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr))
        )
        if isinstance(x, (core.Jaxpr, core.ClosedJaxpr))
    ]
    own = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    return own + sum(map(products, inner))


@functools.cache
def work(stage: str, remat: str) -> int:
    args = stacked(stage)[1], BLOCKS[stage][2]
    return products(jax.make_jaxpr(gradient(stage, remat))(*args).jaxpr)


# A double block has, in each stream, products for modulation, qkv, proj and two for the
# feed-forward, and two for the joint attention; a single block has one for modulation, qkv and mlp
# each, two for attention and two for what follows. A kept name saves the products that make it; the
# attention's output saves one, since its backward pass needs the scores, and they are not kept.
# LLaMA's block has q, k, v, two for attention, o, gate, up and down, whose output nothing needs.
RECOMPUTED = [
    ("double", "off", 0),
    ("double", "full", 12),
    ("double", "input", 12),
    ("double", "modulation", 10),
    ("double", "qkv", 10),
    ("double", "attention", 11),
    ("double", "proj", 10),
    ("double", "mlp", 10),
    ("double", "out", 10),
    ("double", "modulation,qkv,attention,proj,mlp,out", 1),
    ("double", "qkv, mlp@host", 8),
    ("single", "off", 0),
    ("single", "full", 7),
    ("single", "proj", 7),
    ("single", "modulation", 6),
    ("single", "qkv", 6),
    ("single", "attention", 6),
    ("single", "mlp", 6),
    ("single", "out", 5),
    ("single", "mlp@host", 6),
    ("single", "modulation,qkv,attention,mlp,out", 1),
    ("llama", "full", 8),
    ("llama", "qkv", 5),
    ("llama", "attention", 7),
    ("llama", "proj", 7),
    ("llama", "mlp", 6),
    ("llama", "out", 8),
    ("llama", "qkv,attention,proj,mlp", 1),
]


@pytest.mark.parametrize(("stage", "setting", "expected"), RECOMPUTED)
def test_what_is_not_kept_is_computed_again(stage, setting, expected):
    assert work(stage, setting) - work(stage, "off") == expected


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("stage", BLOCKS)
def test_no_setting_changes_a_value_or_a_gradient(stage):
    args = stacked(stage)[1], BLOCKS[stage][2]
    plain = jax.jit(gradient(stage, "off"))(*args)
    assert all(np.any(x) for x in jax.tree.leaves(plain))
    for setting in ("full", "attention,mlp", ",".join(NAMES)):
        again = jax.jit(gradient(stage, setting))(*args)
        jax.tree.map(same, again, plain)


def test_what_goes_to_the_host_is_moved_there_and_back():
    args = stacked("single")[1], BLOCKS["single"][2]
    program = str(jax.make_jaxpr(gradient("single", "mlp@host"))(*args))
    assert "pinned_host" in program or "Host" in program
    kept = str(jax.make_jaxpr(gradient("single", "mlp"))(*args))
    assert "pinned_host" not in kept and "Host" not in kept


@pytest.mark.parametrize("group", ["double_blocks", "single_blocks", "mllm", "others"])
@pytest.mark.parametrize("setting", ["qvk", "qkv,full", "mlp@disk", "on", "qkv;mlp"])
def test_a_setting_that_cannot_be_is_named(group, setting):
    word = setting.split(",")[-1]
    with pytest.raises(ConfigError, match=rf"^config\.remat\.{group}: '{word}' is not") as error:
        tiny.config(**{f"remat__{group}": setting})
    assert "attention" in str(error.value) and "\n" not in str(error.value)


def test_only_known_names_can_be_given():
    assert tiny.config(remat__mllm=" qkv ,attention").remat.mllm
    with pytest.raises(AssertionError):
        name(IMG, "nose")
