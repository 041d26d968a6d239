"""What a save costs: the loop's wait, the fingerprints of the arrays, and the bytes it writes.

``python -m benchmarks.checkpoint --megabytes=1024 --json=OUT``: the wait beside a plain copy of
the state to the host, and saves with and without fingerprints, in turns in one process; the bytes
of a first and of a further save of a state of which a hundredth is trained.
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
from rb_jax.checkpoint.fingerprints import Fingerprints
from rb_jax.checkpoint.opening import open_checkpoints
from rb_jax.config import Config
from rb_jax.storage import files, place
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
        result = measure(args.megabytes, args.arrays, args.repeats, Path(folder) / "wait")
        result |= hashing(args.megabytes, args.arrays, args.repeats, Path(folder) / "hash")
        result |= written(args.megabytes, args.arrays, Path(folder) / "bytes")
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
    with open_checkpoints(folder, keep=1) as manager:
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


class Nothing(Fingerprints):
    """In place of fingerprints: what a save takes without them, and without looking at values."""

    def __init__(self, arrays: dict):
        self.names = list(arrays)

    def values(self) -> dict[str, str]:
        return dict.fromkeys(self.names, "")

    def finite(self) -> bool:
        return True


class FiniteOnly(Nothing):
    """Looks whether all is finite, as any save must."""

    def __init__(self, arrays: dict):
        super().__init__(arrays)
        self.flags = [all_finite(x) for x in arrays.values()]

    def finite(self) -> bool:
        return all(map(bool, self.flags))


@jax.jit
def all_finite(array: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(array))


def hashing(megabytes: int, arrays: int, repeats: int, folder: Path) -> dict:
    """Medians in seconds from the call of a save until it is committed, in turns."""
    state = make_state(arrays, megabytes * 2**20 // (4 * arrays))
    kinds = {"hashed": Fingerprints, "looked at": FiniteOnly, "unseen": Nothing}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with open_checkpoints(folder, keep=1) as manager:
        for repeat in range(repeats + 1):
            for kind, made in kinds.items():
                state = jax.block_until_ready(replace(state, step=state.step + 1))
                checkpoint.Fingerprints = made  # pyright: ignore
                begin = time.perf_counter()
                manager.save(state, Config(), {})
                manager.wait()
                if repeat:  # the first, which compiles, does not count
                    times[kind].append(time.perf_counter() - begin)
    checkpoint.Fingerprints = Fingerprints
    hashed, looked, unseen = (statistics.median(times[kind]) for kind in kinds)
    return {
        "save, s": hashed,
        "without hashing, s": looked,
        "nor looking for NaN, s": unseen,
        "hashing / save": max(0.0, hashed - looked) / hashed,
    }


def written(megabytes: int, arrays: int, folder: Path) -> dict:
    """Bytes on the disk of a state of which a hundredth is trained: all of it, then a save more."""
    size = megabytes * 2**20 // (4 * arrays)
    whole = make_state(arrays, size)
    trained = {
        f"adapter_{i}/kernel": x[: max(1, len(x) // 100)]
        for i, x in enumerate(whole.params.values())
    }
    moments = {name: x * 0.9 for name, x in trained.items()}
    state = replace(
        whole, params=trained, frozen=whole.params, ema=dict(trained), opt_state=(moments, moments)
    )
    with open_checkpoints(folder) as manager:
        manager.save(state, Config(), {})
        manager.wait()
        first = sum(files(place(folder)).values())
        manager.save(replace(state, step=state.step + 1), Config(), {})
        manager.wait()
        more = sum(files(place(folder)).values()) - first
    kept = sum(x.nbytes for x in jax.tree.leaves((state.params, state.ema, state.opt_state)))
    return {
        "first save, MB": first / 1e6,
        "further save, MB": more / 1e6,
        "further / trained state": more / kept,
    }


def make_state(arrays: int, size: int) -> TrainState:
    rows = max(1, size // 1024)
    keys = jax.random.split(jax.random.key(0), arrays)
    params = {
        f"layer_{i}/kernel": jax.random.normal(key, (rows, min(size, 1024)))
        for i, key in enumerate(keys)
    }
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, skipped, jnp.zeros(()), params, {}, (), {})


def advance(state: TrainState) -> TrainState:
    params = {name: x * 0.999 for name, x in state.params.items()}
    return replace(state, step=state.step + 1, params=params)


if __name__ == "__main__":
    main()
