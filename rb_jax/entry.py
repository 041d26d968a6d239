"""What the command ``rb-jax`` starts: SIGTERM is taken care of ahead of the slow imports."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from rb_jax.train import exits


def main() -> int:
    """As ``cli.main``. A training that is stopped before it begins says so by its status."""
    with ExitStack() as stack:
        if sys.argv[1:2] == ["train"]:
            stack.enter_context(exits.installed())
        from rb_jax import cli

        status = cli.main()
        if status in exits.STATUS.values():
            exits.leave(status)
        return status


if __name__ == "__main__":
    sys.exit(main())
