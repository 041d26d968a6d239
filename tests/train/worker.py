"""``rb-jax`` with something happening to this process on the way, for tests of several processes.

``python -m tests.train.worker SIGNAL STEP [flags of rb-jax ...]`` trains the fake model; SIGNAL, or
"none", is sent by the process to itself while it waits for the batch after its first STEP steps.
FULL in its place lets no file of this process grow any more, as on a full disk.
"""

import os
import resource
import signal
import sys

from rb_jax.cli import main
from rb_jax.train.feed import Interruptible
from rb_jax.train.run import Run
from rb_jax.weights import params
from tests.train import fake


def send(name: str, step: int) -> None:
    original, calls = Run.next_batch, [0]

    def next_batch(self: Run, batches: Interruptible):
        calls[0] += 1
        if calls[0] == step + 1:
            self.manager.wait()  # only what comes after a checkpoint is to be lost
            if name == "FULL":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            else:
                os.kill(os.getpid(), signal.Signals[name])
        return original(self, batches)

    Run.next_batch = next_batch


if __name__ == "__main__":
    name, step, *flags = sys.argv[1:]
    params.MODELS = fake.MODELS
    if name != "none":
        send(name, int(step))
    sys.exit(main(flags))
