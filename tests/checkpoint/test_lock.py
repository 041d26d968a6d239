"""One run at a time in a workdir, on a disk and in buckets."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from rb_jax.checkpoint.lock import NAME, Lock
from rb_jax.errors import InputError
from rb_jax.storage import place


@pytest.fixture(params=["disk", "gs", "s3"])
def workdir(request, tmp_path):
    if request.param == "disk":
        return place(tmp_path)
    return place(f"{request.getfixturevalue('buckets')[request.param]}/{tmp_path.name}")


def content(workdir):
    return json.loads((workdir / NAME).read_text())


def elsewhere(workdir, **changes):
    """As if the lock's owner were on another machine."""
    (workdir / NAME).write_text(json.dumps(content(workdir) | {"boot": "another"} | changes))


def test_a_second_run_is_refused_and_told_whose_it_is(workdir):
    first = Lock(workdir)
    first.acquire()
    found = content(workdir)
    assert (found["pid"], found["host"]) == (os.getpid(), os.uname().nodename)
    with pytest.raises(InputError, match=rf"process {os.getpid()} on .*choose another"):
        Lock(workdir).acquire()
    assert first.check()
    first.release()
    assert not (workdir / NAME).exists()
    second = Lock(workdir)
    second.acquire()
    second.release()


def test_the_owner_is_seen_to_live_by_its_heartbeat(workdir):
    first = Lock(workdir, beat=0.2)
    first.acquire()
    first._me["boot"] = "another"  # from another machine only the heartbeat tells
    time.sleep(0.6)
    assert content(workdir)["beat"] >= 1
    with pytest.raises(InputError, match="another run is at work in it"):
        Lock(workdir, beat=0.2, stale=5.0).acquire()
    first.release()


def test_one_that_stands_still_is_taken_over_and_notices(workdir):
    first = Lock(workdir, beat=1000.0)
    first.acquire()
    elsewhere(workdir)
    second = Lock(workdir, beat=0.1, stale=0.5)
    begin = time.monotonic()
    second.acquire()
    assert time.monotonic() - begin >= 0.5
    assert not first.check() and f"process {os.getpid()}" in first.lost
    first.release()  # takes nothing from the second
    assert second.check()
    second.release()


def test_one_of_long_ago_or_that_nobody_can_read_is_not_waited_for_as_alive(tmp_path):
    workdir = place(tmp_path)
    first = Lock(workdir, beat=1000.0)
    first.acquire()
    elsewhere(workdir, at="2020-01-01T00:00:00+00:00")
    Lock(workdir, stale=1000.0).acquire()
    (workdir / NAME).write_text("not JSON")
    Lock(workdir, beat=0.1, stale=0.3).acquire()


def test_a_killed_owner_on_this_machine_is_taken_over_at_once(tmp_path):
    code = (
        "import os; from rb_jax.checkpoint.lock import Lock; from rb_jax.storage import place; "
        f"Lock(place({str(tmp_path)!r})).acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert content(tmp_path)["pid"] != os.getpid()
    begin = time.monotonic()
    lock = Lock(place(tmp_path))
    lock.acquire()
    assert time.monotonic() - begin < 20
    lock.release()


def test_of_many_at_once_one_gets_it(tmp_path):
    locks, got = [Lock(place(tmp_path)) for _ in range(8)], []

    def attempt(lock):
        try:
            lock.acquire()
            got.append(lock)
        except InputError:
            pass

    threads = [threading.Thread(target=attempt, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and got[0].check()
    got[0].release()
