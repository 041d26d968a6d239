"""Ends a process that is stuck, so that one dead peer does not hang all others for good."""

from __future__ import annotations

import faulthandler
import os
import threading
import time

from rb_jax.runtime.exits import EXIT_HUNG

# Compiling, a first step and writing a whole state take longer than a step.
LONG = 4


class Watchdog:
    """A thread that waits for the deadline of what is being done; ``seconds`` 0: never."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._what, self._allowed, self._deadline = "", 0.0, float("inf")
        self._changed = threading.Condition()
        self._closed = False
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def allow(self, what: str, times: int = 1) -> None:
        """Starts the clock for ``what``, which may take ``times`` x ``seconds``."""
        with self._changed:
            self._what, self._allowed = what, times * self.seconds
            self._deadline = time.monotonic() + self._allowed
            self._changed.notify()

    def off(self) -> None:
        """Until the next ``allow`` anything may take as long as it likes."""
        with self._changed:
            self._deadline = float("inf")
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self._end()
                self._changed.wait(min(left, threading.TIMEOUT_MAX))

    def _end(self) -> None:
        faulthandler.dump_traceback(file=2, all_threads=True)
        text = f"rb-jax: {self._what} took longer than {self._allowed:g} s "
        text += "(config.train.step_timeout); ended, the same command continues\n"
        os.write(2, text.encode())
        os._exit(EXIT_HUNG)
