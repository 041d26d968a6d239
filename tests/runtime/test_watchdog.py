"""A run that hangs is ended, with where it hung."""

from rb_jax.runtime.exits import EXIT_HUNG
from tests.children import child

WATCHED = """
import time
from rb_jax.runtime.watchdog import Watchdog
dog = Watchdog({seconds})
dog.allow("step 7")
time.sleep(0.1)
dog.allow("step 8", 2)
dog.off() if {off} else None
time.sleep({sleep})
"""


def test_watchdog_ends_what_is_stuck_and_nothing_else():
    stuck = child(WATCHED.format(seconds=0.5, off=False, sleep=60))
    quiet = [child(WATCHED.format(seconds=s, off=o, sleep=3)) for s, o in ((0, 0), (0.5, 1))]
    said = stuck.communicate(timeout=50)[1]
    assert stuck.returncode == EXIT_HUNG
    assert "step 8 took longer than 1 s (config.train.step_timeout)" in said.splitlines()[-1]
    assert 'File "<string>", line 9' in said  # where it was stuck
    assert [p.communicate(timeout=50)[1] for p in quiet] == ["", ""]
    assert [p.returncode for p in quiet] == [0, 0]
