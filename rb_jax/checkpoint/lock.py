"""One run at a time in a workdir: a small file that its owner renews, on a disk or in a bucket.

It is written on condition that it is what was read before, which object stores and tensorstore's
file driver do atomically. A run that was killed leaves it behind: on the same machine its process
is seen to be gone; from another one, a heartbeat that stands still is waited for. Only changes of
the file are compared, so that no two clocks need to agree.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import getpass
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from etils import epath

from rb_jax.errors import InputError
from rb_jax.runtime.processes import say
from rb_jax.storage import kvstore, reaching

NAME = "run.lock"
BEAT_SECONDS = 10.0
STALE_SECONDS = 45.0  # without a beat
OLD_SECONDS = 600.0  # by the owner's own clock: so long that no clock is that wrong
POLL_SECONDS = 1.0
ANSWER_SECONDS = 20.0  # tensorstore itself would ask again for long


class Lock:
    """Held from ``acquire`` to ``release``; ``lost`` once another run has taken it over."""

    def __init__(
        self, workdir: epath.Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS
    ):
        self.workdir, self.beat, self.stale = workdir, beat, stale
        self.lost = ""  # who has it now
        self._me = _this_process()
        self._beats = 0
        self._done = threading.Event()
        self._held = threading.Lock()  # the heartbeat and ``check`` write in turn
        self._store: Any = None
        self._mine = False

    def acquire(self) -> None:
        """Raises InputError when a run that is alive has it, and when nothing can be written."""
        with reaching(self.workdir):
            self._store = kvstore(self.workdir)
            while not self._take(self._free()):
                pass
            self._mine = True
        beats = threading.Thread(target=self._renew, name="heartbeat", daemon=True)
        beats.start()
        atexit.register(self._end, beats)

    def release(self) -> None:
        """Lets the next run in at once; what has become another's stays, as does what cannot go."""
        self._done.set()
        with self._held, contextlib.suppress(Exception):
            if not self._mine or self.lost:
                return
            self._mine = False
            found, generation = self._read()
            if found and found["owner"] == self._me["owner"]:
                _answer(self._store.write(NAME, None, if_equal=generation))

    def _end(self, beats: threading.Thread) -> None:
        """A thread that is inside of tensorstore when Python ends takes the process down."""
        self._done.set()
        beats.join(ANSWER_SECONDS)

    def check(self) -> bool:
        """Whether it is still ours, asked of the file itself."""
        with self._held:
            if not self._mine or self.lost:
                return not self.lost
            found, generation = self._read()
            if found is None or found["owner"] != self._me["owner"]:
                self.lost = _described(found) if found else "nobody: it was deleted"
                return False
            self._beats += 1
            self._write(generation)
            return True

    def _free(self) -> bytes | None:
        """The generation of a file that is absent or stale; waits where only time can tell."""
        first, since = None, time.monotonic()
        while True:
            found, generation = self._read()
            if found is None:
                return generation
            alive = _alive_here(found)
            if alive:
                raise self._refused(found)
            if alive is False or _age(found) > OLD_SECONDS:
                say(f"taking over from {_described(found)}, which is gone")
                return generation
            if first is None:
                first = found
                say(
                    f"{self.workdir} is locked by {_described(found)}; waiting up to "
                    f"{self.stale:.0f} s for a sign of life"
                )
            if found != first:
                raise self._refused(found)
            if time.monotonic() - since > self.stale:
                say(f"taking over from {_described(found)}: no heartbeat in {self.stale:.0f} s")
                return generation
            time.sleep(min(POLL_SECONDS, self.beat))

    def _take(self, generation: bytes | None) -> bool:
        """Whether nobody was faster."""
        self._write(generation)
        found, _ = self._read()
        return found is not None and found["owner"] == self._me["owner"]

    def _renew(self) -> None:
        while not self._done.wait(self.beat):
            try:
                if not self.check():
                    return
            except Exception:  # a network that fails now may not in the next beat
                continue

    def _read(self) -> tuple[dict[str, Any] | None, bytes | None]:
        result = _answer(self._store.read(NAME))
        generation: bytes | None = result.stamp.generation
        if generation is not None and not any(generation):
            generation = None  # a store that does not say: nothing can be made conditional on it
        if result.state != "value":
            return None, generation
        try:
            found = json.loads(result.value)
            assert isinstance(found["owner"], str)
        except (ValueError, KeyError, TypeError, AssertionError):
            found = {"owner": "", "host": "an unreadable file"}
        return found, generation

    def _write(self, generation: bytes | None) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps(self._me | {"beat": self._beats, "at": now}, indent=1) + "\n"
        _answer(self._store.write(NAME, text.encode(), if_equal=generation))

    def _refused(self, found: dict[str, Any]) -> InputError:
        return InputError(
            f"{self.workdir}: another run is at work in it ({_described(found)}); choose another "
            "workdir, or stop that one first"
        )


def _answer(future: Any) -> Any:
    try:
        return future.result(timeout=ANSWER_SECONDS)
    except TimeoutError:
        text = f"no answer in {ANSWER_SECONDS:.0f} s; is it there, and may it be written to?"
        raise TimeoutError(text) from None


def _this_process() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container without a name for its user
        user = str(os.getuid())
    return {
        "owner": uuid.uuid4().hex,
        "user": user,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot": _boot(),
        "process": _started(os.getpid()),
    }


def _boot() -> str:
    """Names this start of this machine, seen from this set of process numbers; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the system's ticks: its number alone may be used again."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]  # killed, and only not yet waited for
    except (OSError, IndexError, ValueError):
        return ""


def _alive_here(found: dict[str, Any]) -> bool | None:
    """Whether the owner still runs; None for another machine's."""
    boot = _boot()
    if not boot or found.get("boot") != boot or not isinstance(found.get("pid"), int):
        return None
    return bool(found.get("process")) and _started(found["pid"]) == found["process"]


def _age(found: dict[str, Any]) -> float:
    """Seconds since the last heartbeat, by two clocks that may differ; 0 if it is not said."""
    try:
        at = datetime.datetime.fromisoformat(found["at"])
        return (datetime.datetime.now(datetime.UTC) - at).total_seconds()
    except (KeyError, TypeError, ValueError):
        return 0.0


def _described(found: dict[str, Any]) -> str:
    who = f"{found.get('user', 'somebody')}'s process {found.get('pid', '?')}"
    at = found.get("at")
    return f"{who} on {found.get('host', '?')}" + (f", last heartbeat {at}" if at else "")
