"""How a training process ends: its exit status, and what SIGTERM and ctrl-C do at any moment.

No import of JAX at the top: the command line installs the handlers before anything that takes time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Of sysexits.h, where it has a name for it; docs/reliability.md says what a launcher does on each.
EXIT_HUNG = 69  # EX_UNAVAILABLE: a step took longer than train.step_timeout; start again
EXIT_DIVERGED = 70  # EX_SOFTWARE: values are not finite; starting again would repeat it
EXIT_IO = 74  # EX_IOERR: a checkpoint or the log could not be written
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: stopped before the end, worth starting again
FAILED = (EXIT_HUNG, EXIT_DIVERGED, EXIT_IO)  # of a RunError
GIVE_UP_SECONDS = 5.0
END_SECONDS = 2.0  # for what a process does that ends at once
STATUS: dict[int, int] = {signal.SIGTERM: EXIT_PREEMPTED, signal.SIGINT: 130}


class RunError(Exception):
    """The run cannot go on; what it saved is intact. One line, and the exit status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Terminated(KeyboardInterrupt):
    """SIGTERM came: cleans up as ctrl-C does."""


class Signals:
    """SIGTERM and SIGINT, also seen by a thread, since the main one may be inside a compiler.

    While nothing would be lost, which is how it starts, the first signal ends the process at once
    with its status. Between ``hold`` and ``release`` it is only kept in ``received``, for the loop
    to save and leave; the second one ends the process.
    """

    def __init__(self):
        self.received = 0
        self.at_end: Callable[[], None] = lambda: None  # before the process ends at once
        self._seen = 0  # by the thread
        self._held = False
        self._lock = threading.Lock()

    def hold(self) -> None:
        """From here on there is something to lose."""
        with self._lock:
            self._held = True

    def release(self) -> None:
        """All there is has been saved."""
        with self._lock:
            self._held = False

    def handle(self, number: int, frame: object = None) -> None:
        self.received = number

    def see(self, number: int) -> None:
        """What the thread does."""
        if number not in STATUS:
            return
        with self._lock:
            self._seen += 1
            held = self._held and self._seen == 1
        name = signal.Signals(number).name
        if held:
            self.received = number
            os.write(2, f"rb-jax: {name}: stopping and saving; again: at once, unsaved\n".encode())
            return
        text = f"rb-jax: stopped by {name}; nothing was left to save\n"
        again = f"rb-jax: stopped by a second {name}, without saving\n"
        os.write(2, (again if self._seen > 1 else text).encode())
        ending = threading.Thread(target=self.at_end, daemon=True)  # which may hang
        ending.start()
        ending.join(END_SECONDS)
        os._exit(STATUS[number])


@contextmanager
def interruptible(grace: float = 5.0) -> Iterator[None]:
    """Lets ctrl-C and SIGTERM end a body even while the main thread is inside a compiler.

    The first one raises KeyboardInterrupt (Terminated for SIGTERM), which cleans up. If the main
    thread has not come to that within ``grace`` seconds, or at the second one, the process ends at
    once with 130 (143).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen, over = 0, threading.Event()

    words = {signal.SIGINT: (b"interrupted", 130), signal.SIGTERM: (b"terminated", 143)}

    def end(number: int) -> None:
        if over.is_set():
            return
        word, status = words[signal.Signals(number)]
        os.write(2, b"rb-jax: " + word + b"\n")
        os._exit(status)

    def see(number: int) -> None:
        nonlocal seen
        if number in words:
            seen += 1
            if seen > 1:
                end(number)
            timer = threading.Timer(grace, end, (number,))
            timer.daemon = True
            timer.start()

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    with _watching(see):
        handler = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            over.set()
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _watching(see: Callable[[int], None]) -> Iterator[None]:
    """A thread calls ``see`` with each signal at once, whatever the main thread is inside of.

    The interpreter's own handler writes the signals' numbers to a pipe, which the thread reads.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while numbers := os.read(read, 64):
            for number in numbers:
                see(number)
        os.close(read)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        os.close(write)  # ends the thread


def leave(status: int) -> None:
    """Ends the process without waiting for threads, some of which may hang in a file system.

    With several processes it returns: those part in good order.
    """
    jax = sys.modules.get("jax")
    if jax is None or jax.process_count() == 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def give_up(status: int) -> None:
    """Ends one of several processes that cannot go on; for a process alone it returns.

    Threads that wait for the others are not waited for. The first process, which joins all, stays
    for a moment, so that each of them may say why it ends.
    """
    jax = sys.modules.get("jax")
    if jax is None or jax.process_count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(GIVE_UP_SECONDS)
    os._exit(status)


@contextmanager
def installed() -> Iterator[Signals]:
    """Takes over SIGTERM and SIGINT for the body; outside of the main thread it cannot."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    with _watching(signals.see):
        handlers = {number: signal.signal(number, signals.handle) for number in STATUS}
        try:
            yield signals
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
