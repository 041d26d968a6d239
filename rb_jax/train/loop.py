"""The training loop: data, steps, evaluation, checkpoints, and continuing where a run stopped."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
from etils import epath
from flax import nnx
from tqdm import tqdm

from rb_jax.checkpoint import layout
from rb_jax.checkpoint.opening import open_checkpoints
from rb_jax.config import Config
from rb_jax.files import to_json, write_text
from rb_jax.runtime.exits import EXIT_IO, STATUS, RunError, Signals, installed
from rb_jax.runtime.processes import from_primary, is_primary, say, wait_for_all
from rb_jax.runtime.stopping import StopRequest
from rb_jax.runtime.watchdog import LONG, Watchdog
from rb_jax.sharding.mesh import (
    check_batch_size,
    check_heads,
    make_mesh,
    replicated,
)
from rb_jax.storage import Mirror, Unreachable, beginning, place
from rb_jax.train import feed
from rb_jax.train.evaluation import Evaluator
from rb_jax.train.guard import Guard
from rb_jax.train.initial import check_sources
from rb_jax.train.metrics import LINES, Clock, RunLog, Window, peak_flops
from rb_jax.train.optimizer import make_optimizer
from rb_jax.train.profiler import Profiler
from rb_jax.train.run import Run
from rb_jax.train.state import (
    TrainState,
    layout_of,
    parameter_report,
)
from rb_jax.train.step import train_step
from rb_jax.train.stepper import Stepper
from rb_jax.train.workdir import start, weights_step, write_weights
from rb_jax.weights.params import definition

# The actions that come round every train.<name>_every steps.
CADENCES = ("log", "eval", "checkpoint")
SYNC_SECONDS = 60.0  # at most, until a bucket shows what was logged


def train(config: Config, workdir: str | Path, signals: Signals | None = None) -> int:
    """Trains to config.train.steps in ``workdir``, continuing what is there; the exit status.

    0 when finished, 75 or 130 after SIGTERM or ctrl-C, in both cases with a checkpoint from which
    the same command continues with the very next batch. Writes checkpoints/, metrics.jsonl,
    tensorboard/, samples/ and at the end weights/. Of several processes each must call this with
    the same values; a signal to one stops all after the same step. ``workdir`` may be in a bucket
    (gs://BUCKET/RUN, s3://BUCKET/RUN). ``signals`` are those of the process if it has handlers
    already. Raises InputError when the workdir holds a run of another configuration, one that is at
    work, or only damaged checkpoints, ConfigError when the configuration cannot be trained,
    RunError when the run cannot go on.
    """
    try:
        with ExitStack() as stack:
            signals = signals or stack.enter_context(installed())
            return _train(config, place(workdir, "workdir"), signals, stack)
    except OSError as error:
        raise RunError(EXIT_IO, f"{workdir}: {error}; what was saved is intact") from error
    except Unreachable as error:
        raise RunError(EXIT_IO, f"{error}; what was saved is intact") from error


def _train(config: Config, workdir: epath.Path, signals: Signals, stack: ExitStack) -> int:
    settings = config.train
    mesh = make_mesh(config.mesh)
    check_batch_size(mesh, settings.batch_size)
    check_heads(mesh, config.model)
    with beginning(workdir):
        there = layout.steps(workdir / layout.FOLDER)
    if not there:  # a run that cannot begin leaves nothing
        check_sources(config)
        feed.check_data(config)
    watchdog = stack.enter_context(closing(Watchdog(settings.step_timeout)))
    kept = (settings.keep_checkpoints, settings.keep_every)
    manager = stack.enter_context(open_checkpoints(workdir, *kept))
    signals.at_end = manager.unlock
    say(f"{mesh.size} x {mesh.devices.flat[0].device_kind}, workdir {workdir}")
    watchdog.allow("reading the checkpoint", LONG)
    state, saved = start(config, manager, mesh)
    watchdog.off()
    say(parameter_report(state))
    step = int(state.step)
    finished = is_primary() and weights_step(workdir) == step
    if step >= settings.steps and from_primary(finished):
        say(f"{workdir}: already finished, {step} steps; raise train.steps to train on")
        return 0
    outputs = stack.enter_context(Mirror(workdir, (LINES,) if is_primary() else ()))
    if is_primary():
        write_text(outputs.folder / "config.json", to_json(dataclasses.asdict(config)))
    evaluates = saved.get("evaluates", False)
    log = RunLog(outputs.folder, step, evaluates, settings.wandb, str(workdir))
    stack.enter_context(closing(log))
    guard = Guard(settings.max_skipped, int(state.skipped), saved.get("skipped_in_a_row", 0))
    profiler = stack.enter_context(closing(Profiler(config.profile, outputs.folder)))
    run = Run(
        config,
        outputs,
        mesh,
        manager,
        log,
        Window(saved.get("window")),
        Clock(saved.get("seconds")),
        StopRequest(mesh, signals),
        guard,
        watchdog,
        profiler,
        evaluates,
    )
    state, received = train_steps(run, state)
    watchdog.allow("the last checkpoint", LONG)
    manager.wait()
    if run.failure is not None:
        raise run.failure
    wait_for_all()
    received = received or run.stop.answer(run.stop.ask())  # it may have come late
    watchdog.off()
    signals.release()
    if received:
        say(f"stopped at step {int(state.step)}, saved; the same command continues")
        return STATUS[received]
    write_weights(workdir, config, state)
    say(f"finished: {int(state.step)} steps, weights in {workdir / 'weights'}")
    return 0


def train_steps(run: Run, state: TrainState) -> tuple[TrainState, int]:
    """Runs until config.train.steps or a signal; the last state, saved, and the signal (or 0)."""
    config, first = run.config, int(state.step)
    graphdef = definition(config)[0]
    evaluator = Evaluator(config, graphdef, run.mesh)
    if run.evaluates:
        run.evaluates = not evaluate(run, evaluator, state)
        if run.evaluates:
            return state, run.reason_to_stop()
        run.watchdog.off()
        run.stop.signals.release()  # nothing new to lose yet
    if first >= config.train.steps:
        return state, 0
    stream = feed.train_batches(config, run.scratch, graphdef, state, run.mesh)
    batches = feed.Interruptible(stream, run.stop.alone)
    batch = run.next_batch(batches)
    run.watchdog.allow("compiling the step", LONG)
    stepper = compile_step(run, graphdef, state, batch)
    progress = Progress(first, config.train.steps)
    run.stop.signals.hold()
    with closing(progress), closing(batches):
        for step in range(first + 1, config.train.steps + 1):
            slow = step == first + 1
            if not stepper.knows(batch):  # the first batch of a bucket
                slow = True
                run.take_pending()
                if signal := run.saved_before(state, "compiling the step for another shape"):
                    return state, signal
                with run.compiling():
                    stepper.compile(state, batch)
            state, asked = launch(run, stepper, state, batch, step, slow)
            if step < config.train.steps:
                batch = run.next_batch(batches)  # None: a signal came first
            signal = run.stop.answer(asked)  # read once: one may come at any point below
            signal = finish(run, stepper, evaluator, progress, state, step, signal)
            progress.update(step)
            if signal:
                return state, signal
    return state, 0


def launch(
    run: Run, stepper: Stepper, state: TrainState, batch: Any, step: int, slow: bool
) -> tuple[TrainState, jax.Array | None]:
    """Gives the devices a step to work on; its state, and the question whether to stop.

    Meanwhile the metrics of the step before are read.
    """
    run.watchdog.allow(f"step {step}", LONG if slow else 1)
    run.stop.failed = run.manager.failed() or run.failure is not None
    asked = run.stop.ask()
    run.profiler.before(step, state.step)
    state, metrics = stepper.step(state, batch)
    run.clock.count(stepper.flops(batch))
    run.take_pending()
    run.pending = metrics
    return state, asked


def finish(
    run: Run,
    stepper: Stepper,
    evaluator: Evaluator,
    progress: Progress,
    state: TrainState,
    step: int,
    signal: int,
) -> int:
    """Logs, evaluates and saves as is due after a step; the signal for which to stop, or 0."""
    run.check_saved(signal)
    final = step == run.config.train.steps
    due = {k: step % getattr(run.config.train, f"{k}_every") == 0 for k in CADENCES}
    if final or signal or any(due.values()):
        run.take_pending()
    if due["log"] or final:
        log_line(run, step, stepper, progress)
    run.evaluates = due["eval"] or final
    if run.evaluates and not signal:
        run.evaluates = not evaluate(run, evaluator, state)
        # A signal that came meanwhile, also to another process.
        signal = run.reason_to_stop() if run.evaluates else 0
    if due["checkpoint"] or final or signal:
        run.save(state)
    return signal


def evaluate(run: Run, evaluator: Evaluator, state: TrainState) -> bool:
    """Whether it was done, not ended by a reason to stop."""
    if not evaluator.ready:
        if run.saved_before(state, "compiling the evaluation"):
            return False
        with run.compiling():
            evaluator.compile(state)
    run.watchdog.allow("an evaluation", LONG)
    with run.clock.phase("evaluation"):
        done = evaluator.evaluate(run.workdir, run.log, state, run.stop.now)
        run.copy_outputs()
        return done


def compile_step(run: Run, graphdef: nnx.GraphDef, state: TrainState, batch: Any) -> Stepper:
    """Compiles the step for this batch's shapes and says how long that took."""
    config = run.config
    layouts = (layout_of(state), replicated(run.mesh))
    step = functools.partial(train_step, graphdef, config, make_optimizer(config))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=layouts)
    peak, source = peak_flops(list(run.mesh.devices.flat))
    stepper = Stepper(config, jitted, run.mesh, peak)
    with run.clock.phase("compile"):
        stepper.compile(state, batch)
    seconds, flops = run.clock.spent["compile"], stepper.flops(batch)
    say(
        f"compiled the step in {seconds:.1f} s; {flops / 1e9:.2f} GFLOP per step; "
        f"{peak / 1e12:.2f} TFLOP/s ({source})"
    )
    row = {"compile_seconds": seconds, "step_flops": flops, "peak_flops": peak}
    row |= {"peak_source": source, "batch_size": config.train.batch_size}
    run.log.write("start", int(state.step), row)
    return stepper


def log_line(run: Run, step: int, stepper: Stepper, progress: Progress) -> None:
    """Writes the window's means and starts the next one."""
    means = run.window.means()
    speed = run.clock.report(stepper.peak)
    run.log.write("train", step, means | speed)
    run.window.sums.clear()
    if time.monotonic() - run.synced > SYNC_SECONDS:
        run.copy_outputs()
    progress.show(step, means["loss"], speed["steps_per_second"])


class Progress:
    """A bar on a terminal; elsewhere one plain line each time the loss is logged."""

    def __init__(self, first: int, steps: int):
        self.steps = steps
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True)

    def update(self, step: int) -> None:
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def show(self, step: int, loss: float | None, rate: float) -> None:
        text = "not finite" if loss is None else f"{loss:.4f}"
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {text}", refresh=False)
            return
        left = tqdm.format_interval((self.steps - step) / rate)
        say(f"step {step}/{self.steps}  loss {text}  {rate:.2f} steps/s  {left} left")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
