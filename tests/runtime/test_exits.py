"""What SIGTERM and ctrl-C do to a training process at any moment."""

import signal
import time
from pathlib import Path

import pytest

from rb_jax.runtime.exits import EXIT_PREEMPTED
from tests.children import child

BUSY = """
import hashlib, sys, time
from rb_jax.runtime.exits import installed
with installed() as signals:
    signals.at_end = lambda: print("unlocked", file=sys.stderr, flush=True)
    if {held}:
        signals.hold()
    print("ready", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", {busy})  # for long inside C, as a compiler is
    while not signals.received:
        time.sleep(0.01)
    time.sleep(0.5)  # the step that is saved
    sys.exit(7)
"""


@pytest.mark.parametrize(
    ("held", "sent", "status"),
    [
        (False, [signal.SIGTERM], EXIT_PREEMPTED),
        (False, [signal.SIGINT], 130),
        (True, [signal.SIGTERM], 7),
        (True, [signal.SIGINT, signal.SIGTERM], EXIT_PREEMPTED),
    ],
)
def test_signals(held, sent, status):
    """Before there is anything to lose they end the process; then the loop does, or the second."""
    process = child(BUSY.format(held=held, busy=1 if status == 7 else 10**8))
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    for number in sent:
        process.send_signal(number)
        time.sleep(0.3)
    assert process.wait(50) == status
    said = process.stderr.read()
    process.stderr.close()
    # At once, so that nobody sends a second one out of impatience.
    assert (f"{sent[0].name}: stopping and saving" in said) == held
    assert ("unlocked" in said) == (status != 7)


def test_stopped_before_anything_is_imported_says_so_by_its_status(tmp_path):
    code = "import sys, time, rb_jax.__main__ as e; print('in', file=sys.stderr, flush=True); "
    code += (
        f"sys.argv = ['rb-jax', 'train', '--config={tmp_path}/slow.py', '--workdir=w']; e.main()"
    )
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    process = child(code)
    assert process.stderr is not None and process.stderr.readline() == "in\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(50) == EXIT_PREEMPTED
    process.stderr.close()
    assert not Path("w").exists()
