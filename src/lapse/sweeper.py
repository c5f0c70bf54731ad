"""The one thread of the process that sweeps expired entries out of every cache.

It is started by the first cache that wants it, holds caches weakly, ends a while after the last one
is gone, and is started again after a fork. Each cache is swept every `cleanup_interval` seconds of
real time, in the bounded steps of `Cache.expire()`, so no reader or writer waits for it.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from typing import Any

from lapse.shortage import keep_going

__all__ = ["checked_interval", "watch"]

log = logging.getLogger("lapse.sweeper")
COMPACT_ABOVE = 64  # watched caches before dead ones are looked for
LINGER = 10.0  # seconds that the thread waits for another cache when the last one is gone
EXIT_WAIT = 0.1  # seconds that the interpreter's exit waits for a step to end


#: When it is due (monotonic seconds), a tie-break, its interval (seconds), the cache.
Watched = tuple[float, int, float, "weakref.ref[Any]"]


def checked_interval(interval: float | None) -> float | None:
    """The interval in seconds, or None. ValueError if it is not positive."""
    if interval is None:
        return None
    if isinstance(interval, bool) or not isinstance(interval, (int, float)) or not interval > 0:
        raise ValueError(f"cleanup_interval must be positive seconds or None, not {interval!r}")
    return min(float(interval), threading.TIMEOUT_MAX)


class Sweeper:
    """A thread, and a heap of (when due, tie-break, interval, weak cache).

    A cache may die, or the garbage collector run, at any point here, and a finalizer may make a
    cache and call watch(): hence the re-entrant lock, and no step that relies on the heap across
    such a point.
    """

    def __init__(self) -> None:
        self._wake = threading.Condition(threading.RLock())
        self._heap: list[Watched] = []
        self._ticket = itertools.count()
        self._pushes = 0
        self._room = COMPACT_ABOVE
        self._thread: threading.Thread | None = None
        self._asleep_until = 0.0
        self._stopping = False

    def watch(self, cache: Any, interval: float) -> None:
        """Sweep `cache` every `interval` seconds from now on, until it is closed or gone."""
        with self._wake:
            if self._stopping:
                return
            due = self._push(weakref.ref(cache), interval)
            if len(self._heap) > self._room:
                self._compact()
            if self._thread is None:
                self._start()
            elif due < self._asleep_until:
                self._wake.notify()

    def stop(self) -> None:
        """End the thread and wait for it, but not long."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join(EXIT_WAIT)

    def watched(self) -> list[tuple[Any, float]]:
        """The caches that are alive and open, and their intervals."""
        found = [(ref(), interval) for _, _, interval, ref in self._heap]
        return [(c, interval) for c, interval in found if c is not None and not c.closed]

    def _start(self) -> None:
        self._thread = threading.Thread(
            target=keep_going, args=(self._run_once,), name="lapse-sweeper", daemon=True
        )
        try:
            self._thread.start()
        except BaseException:  # there is none to be had: the next cache tries again
            self._thread = None
            raise

    def _push(self, ref: weakref.ref[Any], interval: float) -> float:
        due = time.monotonic() + interval
        self._pushes += 1
        heapq.heappush(self._heap, (due, next(self._ticket), interval, ref))
        return due

    def _compact(self) -> None:
        """Drop dead caches before their time; amortised over the caches made since."""
        pushes = self._pushes
        kept = [entry for entry in self._heap if not _is_gone(entry[3])]
        heapq.heapify(kept)
        room = COMPACT_ABOVE + 2 * len(kept)
        if pushes == self._pushes:  # else a finalizer has come between: the next cache tries again
            self._heap = kept
            self._room = room

    def _run_once(self) -> bool:
        """Sweep the next cache that is due; False: the thread ends."""
        ref = self._next_due()
        if ref is None:
            return False
        _sweep(ref)
        return True

    def _next_due(self) -> weakref.ref[Any] | None:
        """Wait for the next cache that is due and plan its next turn; None: the thread ends."""
        with self._wake:
            idle_until = time.monotonic() + LINGER
            while not self._stopping:
                now = time.monotonic()
                entry = self._earliest()
                if entry is None and now >= idle_until:
                    if not self._heap:  # else a finalizer has come between
                        break
                    continue
                if entry is not None and entry[0] <= now:
                    turn = (now + entry[2], next(self._ticket), entry[2], entry[3])
                    if self._heap[0] is entry:  # else a finalizer has come between
                        heapq.heapreplace(self._heap, turn)
                        return entry[3]
                    continue
                self._sleep(entry[0] if entry else idle_until)
            self._thread = None
            return None

    def _earliest(self) -> Watched | None:
        """The earliest cache that is still there."""
        while self._heap:
            entry = self._heap[0]
            if not _is_gone(entry[3]):
                return entry
            self._drop(entry)
        return None

    def _drop(self, entry: Watched) -> None:
        """Take the earliest off the heap, unless a finalizer has changed it meanwhile."""
        if self._heap and self._heap[0] is entry:
            heapq.heappop(self._heap)

    def _sleep(self, until: float) -> None:
        self._asleep_until = until
        self._wake.wait(min(until - time.monotonic(), threading.TIMEOUT_MAX))
        self._asleep_until = 0.0


def _is_gone(ref: weakref.ref[Any]) -> bool:
    cache = ref()
    return cache is None or cache.closed


def _sweep(ref: weakref.ref[Any]) -> None:
    cache = ref()
    if cache is None or cache.closed:
        return
    try:
        cache.expire()
    except Exception:
        if not cache.closed:  # closing it meanwhile is no error
            log.exception("sweeping a %s failed", type(cache).__name__)


_sweeper = Sweeper()


def watch(cache: Any, interval: float) -> None:
    """Have the process's sweeper care for `cache`."""
    _sweeper.watch(cache, interval)


def _restart_after_fork() -> None:
    """The child has no sweeping thread: make a new one for the caches that it inherited."""
    global _sweeper
    inherited = _sweeper.watched()
    _sweeper = Sweeper()
    for cache, interval in inherited:
        _sweeper.watch(cache, interval)


@atexit.register
def _stop_at_exit() -> None:
    _sweeper.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_after_fork)
