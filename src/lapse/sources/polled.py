"""PolledChanges: any object that can be asked what has changed lately, as a source.

    get_recent_changes() ──► a change is a mapping with a "table" ──► Batch
                         ──► anything else ──► what is good of it, and a Resync
                         ──► an exception ──► the receiver logs, tells and tries again

Whether the object would tell again what it was telling when it raised, it alone knows: what it had
handed out by then is taken, and a Resync stands for the rest. If it raises before it hands out
anything, nothing is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from lapse.invalidation.process import watch
from lapse.invalidation.source import Batch, Delivery, Resync, SourceCounts

__all__ = ["PolledChanges"]

log = logging.getLogger("lapse.sources")

EMPTY_BATCH = 0.4  # seconds after which an empty batch says that all is well


class PolledChanges:
    """The changes that `database.get_recent_changes()` answers, asked for every `interval` seconds.

    It answers an iterable of mappings with a "table", or None. ValueError if interval is not
    positive. One thread iterates; any may close.
    """

    delivery: Delivery = "at-least-once"
    ordered = True
    replay = True
    broadcast = True

    def __init__(self, database: Any, interval: float = 1.0) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be positive seconds, not {interval!r}")
        self._database = database
        self._interval = interval
        self._stop = threading.Event()
        #: Shown in a receiver's statistics.
        self.counts = SourceCounts()
        watch(self)

    def __iter__(self) -> Iterator[Batch | Resync]:
        """Ask, wait, and ask again; endless, until close()."""
        while not self._stop.is_set():
            yield from self._ask()
            yield from self._wait()

    def _ask(self) -> Iterator[Batch | Resync]:
        changes = iter(self._database.get_recent_changes() or ())
        good: list[Mapping[str, Any]] = []
        bad, failure = 0, None
        while not self._stop.is_set():
            try:
                change = next(changes)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            if isinstance(change, Mapping) and isinstance(change.get("table"), str):
                good.append(change)
            else:
                bad += 1
                log.error("not a change: %.200r", change)
        self.counts.messages += len(good) + bad
        self.counts.poison += bad
        yield Batch((), good, _nothing)
        if bad:
            yield Resync("a change that says no table")
        if failure is not None:
            if good or bad:
                yield Resync("changes are missing")
            raise failure

    def _wait(self) -> Iterator[Batch]:
        left = self._interval
        while left > 0 and not self._stop.wait(min(left, EMPTY_BATCH)):
            left -= EMPTY_BATCH
            yield Batch()

    def close(self) -> None:
        """End the iteration. Idempotent."""
        self._stop.set()

    def _renew_in_child(self) -> None:
        """In a forked child: the event's lock may be one that another thread held."""
        stopped = self._stop.is_set()
        self._stop = threading.Event()
        if stopped:
            self._stop.set()


def _nothing() -> None:
    """A commit: the receiver puts in force at once what has one."""
