"""What one HTTP interface has done: requests, refusals, invalidations."""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import NamedTuple

__all__ = ["Tally", "WebStats"]

#: One for all, held for a few additions a request: a forked child needs only one new. Re-entrant,
#: because a finalizer that runs in the middle of them may ask for figures.
_lock = threading.RLock()


class WebStats(NamedTuple):
    """Figures of one interface, of one instant."""

    #: Requests that were answered.
    requests: int
    #: Those answered with a status of 200 to 299.
    accepted: int
    #: Requests by status.
    statuses: dict[int, int]
    #: Requests that were refused, by reason.
    refused: dict[str, int]
    #: Invalidations that were applied, or queued to be.
    invalidations: int
    #: Live entries that the applied ones removed.
    removed: int


class Tally:
    """Counts. Safe from any thread."""

    def __init__(self) -> None:
        self._statuses: Counter[int] = Counter()
        self._refused: Counter[str] = Counter()
        self._invalidations = self._removed = 0

    def answered(self, status: int, refused: str | None = None) -> None:
        """A request was answered; `refused` says why it was refused, if it was."""
        with _lock:
            self._statuses[status] += 1
            if refused is not None:
                self._refused[refused] += 1

    def applied(self, invalidations: int, removed: int) -> None:
        """So many invalidations removed so many entries."""
        with _lock:
            self._invalidations += invalidations
            self._removed += removed

    def stats(self) -> WebStats:
        """All of it."""
        with _lock:
            statuses, refused = dict(self._statuses), dict(self._refused)
            done = self._invalidations, self._removed
        accepted = sum(count for status, count in statuses.items() if 200 <= status < 300)
        return WebStats(sum(statuses.values()), accepted, statuses, refused, *done)


def _new_lock() -> None:
    """The lock that a forked child inherits may be held by a thread that it does not have."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
