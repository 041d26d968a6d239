"""Progress bars for long work: redrawn on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm

LOG_SECONDS = 15.0


def progress_bar(total: int, label: str, unit: str, *, enabled: bool = True, done: int = 0) -> tqdm:
    """A bar on stderr; ``update(n)`` moves it on. Use it in a ``with`` statement."""
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=unit,
        disable=not enabled,
        dynamic_ncols=live,
        mininterval=0.1 if live else LOG_SECONDS,
        leave=None if live else True,
    )
