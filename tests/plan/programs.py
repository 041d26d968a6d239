"""Steps that the planner's tests compile; children import them by dotted name."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

OUTER, INNER = 5, 3
WIDE, NARROW, ROWS = 96, 64, 16


def oversized(devices):
    """A product whose result alone is 160 GB on one device, though its arguments are small."""
    mesh = Mesh(np.array(devices), ("fsdp",))
    whole = NamedSharding(mesh, PartitionSpec())
    tall = jax.ShapeDtypeStruct((200_000, 128), jnp.float32, sharding=whole)
    return (
        jax.jit(lambda x: jnp.sort(x @ x.T, axis=0)[0])
        .trace(tall)
        .lower(lowering_platforms=("tpu",))
    )


def nested(devices):
    """A scan of scans on a 2 x 4 mesh: weights gathered over fsdp, the sum reduced over both."""
    mesh = Mesh(np.array(devices).reshape(2, 4), ("data", "fsdp"))

    def shaped(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def loop(carry, weights):
        up, down = weights

        def inner(x, _):
            return jnp.tanh(x @ up @ down), None

        return jax.lax.scan(inner, carry, None, length=INNER)[0], None

    def total(up, down, x):
        return jax.lax.scan(loop, x, (up, down))[0].sum()

    arguments = (
        shaped((OUTER, NARROW, WIDE), None, "fsdp"),
        shaped((OUTER, WIDE, NARROW), None, None, "fsdp"),
        shaped((ROWS, NARROW), ("data", "fsdp")),
    )
    return jax.jit(total).trace(*arguments)


def matmuls(devices, layers=3, width=1024, rows=2048):
    """A scan of matrix products with weights gathered over all devices."""
    mesh = Mesh(np.array(devices), ("fsdp",))

    def shaped(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def run(weights, x):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, weights)[0]

    weights = shaped((layers, width, width), None, "fsdp")
    x = shaped((rows * len(devices), width), "fsdp")
    platform = "tpu" if devices[0].platform == "tpu" else "cuda"
    return jax.jit(run).trace(weights, x).lower(lowering_platforms=(platform,))


def attention(devices):
    """cuDNN attention and its gradient, one example a GPU."""
    mesh = Mesh(np.array(devices), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((len(devices), 256, 4, 64), jnp.bfloat16, sharding=sharding)

    def loss(q, k, v):
        out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        return jnp.square(out.astype(jnp.float32)).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x).lower(lowering_platforms=("cuda",))


def broken(devices):
    raise ValueError("two\nlines of trouble")


if __name__ == "__main__":
    compiled = nested(jax.devices()).lower().compile()
    sys.stdout.write(compiled.as_text() or "")
