"""How long a save keeps the training loop waiting, beside a plain copy of the state to the host.

``python -m benchmarks.checkpoint --megabytes=1024 --json=OUT``: both in turns, in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rb_jax.checkpoint import manager as checkpoint
from rb_jax.config import Config
from rb_jax.train.state import TrainState, replace


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024, help="of the whole state")
    parser.add_argument("--arrays", type=int, default=48, help="that it is made of")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure(args.megabytes, args.arrays, args.repeats, Path(folder))
    for name, value in result.items():
        print(f"{name:<24}{value:.4f}" if isinstance(value, float) else f"{name:<24}{value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(megabytes: int, arrays: int, repeats: int, folder: Path) -> dict:
    """Medians in seconds.

    ``blocked`` is what a save adds until the step after it has run, whose buffers the save reads:
    the call itself, and how much longer than without a save that step takes.
    """
    size = megabytes * 2**20 // (4 * arrays)
    state = make_state(arrays, size)
    step = jax.jit(advance, donate_argnums=0)
    state = jax.block_until_ready(step(state))
    copies, calls, steps, after, writes = [], [], [], [], []
    with checkpoint.open_checkpoints(folder, keep=1) as manager:
        for repeat in range(repeats + 1):  # the first, which compiles and imports, does not count
            begin = time.perf_counter()
            host = [np.array(x) for x in jax.tree.leaves(state)]
            copies.append(time.perf_counter() - begin)
            del host
            begin = time.perf_counter()
            state = jax.block_until_ready(step(state))
            steps.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            manager.save(state, Config(), {})
            calls.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            state = jax.block_until_ready(step(state))
            after.append(time.perf_counter() - begin)
            manager.wait()
            writes.append(time.perf_counter() - begin)
            if repeat == 0:
                for times in (copies, calls, steps, after, writes):
                    times.clear()
    copy, call, plain, slowed, write = map(statistics.median, (copies, calls, steps, after, writes))
    return {
        "device": jax.devices()[0].device_kind,
        "megabytes": megabytes,
        "copy to the host, s": copy,
        "call of save, s": call,
        "step, s": plain,
        "step after a save, s": slowed,
        "written after, s": write,
        "call / copy": call / copy,
        "blocked / copy": (call + max(0.0, slowed - plain)) / copy,
    }


def make_state(arrays: int, size: int) -> TrainState:
    keys = jax.random.split(jax.random.key(0), arrays)
    params = {f"layer_{i}/kernel": jax.random.normal(k, (size,)) for i, k in enumerate(keys)}
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, skipped, jnp.zeros(()), params, {}, (), {})


def advance(state: TrainState) -> TrainState:
    params = {name: x * 0.999 for name, x in state.params.items()}
    return replace(state, step=state.step + 1, params=params)


if __name__ == "__main__":
    main()
