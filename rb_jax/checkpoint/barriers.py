"""Where Orbax's background threads wait for each other, until one of the processes has failed.

Orbax's own barriers would wait for hours: a process whose disk is full never comes to the one at
which the others stand. Here it leaves word, and all of them fail at once.
"""

from __future__ import annotations

import threading
import time

import jax

from rb_jax.runtime.jax_internals import coordination_client

POLL_SECONDS = 0.05
LOOK_MILLISECONDS = 500  # between two looks at whether somebody has failed
WRITTEN, COMMITTED, PROGRESS = "async_write_complete", "async_commit_complete", "set_value"


class Barriers:
    """Orbax's ``barrier_sync_fn`` for one save after the other; does nothing for one process.

    A thread in the background that comes to mark the end of a save (``PROGRESS``) without having
    come to its commit is one whose part failed.
    """

    def __init__(self, name: str):
        self._name, self._save, self._committed = name, 0, False
        self._counts: dict[str, int] = {}

    def begin(self) -> None:
        """Another save, on every process."""
        self._save, self._committed = self._save + 1, False

    def fail(self) -> None:
        """Tells all processes that this save has failed here."""
        if (client := coordination_client()) is not None:
            key = f"{self._failed}/{jax.process_index()}"
            client.key_value_set(key, "1", allow_overwrite=True)

    def raise_if_failed(self) -> None:
        """Raises RuntimeError once this save has failed on any process."""
        client = coordination_client()
        if client is not None and client.key_value_dir_get(self._failed):
            raise RuntimeError("a process could not write its part")

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Until every process is here. Raises RuntimeError once one has failed, TimeoutError."""
        client, many = coordination_client(), jax.process_count()
        if client is None or many == 1:
            return
        in_background = threading.current_thread() is not threading.main_thread()
        if PROGRESS in key and in_background and not self._committed:
            self.fail()
        count = self._counts[key] = self._counts.get(key, 0) + 1
        place = f"{self._prefix}/{key}/{count}"
        client.key_value_set(f"{place}/here/{jax.process_index()}", "1")
        deadline = time.monotonic() + timeout_ms / 1000
        while not self._open(client, place, many):
            self.raise_if_failed()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the processes did not all come to {key}")
        self._committed |= COMMITTED in key

    @property
    def _prefix(self) -> str:
        return f"rb_jax/{self._name}/{self._save}"

    @property
    def _failed(self) -> str:
        return f"{self._prefix}/failed"

    def _open(self, client, place: str, many: int) -> bool:
        """The first process counts who is here and opens the barrier for the others."""
        if jax.process_index() == 0:
            if len(client.key_value_dir_get(f"{place}/here")) < many:
                time.sleep(POLL_SECONDS)
                return False
            client.key_value_set(f"{place}/open", "1")
            return True
        try:
            client.blocking_key_value_get(f"{place}/open", LOOK_MILLISECONDS)
        except Exception:  # it is not there yet, or the first process is gone
            return False
        return True
