"""Long work is seen: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from rb_jax.runtime.logging import LOG

LOG_SECONDS = 15.0


def progress_bar(
    total: int, label: str, unit: str, *, enabled: bool = True, done: int = 0
) -> tqdm | LoggedProgress:
    """Progress over ``total`` units, of which ``done`` were there; for a ``with`` statement.

    ``update(n)`` moves it on. Bytes, the unit ``B``, are shown in thousands.
    """
    if enabled and not sys.stderr.isatty():
        return LoggedProgress(total, label, unit, done)
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        unit_scale=unit == "B",
        disable=not enabled,
        dynamic_ncols=True,
        leave=False,
    )


class LoggedProgress:
    """Logs how far the work is, at most every LOG_SECONDS, so that quick work says nothing."""

    def __init__(self, total: int, label: str, unit: str, done: int):
        self.total, self.label, self.unit = total, label, unit
        self.first = self.done = done
        self.started = self.said = time.monotonic()

    def __enter__(self) -> LoggedProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.said > self.started and self.done >= self.total:
            self._say(time.monotonic())

    def update(self, n: int = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.said >= LOG_SECONDS and self.done < self.total:
            self._say(now)

    def _say(self, now: float) -> None:
        self.said = now
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        left = tqdm.format_interval((self.total - self.done) / rate) if rate else "?"
        done, total, speed = (self._number(x) for x in (self.done, self.total, rate))
        units = self.unit if self.unit == "B" else f" {self.unit}s"
        LOG.info("%s: %s of %s%s, %s/s, %s left", self.label, done, total, units, speed, left)

    def _number(self, value: int | float) -> str:
        if self.unit == "B":
            return tqdm.format_sizeof(value)
        return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"


@contextmanager
def working(what: str, expected: float = 0.0) -> Iterator[None]:
    """Says that ``what`` begins, how many seconds it should take if known, and that it goes on."""
    about = f", about {expected:.0f} s where nothing else runs" if expected >= 2 else ""
    LOG.info("%s%s", what, about)
    with reminding(what):
        yield


@contextmanager
def reminding(what: str) -> Iterator[None]:
    """Says that ``what`` goes on, every LOG_SECONDS; nothing of what is done before."""
    ended, begin = threading.Event(), time.monotonic()

    def remind() -> None:
        while not ended.wait(LOG_SECONDS):
            LOG.info("still %s, %.0f s so far", what, time.monotonic() - begin)

    threading.Thread(target=remind, name="still working", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
