"""A thread that waits in the receive() of a foreign broadcaster, for whoever cannot wait in there.

    receive(), without a timeout  ──►  thread lapse-<name>-receive  ──►  inbox  ──►  get(timeout)

What such a receive() does is its own affair: it may wait for ever, or not at all. So it has a
thread to itself, which the channel's own work (heartbeats, retries, the end) does not wait for.
What it raises is raised by get(), at that place.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from lapse.distributed.inbox import Inbox
from lapse.invalidation.process import watch

__all__ = ["Pump"]

CAPACITY = 10_000  # messages that wait
SHORTEST_NAP, LONGEST_NAP = 0.001, 0.05  # seconds, while there is nothing
ERROR_PAUSE = 0.1  # seconds after receive() has raised


class Pump:
    """Reads a `receive()` without arguments in a thread of its own, begun at the first get().

    Any thread may call any method. A thread that waits in receive() is left there by close(); it
    ends with the next message, or with the process.
    """

    def __init__(self, receive: Callable[[], Any], name: str) -> None:
        self._receive = receive
        self._name = name
        self._inbox = Inbox(CAPACITY)
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        watch(self)

    def get(self, timeout: float) -> Any:
        """The next message; None if none comes within `timeout` seconds. Raises what it raised."""
        if self._thread is None or not self._thread.is_alive():
            self._start()
        found = self._inbox.get(timeout)
        if isinstance(found, _Raised):
            raise found.error
        return found

    def close(self) -> None:
        """Hand on nothing more. Idempotent."""
        self._stop.set()
        self._inbox.close()

    def _start(self) -> None:
        with self._starting:
            before = self._thread
            if before is None or not before.is_alive():
                if before is not None and not self._stop.is_set():
                    self._inbox.lose("restarted")  # it had no memory for what it was about to say
                args = (weakref.ref(self), self._receive, self._inbox, self._stop)
                name = f"lapse-{self._name}-receive"
                thread = threading.Thread(target=_run, args=args, name=name, daemon=True)
                thread.start()
                self._thread = thread

    def _renew_in_child(self) -> None:
        stopped = self._stop.is_set()
        self._stop, self._starting, self._thread = threading.Event(), threading.Lock(), None
        if stopped:
            self._stop.set()
        self._inbox.after_fork()


class _Raised:
    """What receive() has raised, on its way through the inbox."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _run(
    ref: weakref.ref[Pump], receive: Callable[[], Any], inbox: Inbox, stop: threading.Event
) -> None:
    nap = SHORTEST_NAP
    while not stop.is_set() and ref() is not None:
        try:
            message = receive()
        except Exception as error:
            inbox.put(_Raised(error))
            stop.wait(ERROR_PAUSE)
            continue
        if message:
            inbox.put(message)
            nap = SHORTEST_NAP
        else:
            stop.wait(nap)
            nap = min(2 * nap, LONGEST_NAP)
