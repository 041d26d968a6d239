"""Orbax's manager and writer with the settings of this package."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from rb_jax.checkpoint.barriers import Barriers
from rb_jax.checkpoint.layout import ITEMS, LOOP, atomicity, handler

WRITE_SECONDS = 6 * 3600  # for one checkpoint; the watchdog is what notices a hang


def manager(
    folder: epath.Path,
    kept: tuple[int, int],
    before_commit: Callable[[], None],
    barriers: Barriers,
) -> ocp.CheckpointManager:
    """Orbax's manager of the steps in a folder: retention, writing in the background, the commit.

    ``kept`` is how many of the newest stay (0: all), and every how many steps one stays besides
    (0: none). ``before_commit`` runs on the first process, when all have written.
    """
    logging.getLogger("absl").addFilter(_worth_saying)
    newest, every = kept
    policies = ocp.checkpoint_managers
    preserved: list[Any] = [policies.LatestN(newest or None)]
    if newest and every:
        preserved.append(policies.EveryNSteps(every))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(preserved),
        save_root_metadata=False,
        lightweight_initialize=True,
        atomicity_options=atomicity(folder),
        async_options=_in_background(before_commit, barriers),
    )
    handlers: dict[str, Any] = {item: handler() for item in ITEMS.values()}
    handlers[LOOP] = ocp.JsonCheckpointHandler()
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def one(
    folder: epath.Path, before_commit: Callable[[], None], barriers: Barriers
) -> ocp.AsyncCheckpointer:
    """A writer of one folder of arrays, which is committed as a step is."""
    return ocp.AsyncCheckpointer(
        handler(),
        async_options=_in_background(before_commit, barriers),
        atomicity_options=atomicity(folder),
    )


def _in_background(before_commit: Callable[[], None], barriers: Barriers) -> ocp.AsyncOptions:
    return ocp.AsyncOptions(
        timeout_secs=WRITE_SECONDS,
        post_finalization_callback=before_commit,
        barrier_sync_fn=barriers,
    )


def _worth_saying(record: logging.LogRecord) -> bool:
    """Without what Orbax logs that this package says by itself, in one line.

    That is each traceback of a failed write, several times, and that a write waits for another.
    """
    ours = record.exc_info is not None and "orbax" in record.pathname
    return not ours and not record.getMessage().startswith("Waiting for previous save")
