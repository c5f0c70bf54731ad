"""The loads that are under way in this process, and who waits for which of them.

    running   (cache, hash of key) ──► (flight, ...)   one a key; more where hashes are equal
    blocked   thread ──► run                           what a thread waits for just now
    run       the call of a loader ──► thread          that it needs
                                   ──► run, ...        that it waits for

A flight is one load of one key. Whoever misses a key makes a flight and offers it to the board,
which takes it: the caller *leads*. Or it answers with the one under way: the caller *joins*.

Invariants
    1. A flight is put on the board, takes its lease, looks into the cache once more, and only then
       calls the loader. It can be joined until the lease is outdated: nobody gets what was read
       before a change that had been made when he called. What was found is for the leader alone:
       who marks entries (loading/lazy.py) outdates leases first, and hides the entry later.
    2. What was loaded is stored before the flight leaves the board. So between the leases of two
       loads of a key lies a change of that key: there are at most as many loads as changes, and
       one more. (Expiry, eviction and a failed load are changes in this sense.)
    3. Whoever puts a flight on the board settles it, however he ends: `with flight:` sees to it,
       for a task `depart()`. Nobody waits for a load that nobody works at.
    4. A wait that would close a ring of waits is refused before it begins. The ring is followed
       through threads that lead, through tasks that load and all that inherits their context, and
       through event loops whose thread is blocked; not through waits of other kinds (a queue, a
       future of an executor).

Threads: all of it belongs to the holder of `board.lock`. Nothing of the user's runs under it: keys
are compared outside, and the identity of a tuple tells what has changed meanwhile. The lock is
re-entrant, because a signal or the garbage collector may interrupt a section at any point, and what
they call may come back here. They may end a flight then: each step allows for it. They may lead,
but must not wait with the lock held: what they load in such a moment is not shared.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lapse._core import absent
from lapse.flight_gates import Gate, Outcome

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from lapse._core import Cache, Lease

__all__ = ["MISSING", "Flight", "LoadCycleError", "Run", "Wait", "board", "inside"]

MISSING: Any = absent
FAR = 1e9  # seconds, about 30 years: when a task's handle on its loop would be due
DROPPED = Outcome(dropped=True)


class LoadCycleError(RuntimeError):
    """A load would wait for itself: directly, or around several threads and tasks."""


class Run:
    """The call of a loader: the thread that it needs, and what it waits for.

    `with run:` is for the thread that calls it; a task sets `inside` in a context of its own.
    """

    __slots__ = ("_outer", "_token", "over", "thread", "waits")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        #: By what stands for the wait: the gate, or the inner run itself.
        self.waits: dict[object, Run] = {}
        self.over = False
        self._outer: Run | None = None
        self._token: Token[Run | None] | None = None

    def __enter__(self) -> None:
        self._outer = inside.get()
        try:
            self._token = inside.set(self)
            if self._outer is not None:
                with board.lock:
                    self._outer.waits[self] = self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.over = True
        outer, token = self._outer, self._token
        self._outer = self._token = None
        try:
            if outer is not None:
                with board.lock:
                    outer.waits.pop(self, None)
        finally:
            if token is not None:
                inside.reset(token)


#: The run that a piece of code is part of. Tasks, and threads of asyncio.to_thread(), inherit it.
inside: ContextVar[Run | None] = ContextVar("lapse.inside", default=None)


class Flight:
    """One load of one key. `with flight:` settles it at the end, if that has not been done.

    An Exception that leaves the block goes to all who wait; after anything else they begin anew.
    """

    __slots__ = (
        "_handle", "key", "lease", "over", "place", "run", "settled", "tags", "task", "waiters",
    )  # fmt: skip

    def __init__(
        self, cache: Cache[Any, Any], key: Any, tags: frozenset[str], run: Run | None = None
    ):
        self.key, self.tags = key, tags
        self.place = (id(cache), hash(key))  # whoever leads holds the cache
        self.run = run or Run()
        self.lease: Lease | None = None
        self.waiters: dict[Gate, None] = {}
        #: Nobody can join any more.
        self.over = False
        #: It is off the board, and all who waited have been told.
        self.settled = False
        self.task: asyncio.Task[None] | None = None
        self._handle: weakref.ref[asyncio.TimerHandle] | None = None

    def serves(self, tags: frozenset[str]) -> bool:
        """May a caller that comes now, and names `tags`, share what it brings?"""
        lease = self.lease
        return not self.over and tags <= self.tags and (lease is None or not lease.outdated)

    def begin(self, cache: Cache[Any, Any], old: Any = MISSING) -> Any:
        """Take the lease, and look whether something has been stored meanwhile; else MISSING.

        The look comes after the lease, so that what is stored before it is not loaded again. A
        change between the two would make the load one in vain: then once more. `old` is what is to
        be reloaded: that very object counts as nothing.
        """
        for _ in range(2):
            self.lease = lease = cache.lease(self.key, tags=self.tags)
            value = cache._look(self.key, MISSING)
            if value is old:
                value = MISSING
            if value is not MISSING or not lease.outdated:
                break
        return value

    def store(self, cache: Cache[Any, Any], value: Any, ttl: Any) -> None:
        """Store what was loaded, unless a change has outdated it, or the cache has been closed."""
        assert self.lease is not None
        life = ttl(value) if callable(ttl) else ttl
        if callable(ttl) and life == 0:
            return
        try:
            cache.fill(self.lease, value, life)
        except RuntimeError:
            if not cache.closed:
                raise

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.settled and not self.waiters:
            return
        try:
            board.settle(self, Outcome(None, error, trace, not isinstance(error, Exception)))
        except MemoryError:
            board.settle(self, DROPPED)  # those who wait find out for themselves

    # --- In a task of its own ---

    def depart(self, loop: asyncio.AbstractEventLoop, load: Coroutine[Any, Any, None]) -> None:
        """Have `load`, which settles the flight, run in a task of `loop`, the running one."""
        self.task = loop.create_task(load)
        self.task.add_done_callback(self._arrived)  # it may be cancelled before it has begun
        # A loop that is closed drops its handles, and the task never goes on.
        handle = loop.call_later(FAR, int)
        self._handle = weakref.ref(handle, lambda _: board.settle(self, DROPPED))

    def cancel(self) -> None:
        """End the task; from any thread."""
        task = self.task
        if task is None:
            return
        if threading.get_ident() == self.run.thread:
            task.cancel()
            return
        try:
            task.get_loop().call_soon_threadsafe(task.cancel)
        except RuntimeError:  # the loop is closed
            return

    def _arrived(self, task: asyncio.Task[None]) -> None:
        handle = self._handle() if self._handle is not None else None
        self.task = self._handle = None
        if handle is not None:
            handle.cancel()
        if not self.settled:
            from asyncio import CancelledError

            error = None if task.cancelled() else task.exception()
            error = error or CancelledError()
            board.settle(self, Outcome(error=error, dropped=not isinstance(error, Exception)))


class Board:
    """The process's one board. Thread-safe."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin empty: in a forked child, where the threads that lead and wait are not there."""
        self.lock = threading.RLock()
        self.running: dict[tuple[int, int], tuple[Flight, ...]] = {}
        self.blocked: dict[int, Run] = {}

    def offer(self, mine: Flight) -> Flight:
        """The flight to join, or `mine`: then the caller leads it."""
        while not self.lock._is_owned():  # type: ignore[attr-defined]
            seen = self.running.get(mine.place)
            same = next((f for f in seen or () if f.key is mine.key or f.key == mine.key), None)
            if same is not None and same.serves(mine.tags):
                return same
            with self.lock:
                if self.running.get(mine.place) is seen:
                    self.running[mine.place] = (*(f for f in seen or () if f is not same), mine)
                    return mine
        return mine

    def settle(self, flight: Flight, outcome: Outcome) -> None:
        """End a flight, and let those who wait go on. May be called again if it was interrupted."""
        with self.lock:
            flight.over = True
            self._take_off(flight.place)
        flight.lease = None  # an exception that somebody keeps may keep the flight
        for gate in list(flight.waiters):
            gate.open(outcome)
            flight.waiters.pop(gate, None)
        flight.settled = True

    def _take_off(self, place: tuple[int, int]) -> None:
        """Take flights that are over off the board. Under the lock."""
        running = self.running
        while True:
            rest = tuple(flight for flight in running.get(place, ()) if not flight.over)
            if not rest:
                running.pop(place, None)
                return
            running[place] = rest
            if not any(flight.over for flight in rest):  # else a handler has ended one meanwhile
                return

    def is_ring(self, target: Run, caller: Run | None, thread: int | None) -> bool:
        """Does `target` need `thread` or wait for `caller`, in the end? Under the lock."""
        if caller is None and thread is None:
            return False
        seen: set[Run] = set()
        ahead: list[Run | None] = [target]
        while ahead:
            run = ahead.pop()
            if run is None or run.over or run in seen:
                continue
            if run is caller or run.thread == thread:
                return True
            seen.add(run)
            ahead += [*run.waits.values(), self.blocked.get(run.thread)]
        return False


board = Board()


class Wait:
    """`with Wait(flight, gate, thread):` the gate is opened when the flight ends.

    `thread` is the one that blocks meanwhile, None if a coroutine waits. Raises LoadCycleError.
    When the last one who waits for a task goes, the task is cancelled.
    """

    __slots__ = ("_before", "_caller", "_flight", "_gate", "_thread")

    def __init__(self, flight: Flight, gate: Gate, thread: int | None):
        self._flight, self._gate, self._thread = flight, gate, thread
        self._caller = inside.get()
        self._before: Run | None = None

    def __enter__(self) -> None:
        flight = self._flight
        with board.lock:
            ring = not flight.over and board.is_ring(flight.run, self._caller, self._thread)
            if not ring:
                self._begin()
        if ring:
            flight.waiters.pop(self._gate, None)
            _leave(flight)
            raise LoadCycleError(f"the load of {flight.key!r} would wait for itself")
        if flight.over:
            self._gate.open(DROPPED)

    def _begin(self) -> None:
        run = self._flight.run
        self._flight.waiters[self._gate] = None
        if self._caller is not None:
            self._caller.waits[self._gate] = run
        if self._thread is not None:
            self._before = board.blocked.get(self._thread)  # a signal handler waits within a wait
            board.blocked[self._thread] = run

    def __exit__(self, *_: object) -> None:
        with board.lock:
            self._flight.waiters.pop(self._gate, None)
            if self._caller is not None:
                self._caller.waits.pop(self._gate, None)
            if self._before is not None and self._thread is not None:
                board.blocked[self._thread] = self._before
            elif self._thread is not None:
                board.blocked.pop(self._thread, None)
        _leave(self._flight)


def _leave(flight: Flight) -> None:
    """Somebody waits no longer: a task that nobody waits for is cancelled."""
    if flight.task is not None and not flight.over and not flight.waiters:
        board.settle(flight, DROPPED)  # whoever joins it in this moment begins anew
        flight.cancel()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=board.forget)
