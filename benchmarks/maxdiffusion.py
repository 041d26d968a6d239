"""MaxDiffusion's FLUX.1-dev training step on absent TPUs, timed as the planner times ours.

    git clone https://github.com/AI-Hypercomputer/maxdiffusion
    git -C maxdiffusion checkout 25f1a081
    pip install einops chex
    python -m benchmarks.maxdiffusion --checkout=maxdiffusion

The step is the one whose measured time that commit's README gives, 1.769 s on a v5p-8 (4 chips):
``train_flux.py`` with base_flux_dev.yml and the README's arguments, which are 1024 px, two examples
a chip, FSDP over all chips, bfloat16 weights and moments, AdamW, Tokamax's flash attention and the
FLUX_OPTIMIZED recomputation. Their model and attention run as they are; the loss, the optimizer and
the layout around them are written down again here, as their trainer's module needs TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rb_jax.errors import InputError
from rb_jax.plan.analysis import show
from rb_jax.plan.compiling import analyse

# base_flux_dev.yml's, of which this step needs no others.
RULES = (
    ("batch", ("data", "fsdp")),
    ("activation_batch", ("data", "fsdp")),
    ("activation_heads", "tensor"),
    ("activation_length", "context"),
    ("activation_kv_length", "context"),
    ("activation_kv", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
)
BLOCK = 1536  # of every size of the attention's blocks
# The blocks of their attention do not fit into the compiler's default share of the vector memory.
FLAGS = ("--xla_tpu_scoped_vmem_limit_kib=65536",)
# What their modules import and this step never calls.
UNUSED = (
    "tensorflow",
    "aqt",
    "aqt.jax",
    "aqt.jax.v2",
    "aqt.jax.v2.config",
    "aqt.jax.v2.aqt_tensor",
    "aqt.jax.v2.flax",
    "aqt.jax.v2.flax.aqt_flax",
    "google.cloud",
    "google.cloud.storage",
    "qwix",
    "google_cloud_mldiagnostics",
    "datasets",
    "transformers",
)


def build(devices: Sequence[Any], checkout: str, rows: int = 2) -> jax.stages.Lowered:
    """Their step, lowered for ``devices`` with ``rows`` examples on each."""
    import flax.linen as nn
    from flax.linen import spmd
    from flax.training.train_state import TrainState

    model_class, block_sizes = _theirs(checkout)
    grid = np.asarray(devices).reshape(1, len(devices), 1, 1)
    mesh = Mesh(grid, ("data", "fsdp", "context", "tensor"))
    model = model_class(
        guidance_embeds=True,
        flash_min_seq_length=0,
        flash_block_sizes=block_sizes,
        mesh=mesh,
        dtype=jnp.bfloat16,
        weights_dtype=jnp.bfloat16,
        attention_kernel="tokamax_flash",
        remat_policy="FLUX_OPTIMIZED",
        use_base2_exp=True,
    )
    count = rows * len(devices)
    shapes = {
        "hidden_states": (count, 4096, 64),
        "img_ids": (count, 4096, 3),
        "encoder_hidden_states": (count, 512, 4096),
        "txt_ids": (count, 512, 3),
        "pooled_projections": (count, 768),
    }
    layout = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=layout)
        for name, shape in shapes.items()
    }
    scales = jnp.full((count,), 3.5, jnp.bfloat16)

    def apply(params: Any, batch: dict[str, jax.Array], t: jax.Array) -> jax.Array:
        inputs = dict(batch, timestep=t, guidance=scales)
        return model.apply({"params": params}, **inputs).sample

    def create(key: jax.Array) -> TrainState:
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in batch.items()}
        inputs = dict(zeros, timestep=scales, guidance=scales)
        params = model.init(key, **inputs)["params"]
        tx = optax.adamw(1e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
        return TrainState.create(apply_fn=apply, params=params, tx=tx)

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        key, noise_key, t_key = jax.random.split(key, 3)
        latents = batch["hidden_states"]
        noise = jax.random.normal(noise_key, latents.shape, latents.dtype)
        t = jnp.linspace(1000.0, 1.0, 50)[jax.random.randint(t_key, (count,), 0, 49)]
        sigma = (t / 1000)[:, None, None].astype(latents.dtype)
        noised = dict(batch, hidden_states=(1 - sigma) * latents + sigma * noise)

        def loss_fn(params: Any) -> jax.Array:
            return jnp.mean((noise - latents - apply(params, noised, t)) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss, key

    with mesh, nn.logical_axis_rules(RULES):
        boxed = jax.eval_shape(create, jax.random.key(0))
        layouts = spmd.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            nn.unbox(boxed),
            layouts,
        )
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(layouts, None, None))
        traced = jitted.trace(state, batch, jax.eval_shape(lambda: jax.random.key(0)))
        return traced.lower(lowering_platforms=("tpu",))


def _theirs(checkout: str) -> tuple[Any, Any]:
    """The transformer's class and the sizes of its attention's blocks, from their code."""
    sys.path.insert(0, str(Path(checkout).resolve() / "src"))
    real = {name: sys.modules.get(name) for name in UNUSED}
    sys.modules.update({name: _stand_in(name) for name in UNUSED})
    utilities = importlib.import_module("maxdiffusion.max_utils")
    models = importlib.import_module("maxdiffusion.models.flux.transformers.transformer_flux_flax")
    for name, module in real.items():  # einops asks every framework whether an array is its own
        del sys.modules[name]
        sys.modules.update({name: module} if module else {})
    sizes = (
        "block_q",
        "block_kv",
        "block_kv_compute",
        "block_q_dkv",
        "block_kv_dkv",
        "block_kv_dkv_compute",
        "block_q_dq",
        "block_kv_dq",
    )
    config = SimpleNamespace(
        attention="tokamax_flash", flash_block_sizes=dict.fromkeys(sizes, BLOCK)
    )
    return models.FluxTransformer2DModel, utilities.get_flash_block_sizes(config)


def _stand_in(name: str) -> Any:
    module = MagicMock()
    module.__spec__ = ModuleSpec(name, None)
    return module


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.maxdiffusion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkout", required=True, help="folder of their repository")
    parser.add_argument(
        "--topology", default="v5p:2x2x1", help="TPU slice, as rb-jax plan names it"
    )
    parser.add_argument("--rows", type=int, default=2, help="examples per chip (default 2)")
    parser.add_argument("--json", help="file for all figures")
    given = parser.parse_args(arguments)
    if not (Path(given.checkout) / "src/maxdiffusion").is_dir():
        print(f"--checkout={given.checkout}: no src/maxdiffusion in it", file=sys.stderr)
        return 2
    kwargs = {"checkout": given.checkout, "rows": given.rows}
    try:
        found = analyse("benchmarks.maxdiffusion:build", given.topology, kwargs=kwargs, flags=FLAGS)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(show(found, 20))
    if given.json:
        Path(given.json).write_text(found.to_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
