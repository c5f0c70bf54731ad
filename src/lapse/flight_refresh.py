"""Refreshing: an old value is reloaded by one caller, while everyone else is served the old one.

    old value   drawn by XFetch, and live still          (probabilistic caches)
                past its deadline, within its grace      (stale_ttl, soft_clear())
       │
       ├─ somebody reloads it already ──► the old value, at once
       ├─ "caller"                    ──► reload, wait, the new value
       └─ "thread", "task"            ──► the old value, at once; the reload goes on behind

"thread" and "task" mean the background: a worker's thread for get_or_load(), a task of the running
loop for aget_or_load().

Invariants
    1. A reload is a flight like others (flight_board.py): one a key, under a lease.
    2. An old value is served after a failed reload only while the cache still holds that very
       object: an invalidation has removed it, and then the error is raised.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, get_args

from lapse.flight_board import DROPPED, MISSING, Flight, Wait, board
from lapse.flight_gates import AGAIN, LoopGate
from lapse.flight_lead import fly, lead
from lapse.shortage import keep_going

if TYPE_CHECKING:
    from lapse._core import Cache

__all__ = ["Refresh", "arefresh", "checked_refresh", "refresh", "serves_on"]

log = logging.getLogger("lapse.loading")

#: Where a reload runs.
Refresh = Literal["caller", "thread", "task"]
REFRESH: tuple[Refresh, ...] = get_args(Refresh)

NOBODY = 0  # the thread of a load that waits for a worker
MOST_WORKERS = 8
LINGER = 10.0  # seconds that an idle worker waits for more

Loader = Callable[[Any], Any]


def checked_refresh(how: str | None, default: str = "caller") -> str:
    """`how`, or `default` for None. ValueError if it is none of REFRESH."""
    if how is None:
        return default
    if how not in REFRESH:
        raise ValueError(f"refresh must be one of {', '.join(REFRESH)}, not {how!r}")
    return how


def kept(cache: Cache[Any, Any], key: Any, old: Any) -> bool:
    """Does the cache hold that very object still, live or within its grace?"""
    if cache.closed:
        return False
    return cache._look(key, MISSING) is old or cache._stale(key, MISSING) is old


def refresh(
    cache: Cache[Any, Any], mine: Flight, old: Any, loader: Loader, ttl: Any, how: str
) -> Any:
    """The new value, or `old` if another caller or the background sees to it.

    Raises what the loader raises, if `old` may not be served any more.
    """
    if how != "caller" and _handed_over(cache, mine, old, loader, ttl):
        return old
    try:
        with mine:
            return lead(cache, mine, loader, ttl, old) if board.offer(mine) is mine else old
    except Exception as error:
        if not serves_on(cache, mine.key, old, error):
            raise
    return old


def _handed_over(cache: Cache[Any, Any], mine: Flight, old: Any, loader: Loader, ttl: Any) -> bool:
    """Does somebody else see to the reload: another caller, or a worker?"""
    mine.run.thread = NOBODY
    try:
        gone = board.offer(mine) is not mine or workers.submit(cache, mine, old, loader, ttl)
    except BaseException:
        board.settle(mine, DROPPED)
        raise
    if not gone:
        mine.run.thread = threading.get_ident()
    return gone


async def arefresh(
    cache: Cache[Any, Any], mine: Flight, old: Any, loader: Loader, ttl: Any, how: str,
    deadline: float | None,
) -> Any:  # fmt: skip
    """refresh() for coroutines; AGAIN if the reload was dropped. `deadline` as in gates."""
    import asyncio

    loop = asyncio.get_running_loop()
    gate = LoopGate(loop)
    try:
        if board.offer(mine) is not mine:
            return old
        if how == "caller":
            mine.waiters[gate] = None  # an eager task may end before it is waited for
        mine.depart(loop, fly(cache, mine, loader, ttl, old))
    except BaseException:
        board.settle(mine, DROPPED)
        raise
    if how != "caller":
        return old
    try:
        with Wait(mine, gate, None):
            await gate.wait(deadline)
        value = gate.take(mine.key, True)
    except Exception as error:
        if not serves_on(cache, mine.key, old, error):
            raise
        return old
    return old if value is AGAIN and kept(cache, mine.key, old) else value


def serves_on(cache: Cache[Any, Any], key: Any, old: Any, error: Exception) -> bool:
    """May the old value be served although the reload has failed?"""
    if not (cache._options["stale_if_error"] and kept(cache, key, old)):
        return False
    log.warning("reloading %.100r failed; the old value is served on", key, exc_info=error)
    return True


class Workers:
    """Threads that reload in the background: as many as there is work for, up to MOST_WORKERS."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a finalizer may ask for a reload
        self._work: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._pending = self._asked = 0
        self._threads = 0

    def submit(
        self, cache: Cache[Any, Any], flight: Flight, old: Any, loader: Loader, ttl: Any
    ) -> bool:
        """Have a worker lead `flight`, which is on the board; False if no thread is to be had."""
        with self._lock:
            if self._threads < MOST_WORKERS and self._threads <= self._pending:
                self._start()
            if self._threads == 0:
                return False
            self._work.put((cache, flight, old, loader, ttl))
            self._asked += 1
            self._pending += 1
            return True

    def _start(self) -> None:
        with suppress(RuntimeError):  # too many threads, or the interpreter is ending
            args = (self._run_once,)
            threading.Thread(
                target=keep_going, args=args, name="lapse-refresh", daemon=True
            ).start()
            self._threads += 1

    def _run_once(self) -> bool:
        """Do some work, which is waited for; False: there was none, and the thread ends."""
        try:
            work = self._work.get(timeout=LINGER)
        except queue.Empty:
            with self._lock:
                asked = self._asked
                going = not self._work.empty() or asked != self._asked  # a finalizer asks, too
                if not going:
                    self._threads -= 1
            return going
        try:
            _reload(*work)
        except MemoryError:  # of the call itself
            board.settle(work[1], DROPPED)
        finally:
            with self._lock:
                self._pending -= 1
        return True


def _reload(cache: Cache[Any, Any], flight: Flight, old: Any, loader: Loader, ttl: Any) -> None:
    """Lead a flight that a caller has handed over. What fails is logged, and tried anew."""
    flight.run.thread = threading.get_ident()
    try:
        with flight:
            lead(cache, flight, loader, ttl, old)
    except BaseException as error:  # a worker outlives what loaders raise
        if not flight.settled:  # there was no memory to begin
            board.settle(flight, DROPPED)
        if not cache.closed:  # closing it meanwhile is no error
            log.warning("reloading %.100r in the background failed", flight.key, exc_info=error)


workers = Workers()


def _forget_workers() -> None:
    global workers
    workers = Workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
