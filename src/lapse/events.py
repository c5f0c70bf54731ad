"""Telling a listener what has left a cache.

The native table calls an `Announcer` after the fact, with no lock held. It sees to the promises of
`listener=`: each event comes once, the events of one thread come in that thread's order even if the
listener itself changes the cache, and an exception of the listener is logged, never raised into the
caller.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from lapse import forks

__all__ = ["Announcer", "Cause", "Listener"]

Cause = Literal[
    "replaced", "deleted", "pattern", "tag", "cleared", "expired", "early", "evicted"
]  # fmt: skip
Event = tuple[Any, Any, Cause]
Listener = Callable[[Any, Any, Cause], object]

log = logging.getLogger("lapse.events")


class _Waiting(threading.local):
    """What one thread has still to tell; None while its listener is not running."""

    events: deque[Event] | None = None


class Announcer:
    """Calls a listener for each event of `announcer([(key, value, cause), ...])`. Thread-safe."""

    def __init__(self, listener: Listener, name: str | None) -> None:
        self._listener = listener
        self._name = name or "a cache"
        self._waiting = _Waiting()
        self._lock = threading.Lock()
        #: Exceptions that the listener raised, and events that there was no memory to tell.
        self.errors = 0
        forks.watch(self)

    def _after_fork(self) -> None:
        """In a forked child no other thread holds the lock, whatever it looks like."""
        self._lock = threading.Lock()

    def __call__(self, left: list[Event]) -> None:
        """Tell of what has left, or have this thread's call that is under way tell of it next."""
        waiting = self._waiting
        if waiting.events is not None:
            waiting.events.extend(left)
            return
        events = waiting.events = deque(left)
        try:
            while events:
                self._tell(*events.popleft())
        finally:
            waiting.events = None

    def lost(self, count: int) -> None:
        """Up to `count` events have not been told, for lack of memory."""
        with self._lock:
            self.errors += count
        log.error("no memory to tell the listener of %s of %d events", self._name, count)

    def _tell(self, key: Any, value: Any, cause: Cause) -> None:
        try:
            self._listener(key, value, cause)
        except BaseException:  # the caller changed a cache: it must not be ended for what we tell
            with self._lock:
                self.errors += 1
            log.exception("the listener of %s failed on %r (%s)", self._name, key, cause)
