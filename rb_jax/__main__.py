"""``python -m rb_jax`` is the command ``rb-jax``."""

import sys

from rb_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
