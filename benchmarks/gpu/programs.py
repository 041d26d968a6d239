"""The programs that are timed, each as (function, shapes of its arguments).

The same functions are lowered for a GPU that is there (``ours``) and, in a child of the planner,
for one that is not (the functions at the end).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from configs.flux import PRESETS, get_config
from rb_jax.config import Config, from_config_dict
from rb_jax.models.flow.sampler import euler, schedule
from rb_jax.models.layers.attention import attention as attend
from rb_jax.models.types import Conditioning, FlowBatch
from rb_jax.sharding.mesh import make_mesh
from rb_jax.train.flops import count_flops
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.state import abstract_state
from rb_jax.train.step import train_step
from rb_jax.weights.params import definition, merge

Shape = jax.ShapeDtypeStruct
KINDS = ("double_blocks", "single_blocks")


class Program(NamedTuple):
    function: Any
    args: tuple[Any, ...]  # trees of jax.ShapeDtypeStruct
    donate: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Size:
    """One scale of all measurements."""

    double_blocks: int
    single_blocks: int
    image_size: int
    queries: int  # half of the conditioning tokens
    steps: int  # of the sampler
    attention: tuple[int, int, int]  # tokens, heads, width of a head
    batches: tuple[int, ...]  # of attention
    matmul: int  # rows, columns and depth of a matrix product
    model: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def blocks(self) -> tuple[int, int]:
        return self.double_blocks, self.single_blocks


# FLUX.1-dev at 1024 px with T5's 512 tokens; and widths that differ from each other on a CPU.
TOY_MODEL = {
    "mmdit.width": 96,
    "mmdit.heads": 3,
    "mmdit.axes_dim": (8, 12, 12),
    "mmdit.context_width": 80,
    "text.width": 60,
}
SIZES = {
    "full": Size(19, 38, 1024, 256, 28, (4608, 24, 128), (1, 2, 4), 8192),
    "toy": Size(2, 3, 128, 8, 3, (160, 3, 32), (1, 2), 256, TOY_MODEL),
}


def configuration(size: str, blocks: tuple[int, int] | None = None, **changes: Any) -> Config:
    """configs/flux.py on one device, with as many blocks as given; dotted keys as ``a__b``."""
    of, values = SIZES[size], get_config("small")
    double, single = blocks or of.blocks
    values.update_from_flattened_dict(
        {f"model.{key}": value for key, value in of.model.items()}
        | {"model.mmdit.double_blocks": double, "model.mmdit.single_blocks": single}
        | {"model.cme.queries": of.queries, "data.image_size": of.image_size}
        | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return from_config_dict(values)


def fast_remat() -> dict[str, str]:
    """What configs/flux.py:fast keeps of a block, as changes for ``configuration``."""
    return {f"remat__{kind}": PRESETS["fast"][f"remat.{kind}"] for kind in KINDS}


def params_shapes(config: Config, dtype: Any = None) -> dict[str, Shape]:
    """Path -> shape of every parameter of the flow model."""
    shapes = definition(config)[1]
    return {path: Shape(x.shape, dtype or config.model.dtype) for path, x in shapes.items()}


def flow_batch(config: Config, rows: int) -> FlowBatch:
    """Shapes of what a training step reads."""
    model, dtype = config.model, config.model.dtype
    side = config.data.image_size // model.autoencoder.downsampling
    latent = (rows, side, side, model.autoencoder.latent_channels)

    def make() -> FlowBatch:
        tokens = jnp.zeros((rows, 2 * model.cme.queries, model.mmdit.context_width), dtype)
        given = Conditioning(
            tokens, jnp.zeros((rows, model.text.width), dtype), jnp.zeros(latent, dtype)
        )
        return FlowBatch(given, jnp.zeros(latent, dtype))

    return jax.eval_shape(make)


def forward_program(config: Config, rows: int = 1) -> Program:
    """One velocity: (params, z_t, t, guidance, conditioning)."""
    graphdef, given = definition(config)[0], flow_batch(config, rows).conditioning
    rows_of = Shape((rows,), jnp.float32)
    latent = Shape(given.source_latent.shape, jnp.float32)

    def velocity(params, z_t, t, guidance, conditioning):
        return merge(graphdef, params).velocity(z_t, t, guidance, conditioning)

    return Program(velocity, (params_shapes(config), latent, rows_of, rows_of, given))


def sampler_program(config: Config, steps: int, rows: int = 1) -> Program:
    """A picture from noise: one scan over ``steps`` velocities."""
    velocity, (params, latent, _, guidance, given) = forward_program(config, rows)[:2]
    tokens = latent.shape[1] * latent.shape[2] // config.model.mmdit.patch_size**2
    times = schedule(config.flow, steps, tokens)

    def sample(params, noise, guidance, conditioning):
        def at(z, t):
            return velocity(params, z, jnp.broadcast_to(t, guidance.shape), guidance, conditioning)

        return euler(at, noise, times)

    return Program(sample, (params, latent, guidance, given))


def train_program(config: Config, mesh: Mesh) -> Program:
    """One step of AdamW: (state, batch), the state donated."""
    tx = make_optimizer(config)
    state = abstract_state(config, tx, mesh)
    step = functools.partial(train_step, definition(config)[0], config, tx)
    return Program(step, (state, flow_batch(config, config.train.batch_size)), (0,))


def attention_program(size: str, rows: int, backward: bool) -> Program:
    """Attention alone; with ``backward`` also its three gradients for a given one of the output."""
    tokens, heads, width = SIZES[size].attention
    x = Shape((rows, tokens, heads, width), jnp.bfloat16)

    def gradients(q, k, v, d_out):
        return jax.vjp(attend, q, k, v)[1](d_out)

    return Program(gradients, (x,) * 4) if backward else Program(attend, (x,) * 3)


def matmul_program(size: str) -> Program:
    """What the card reaches, beside what its maker says."""
    x = Shape((SIZES[size].matmul,) * 2, jnp.bfloat16)
    return Program(jnp.matmul, (x, x))


# The rows of the table that both sides have.


def matmul_name(size: str) -> str:
    return f"matrix product, {SIZES[size].matmul} cubed"


def sampler_name(size: str) -> str:
    return f"sampler, {SIZES[size].steps} steps"


def attention_name(rows: int, backward: bool) -> str:
    return f"attention, batch {rows}, forward{' + backward' * backward}"


def attention_flops(size: str, rows: int, backward: bool) -> float:
    """Two matrix products forward; five more backward, one of them the forward's scores again."""
    tokens, heads, width = SIZES[size].attention
    return (2 + 5 * backward) * 2.0 * rows * tokens**2 * heads * width


def model_flops(program: Program) -> float:
    """Of one call, counted on the formula: a fused kernel hides its products from the count."""
    with jax.set_mesh(make_mesh(devices=jax.devices("cpu")[:1])):
        return count_flops(program.function, *program.args)


def lower(program: Program, mesh: Mesh) -> jax.stages.Lowered:
    """For the devices of ``mesh``, which need not exist."""
    device = mesh.devices.flat[0]
    jitted = jax.jit(program.function, donate_argnums=program.donate)
    with jax.set_mesh(mesh):
        traced = jitted.trace(*placed(program.args, mesh))
    return traced.lower(lowering_platforms=("cuda" if device.platform == "gpu" else "cpu",))


def placed(args: Any, mesh: Mesh) -> Any:
    """Shapes with their layouts on the mesh."""
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda x: Shape(x.shape, x.dtype, sharding=layout), args)


# What the planner compiles, by name: (devices, **kwargs) -> Lowered.


def forward(devices, size="full", rows=1):
    return lower(forward_program(configuration(size), rows), make_mesh(devices=devices))


def sampler(devices, size="full"):
    program = sampler_program(configuration(size), SIZES[size].steps)
    return lower(program, make_mesh(devices=devices))


def train(devices, size="full", blocks=None, **changes):
    mesh = make_mesh(devices=devices)
    blocks = tuple(blocks) if blocks else None
    return lower(train_program(configuration(size, blocks, **changes), mesh), mesh)


def matmul(devices, size="full"):
    return lower(matmul_program(size), make_mesh(devices=devices))


def attention(devices, size="full", rows=1, backward=False):
    return lower(attention_program(size, rows, backward), make_mesh(devices=devices))
