"""Single-flight loading: of the callers that miss a key at once one loads, and the others wait.

`Flights` is what get_or_load(), aget_or_load() and load_many() of a cache do about a miss, or an
old value that is to be reloaded (flight_refresh.py). What keeps an old value from coming back is
the native lease (csrc/fence.h); what callers share is a flight (flight_board.py); where they wait
is a gate (flight_gates.py); who calls the loader leads (flight_lead.py). A load ends in one of
three ways:

    a value       is stored, unless a change has outdated it, and goes to all who waited
    an Exception  goes to all who waited; nothing is stored; the next caller loads anew
    cut off       (KeyboardInterrupt, a cancelled task, a closed event loop) is the leader's own
                  affair: those who waited begin anew, and one of them leads

In a thread the leader calls the loader itself. Among coroutines the loader runs in a task of its
own, in a copy of the first caller's context; that caller waits like the others, so each can be
cancelled alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from threading import get_ident
from typing import TYPE_CHECKING, Any

from lapse.flight_board import DROPPED, MISSING, Flight, LoadCycleError, Run, Wait, board
from lapse.flight_gates import AGAIN, LoopGate, Outcome, ThreadGate, until
from lapse.flight_lead import fly, lead, lead_batch
from lapse.flight_refresh import arefresh, checked_refresh, refresh, serves_on

if TYPE_CHECKING:
    from lapse._core import Cache

__all__ = ["Flights", "LoadCycleError"]


class Flights:
    """What a cache does about missing keys. It keeps nothing of its own. Thread-safe."""

    __slots__ = ()

    def load(
        self, cache: Cache[Any, Any], key: Any, loader: Callable[[Any], Any],
        ttl: Any, tags: Iterable[str], timeout: float | None,
        how: str | None = None, old: Any = MISSING,
    ) -> Any:  # fmt: skip
        """The value under a key that has been missed, or whose value `old` is to be reloaded.

        Raises what the loader raises; TimeoutError after `timeout` seconds of waiting for somebody
        else's load; LoadCycleError; TypeError or ValueError for a wrong argument, before the loader
        is called, and TypeError if it returns an awaitable.
        """
        names, deadline = _tags(cache, key, ttl, tags), until(timeout)
        where = checked_refresh(how, cache._options["refresh"])
        while True:
            old = cache._stale(key, MISSING) if old is MISSING else old
            mine = Flight(cache, key, names)
            if old is not MISSING:
                return refresh(cache, mine, old, loader, ttl, where)
            with mine:
                flight = board.offer(mine)
                if flight is mine:
                    return lead(cache, mine, loader, ttl)
            value = _wait(flight, deadline)
            if value is not AGAIN:
                return value

    async def aload(
        self, cache: Cache[Any, Any], key: Any, loader: Callable[[Any], Any],
        ttl: Any, tags: Iterable[str], timeout: float | None,
        how: str | None = None, old: Any = MISSING,
    ) -> Any:  # fmt: skip
        """load() for coroutines: `loader` may return an awaitable; `timeout` bounds each caller."""
        import asyncio

        loop = asyncio.get_running_loop()
        names, deadline = _tags(cache, key, ttl, tags), until(timeout)
        where = checked_refresh(how, cache._options["refresh"])
        while True:
            old = cache._stale(key, MISSING) if old is MISSING else old
            mine, gate = Flight(cache, key, names), LoopGate(loop)
            if old is not MISSING:
                value = await arefresh(cache, mine, old, loader, ttl, where, deadline)
                if value is not AGAIN:
                    return value
                old = MISSING
                continue
            try:
                flight = board.offer(mine)
                if flight is mine:
                    mine.waiters[gate] = None  # an eager task may end before it is waited for
                    mine.depart(loop, fly(cache, mine, loader, ttl))
            except BaseException:
                board.settle(mine, DROPPED)
                raise
            with Wait(flight, gate, None):
                await gate.wait(deadline)
            value = gate.take(key, flight is mine)
            if value is not AGAIN:
                return value

    def load_many(
        self, cache: Cache[Any, Any], missing: list[Any], batch_loader: Callable[[list[Any]], Any],
        ttl: Any, tags: Iterable[str], timeout: float | None,
    ) -> dict[Any, Any]:  # fmt: skip
        """The values under keys that have been missed, as far as there are any.

        What nobody is loading comes first, by one call of `batch_loader`; only then the wait for
        what others load, so that batches cannot wait for each other. `timeout` bounds that wait.
        Of more than 65,536 keys at once not all are stored: the fence honours no more leases.
        Raises like load().
        """
        names = _tags(cache, missing[0], ttl, tags)
        until(timeout)  # refuses a wrong one before anything is loaded
        found: dict[Any, Any] = {}
        deadline = None
        while missing:
            with ExitStack() as settled:
                run = Run()
                mine = [settled.enter_context(Flight(cache, k, names, run)) for k in missing]
                flights = [board.offer(flight) for flight in mine]
                led = [own for own, flight in zip(mine, flights, strict=True) if own is flight]
                found.update(_lead_batch(cache, led, run, batch_loader, ttl))
            deadline, missing = deadline or until(timeout), []
            for own, flight in zip(mine, flights, strict=True):
                value = found if flight is own else _served(cache, flight, deadline)
                if value is AGAIN:
                    missing.append(own.key)
                elif value is not found:
                    found[own.key] = value
        return found


def _tags(cache: Cache[Any, Any], key: Any, ttl: Any, tags: Iterable[str]) -> frozenset[str]:
    """The tags as a set. What is wrong with an argument is told before anything is loaded."""
    if ttl is not None and not callable(ttl):
        cache.touch_many((), ttl)  # touches nothing
    return frozenset() if tags == () else cache.lease(key, tags=tags).tags


def _wait(flight: Flight, deadline: float | None) -> Any:
    """What a flight that another caller leads brings, or AGAIN."""
    gate = ThreadGate()
    with Wait(flight, gate, get_ident()):
        gate.wait(deadline)
    return gate.take(flight.key)


def _served(cache: Cache[Any, Any], flight: Flight, deadline: float | None) -> Any:
    """What another caller reloads is served as it was; what he loads is waited for."""
    old = cache._stale(flight.key, MISSING)
    return _wait(flight, deadline) if old is MISSING else old


def _lead_batch(
    cache: Cache[Any, Any], led: list[Flight], run: Run, batch_loader: Callable[[list[Any]], Any],
    ttl: Any,
) -> dict[Any, Any]:  # fmt: skip
    """lead_batch(); if that fails, the old values, provided that there is one for each key."""
    try:
        return lead_batch(cache, led, run, batch_loader, ttl)
    except Exception as error:
        old = {flight.key: cache._stale(flight.key, MISSING) for flight in led}
        if not all(v is not MISSING and serves_on(cache, k, v, error) for k, v in old.items()):
            raise
        for flight in led:
            board.settle(flight, Outcome(old[flight.key]))
        return old
