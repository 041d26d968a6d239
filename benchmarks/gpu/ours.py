"""rb_jax's side: each function measures one part and hands its rows to ``write``."""

from __future__ import annotations

import dataclasses
import math
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.gpu import programs
from benchmarks.gpu.programs import SIZES, Program, Shape
from benchmarks.gpu.rows import OURS, Row, measured
from rb_jax.config import Config
from rb_jax.runtime.compiling import fast_compile
from rb_jax.sharding.chips import device_flops
from rb_jax.sharding.mesh import compiler_options, make_mesh

Write = Callable[[Row], None]
# ||out - reference|| / ||reference|| beyond which nothing is timed: bfloat16 gives about 0.01.
LIMIT = 0.03
WARM_UP = 2
# Of the card's memory: what a program may take of what the allocator holds.
FULL = 0.98


def forward(size: str, repeats: int, write: Write) -> None:
    """One velocity of the flow model, and a whole picture of the sampler."""
    mesh, config, of = make_mesh(), programs.configuration(size), SIZES[size]
    error = forward_error(size, mesh)
    program = programs.forward_program(config)
    tflop = programs.model_flops(program) / 1e12
    call, seconds = compiled(program, mesh)
    params = random_params(program.args[0])
    inputs = [(params, *random_like(program.args[1:], key)) for key in range(3)]
    times = timed(call, inputs, repeats)
    check_output(call(*inputs[0]))
    note = f"error {error:.1e} against float32; compiled in {seconds:.0f} s"
    plan = {"build": "forward"}
    write(measured("forward", OURS, times, tflop, peak=peak(mesh), note=note, plan=plan))

    program = programs.sampler_program(config, of.steps)
    call, seconds = compiled(program, mesh)
    inputs = [(params, *random_like(program.args[1:], key)) for key in range(3)]
    times = timed(call, inputs, max(3, repeats // 4), warm_up=1)
    check_output(call(*inputs[0]))
    note = f"one scan; compiled in {seconds:.0f} s"
    what, plan = programs.sampler_name(size), {"build": "sampler"}
    write(measured(what, OURS, times, of.steps * tflop, peak=peak(mesh), note=note, plan=plan))


def forward_error(size: str, mesh: Mesh) -> float:
    """Of two blocks of each kind in bfloat16, against the same numbers in float32."""
    double, single = SIZES[size].blocks
    config = programs.configuration(size, (min(2, double), min(2, single)))
    program = programs.forward_program(config)
    params = random_params(program.args[0])
    args = params, *random_like(program.args[1:], key=11)
    exact_args = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    shapes = jax.tree.map(lambda x: Shape(x.shape, x.dtype), exact_args)
    with jax.default_matmul_precision("highest"):
        exact = compiled(program._replace(args=shapes), mesh)[0](*exact_args)
    return checked_error(compiled(program, mesh)[0](*args), exact)


def attention(size: str, repeats: int, write: Write) -> None:
    """Attention alone; first one large matrix product, the rate that the card can reach."""
    mesh = make_mesh()
    program = programs.matmul_program(size)
    call, _ = compiled(program, mesh)
    inputs = [random_like(program.args, key) for key in range(3)]
    times = timed(call, inputs, repeats, inner=10)
    tflop, what = programs.model_flops(program) / 1e12, programs.matmul_name(size)
    plan: dict[str, Any] = {"build": "matmul"}
    write(measured(what, OURS, times, tflop, peak=peak(mesh), plan=plan))
    for rows in SIZES[size].batches:
        for backward in (False, True):
            program = programs.attention_program(size, rows, backward)
            error = attention_error(program, mesh)
            call, _ = compiled(program, mesh)
            inputs = [random_like(program.args, key) for key in range(4)]
            times = timed(call, inputs, repeats, inner=10)
            tflop = programs.attention_flops(size, rows, backward) / 1e12
            note = f"error {error:.1e} against float32"
            plan = {"build": "attention", "rows": rows, "backward": backward}
            what = programs.attention_name(rows, backward)
            write(measured(what, OURS, times, tflop, peak=peak(mesh), note=note, plan=plan))


def attention_error(program: Program, mesh: Mesh) -> float:
    """Of one example, against float32."""
    args = random_like(program.args, key=5)
    one = jax.tree.map(lambda x: x[:1].astype(jnp.float32), args)
    shapes = jax.tree.map(lambda x: Shape(x.shape, x.dtype), one)
    with jax.default_matmul_precision("highest"):
        exact = compiled(program._replace(args=shapes), mesh)[0](*one)
    out = compiled(program, mesh)[0](*args)
    return checked_error(jax.tree.map(lambda x: x[:1], out), exact)


def train(size: str, repeats: int, write: Write) -> None:
    """A step of the largest flow model that fits; weights and moments in bfloat16, and every
    activation kept that has a name."""
    mesh, refused = make_mesh(), []
    for blocks, rows in candidates(size):
        changes = {"train__batch_size": rows} | programs.fast_remat()
        config = programs.configuration(size, blocks, **changes)
        label = f"{blocks[0]} + {blocks[1]} blocks, batch {rows}"
        try:
            row = train_step(config, mesh, repeats)
        except MemoryError as error:
            refused.append(f"{label}: {error}")
            continue
        row.note = "; ".join([label, row.note, *refused])
        row.plan = {"build": "train", "blocks": blocks, **changes}
        write(row)
        return
    write(Row("training step", OURS, note="; ".join(["nothing fits", *refused])))


def candidates(size: str) -> list[tuple[tuple[int, int], int]]:
    """(blocks, examples of a batch), the wanted first."""
    double, single = SIZES[size].blocks
    if size == "toy":
        return [((double, single), 2)]
    fewer = [(max(1, round(double * s)), max(1, round(single * s))) for s in (0.75, 0.5, 0.25)]
    return [((double, single), rows) for rows in (3, 2, 1)] + [(blocks, 1) for blocks in fewer]


def train_step(config: Config, mesh: Mesh, repeats: int) -> Row:
    """MemoryError, with the numbers, when it does not fit."""
    program = programs.train_program(config, mesh)
    limit = memory_limit(mesh)
    kept = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(program.args))
    grads = sum(math.prod(x.shape) * x.dtype.itemsize for x in program.args[0].params.values())
    if kept + grads > limit:
        raise MemoryError(f"{(kept + grads) / 2**30:.0f} GiB before any activation")
    call, seconds = compiled(program, mesh)
    analysis = call.memory_analysis()
    needed = 0 if analysis is None else analysis.peak_memory_in_bytes
    if needed > limit:
        raise MemoryError(f"needs {needed / 2**30:.0f} of {limit / 2**30:.0f} GiB")
    try:
        state = random_state(program.args[0])
        times, loss = [], math.nan
        for number in range(WARM_UP + repeats):
            batch = jax.block_until_ready(random_like(program.args[1], key=number))
            begin = time.perf_counter()
            state, metrics = jax.block_until_ready(call(state, batch))
            times.append(time.perf_counter() - begin)
            loss = float(metrics["loss"])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError("out of memory while running") from error
    if not math.isfinite(loss) or int(metrics["skipped"]):
        raise SystemExit(f"the training step gives a loss of {loss}")
    shapes = programs.forward_program(config, config.train.batch_size)
    tflop = 3 * programs.model_flops(shapes) / 1e12
    note = f"{needed / 2**30:.1f} GiB, loss {loss:.3g}, compiled in {seconds:.0f} s"
    times = times[WARM_UP:]
    return measured("training step", OURS, times, tflop, peak=peak(mesh), note=note)


def memory_limit(mesh: Mesh) -> float:
    """Bytes; infinite where the device does not say."""
    stats = mesh.devices.flat[0].memory_stats() or {}
    return FULL * stats["bytes_limit"] if "bytes_limit" in stats else math.inf


def peak(mesh: Mesh) -> float | None:
    return device_flops(mesh.devices.flat[0].device_kind)


def compiled(program: Program, mesh: Mesh) -> tuple[Any, float]:
    """The program for this machine's device, with the package's options, and the seconds spent."""
    begin = time.perf_counter()
    on_gpu = mesh.devices.flat[0].platform == "gpu"  # a CPU only checks that all of this runs
    options = compiler_options(mesh) if on_gpu else fast_compile({"cpu"})
    made = programs.lower(program, mesh).compile(options)
    return made, time.perf_counter() - begin


def timed(
    call: Any, inputs: Sequence[Any], repeats: int, inner: int = 1, warm_up: int = WARM_UP
) -> list[float]:
    """Seconds of a call, ``repeats`` times; ``inner`` calls in a row hide the host's part.

    The inputs take turns, so that no call finds its own in the cache.
    """
    for number in range(warm_up):
        jax.block_until_ready(call(*inputs[number % len(inputs)]))
    times = []
    for number in range(repeats):
        out = None
        begin = time.perf_counter()
        for i in range(inner):
            out = call(*inputs[(number * inner + i) % len(inputs)])
        jax.block_until_ready(out)
        times.append((time.perf_counter() - begin) / inner)
    return times


def checked_error(out: Any, exact: Any) -> float:
    """The largest relative error of the arrays; ends the program beyond ``LIMIT``."""
    pairs = zip(jax.tree.leaves(out), jax.tree.leaves(exact), strict=True)
    errors = [_error(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    error = float(np.max(errors))  # unlike max(), NaN if one is
    if not error < LIMIT:
        raise SystemExit(f"wrong numbers: relative error {error:.3g}, allowed {LIMIT}")
    return error


def _error(out: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(out - exact) / np.linalg.norm(exact))


def check_output(out: jax.Array) -> None:
    size = float(jnp.sqrt(jnp.mean(jnp.square(out.astype(jnp.float32)))))
    if not (math.isfinite(size) and size > 1e-3):
        raise SystemExit(f"the output's root mean square is {size}: zeros or not finite")


def random_like(shapes: Any, key: int) -> Any:
    """Arrays of these shapes: standard normal, and times and guidance uniform in 0 to 1."""
    leaves, tree = jax.tree.flatten(shapes)
    draw = jax.jit(_draw, static_argnums=(1, 2))
    keys = jax.random.split(jax.random.key(key, impl="rbg"), len(leaves))
    return jax.tree.unflatten(
        tree, [draw(k, x.shape, x.dtype.name) for k, x in zip(keys, leaves, strict=True)]
    )


def _draw(key, shape, dtype):
    if len(shape) == 1:
        return jax.random.uniform(key, shape, dtype, 0.1, 1.0)
    return jax.random.normal(key, shape, jnp.float32).astype(dtype)


def random_params(shapes: dict[str, Shape]) -> dict[str, jax.Array]:
    """No zeros, which a fresh model's gates and last layer are: the real sizes of activations.

    Matrices keep the size of what goes in, modulations and gates are near a third, biases small.
    """

    def make():
        key = jax.random.key(0, impl="rbg")
        return {
            path: _parameter(jax.random.fold_in(key, zlib.crc32(path.encode())), path, x)
            for path, x in shapes.items()
        }

    return jax.block_until_ready(jax.jit(make)())


def _parameter(key, path: str, shape: Shape) -> jax.Array:
    """One layer of a stack after the other: in float32 a whole one would take 10 GB."""
    centre, spread = 0.0, 0.3 if "/lin/" in path else 1.0
    if path.endswith("/scale"):
        centre, spread = 1.0, 0.1
    elif path.endswith("/bias"):
        spread = 0.02
    else:
        spread /= math.sqrt(shape.shape[-2])

    def draw(key, sizes):
        return (centre + spread * jax.random.normal(key, sizes, jnp.float32)).astype(shape.dtype)

    if len(shape.shape) < 3:
        return draw(key, shape.shape)
    keys = jax.random.split(key, shape.shape[0])
    return jax.lax.map(lambda k: draw(k, shape.shape[1:]), keys)


def random_state(state: Any) -> Any:
    """Random parameters, an optimizer that has seen nothing."""
    params = random_params(state.params)

    def rest():
        counters = (state.step, state.skipped, state.norm_average)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (counters, state.opt_state))

    (step, skipped, norm_average), opt_state = jax.jit(rest)()
    return dataclasses.replace(
        state,
        step=step,
        skipped=skipped,
        norm_average=norm_average,
        params=params,
        opt_state=opt_state,
    )
