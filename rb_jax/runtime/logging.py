"""What a process says while it works: lines with time, level and host on stderr.

All of it goes through Python's loggers: ours is ``LOG``; those of absl (Orbax, Grain) and JAX come
along with what is worth a warning. As a library nothing is set up: whoever imports rb_jax decides.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import time
import warnings
from typing import Any

from tqdm import tqdm

LOG = logging.getLogger("rb_jax")
# Of a --verbosity: our level, and that of the libraries. The numbers are absl's.
LEVELS = {
    "error": (logging.ERROR, logging.ERROR),
    "warning": (logging.WARNING, logging.WARNING),
    "info": (logging.INFO, logging.WARNING),
    "debug": (logging.DEBUG, logging.INFO),
}
NUMBERS = {"-2": "error", "-1": "warning", "0": "info", "1": "debug"}


class Lines(logging.StreamHandler):
    """Writes to whatever stderr is now, above a progress bar if there is one."""

    def __init__(self):
        super().__init__(sys.stderr)
        self.setFormatter(HostFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        # A full disk or a closed terminal must not end the work.
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(self.format(record), file=sys.stderr)


class HostFormatter(logging.Formatter):
    """``I 11-27 18:02:34 host] text``, at the head of every line of a text."""

    def __init__(self):
        super().__init__()
        self.host = socket.gethostname().partition(".")[0]

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(record.created))
        head = f"{record.levelname[0]} {when} {self.host}] "
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return "\n".join(head + line for line in text.splitlines() or [""])


_handler: Lines | None = None


def setup(verbosity: str = "info") -> None:
    """For a program: sends the loggers and Python's warnings to stderr."""
    global _handler
    ours, others = LEVELS[NUMBERS.get(verbosity, verbosity)]
    if _handler is None:
        _handler = Lines()
    for other in list(logging.root.handlers):  # what logging without any setup puts there
        if type(other) is logging.StreamHandler:
            logging.root.removeHandler(other)
    if _handler not in logging.root.handlers:
        logging.root.addHandler(_handler)
    logging.root.setLevel(others)
    for name in ("absl", "jax", "orbax"):
        logging.getLogger(name).setLevel(others)
    LOG.setLevel(ours)
    warnings.showwarning = _show_warning
    sys.unraisablehook = _show_unraisable


def name_process(index: int, count: int) -> None:
    """From here on the lines say which of several processes speaks."""
    if _handler is not None and count > 1:
        formatter = _handler.formatter
        assert isinstance(formatter, HostFormatter)
        formatter.host = f"{formatter.host.partition('/')[0]}/{index}"


def _show_unraisable(caught: Any) -> None:
    """Without what tensorstore has when the second of two requests fails.

    Orbax has then given up after the first, which it reports, and waits for the other no more.
    """
    if str(caught.exc_value) == "Event loop is closed":
        LOG.debug("%s", caught.exc_value)
        return
    sys.__unraisablehook__(caught)


def _show_warning(message: object, *_: object) -> None:
    LOG.warning("%s", message)
