"""Single-flight loading: of the callers that miss a key at once one loads, and the others wait.

`Flights` is what get_or_load(), aget_or_load() and load_many() of a cache do about a miss. What
keeps an old value from coming back is the native lease (csrc/fence.h); what callers share is a
flight (flight_board.py); where they wait is a gate (flight_gates.py). A load has one of three ends:

    a value       is stored, unless a change has outdated it, and goes to all who waited
    an Exception  goes to all who waited; nothing is stored; the next caller loads anew
    cut off       (KeyboardInterrupt, a cancelled task, a closed event loop) is the leader's own
                  affair: those who waited begin anew, and one of them leads

In a thread the leader calls the loader itself. Among coroutines the loader runs in a task of its
own, in a copy of the first caller's context; that caller waits like the others, so each can be
cancelled alone.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack, suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any

from lapse.flight_board import DROPPED, MISSING, Flight, LoadCycleError, Run, Wait, board, inside
from lapse.flight_gates import AGAIN, LoopGate, Outcome, ThreadGate, until

if TYPE_CHECKING:
    from lapse._core import Cache

__all__ = ["Flights", "LoadCycleError"]


class Flights:
    """What a cache does about missing keys. It keeps nothing of its own. Thread-safe."""

    __slots__ = ()

    def load(
        self, cache: Cache[Any, Any], key: Any, loader: Callable[[Any], Any],
        ttl: Any, tags: Iterable[str], timeout: float | None,
    ) -> Any:  # fmt: skip
        """The value under a key that has been missed.

        Raises what the loader raises; TimeoutError after `timeout` seconds of waiting for somebody
        else's load; LoadCycleError; TypeError or ValueError for a wrong argument, before the loader
        is called, and TypeError if it returns an awaitable.
        """
        names, deadline = _tags(cache, key, ttl, tags), until(timeout)
        while True:
            with Flight(cache, key, names) as mine:
                flight = board.offer(mine)
                if flight is mine:
                    return _lead(cache, mine, loader, ttl)
            value = _wait(flight, deadline)
            if value is not AGAIN:
                return value

    async def aload(
        self, cache: Cache[Any, Any], key: Any, loader: Callable[[Any], Any],
        ttl: Any, tags: Iterable[str], timeout: float | None,
    ) -> Any:  # fmt: skip
        """load() for coroutines: `loader` may return an awaitable; `timeout` bounds each caller."""
        import asyncio

        loop = asyncio.get_running_loop()
        names, deadline = _tags(cache, key, ttl, tags), until(timeout)
        while True:
            mine, gate = Flight(cache, key, names), LoopGate(loop)
            try:
                flight = board.offer(mine)
                if flight is mine:
                    mine.waiters[gate] = None  # an eager task may end before it is waited for
                    mine.depart(loop, _fly(cache, mine, loader, ttl))
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
                value = found if flight is own else _wait(flight, deadline)
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


def _lead(cache: Cache[Any, Any], flight: Flight, loader: Callable[[Any], Any], ttl: Any) -> Any:
    value = flight.begin(cache)
    if value is MISSING:
        with flight.run:
            value = _plain(loader(flight.key))
            flight.store(cache, value, ttl)
    board.settle(flight, Outcome(value))
    return value


def _lead_batch(
    cache: Cache[Any, Any], led: list[Flight], run: Run, batch_loader: Callable[[list[Any]], Any],
    ttl: Any,
) -> dict[Any, Any]:  # fmt: skip
    """What is found or loaded, by key; what the batch leaves out is not settled here."""
    found, waiting = {}, []
    for flight in led:
        value = flight.begin(cache)
        if value is MISSING:
            waiting.append(flight)
        else:
            found[flight.key] = value
            board.settle(flight, Outcome(value))
    if not waiting:
        return found
    with run:
        loaded = _mapping(batch_loader([flight.key for flight in waiting]))
        for flight in waiting:
            if flight.key in loaded:
                found[flight.key] = value = loaded[flight.key]
                flight.store(cache, value, ttl)
                board.settle(flight, Outcome(value))
    return found


def _wait(flight: Flight, deadline: float | None) -> Any:
    """What a flight that another caller leads brings, or AGAIN."""
    gate = ThreadGate()
    with Wait(flight, gate, get_ident()):
        gate.wait(deadline)
    return gate.take(flight.key)


async def _fly(
    cache: Cache[Any, Any], flight: Flight, loader: Callable[[Any], Any], ttl: Any
) -> None:
    """Lead a flight, as a task. An Exception is for those who wait; anything else ends the task."""
    inside.set(flight.run)
    try:
        with suppress(Exception), flight:
            value = flight.begin(cache)
            if value is MISSING:
                value = loader(flight.key)
                if _is_awaitable(value):
                    value = await value
                flight.store(cache, value, ttl)
            board.settle(flight, Outcome(value))
    finally:
        flight.run.over = True


def _is_awaitable(value: Any) -> bool:
    return hasattr(type(value), "__await__")


def _plain(value: Any) -> Any:
    """A loader's result in a thread, where nobody could await it."""
    if not _is_awaitable(value):
        return value
    if isinstance(value, Coroutine):
        value.close()
    raise TypeError(f"the loader returned a {type(value).__name__}: await aget_or_load() instead")


def _mapping(loaded: Any) -> Mapping[Any, Any]:
    if not isinstance(_plain(loaded), Mapping):
        raise TypeError(f"a batch loader returns a mapping, not a {type(loaded).__name__}")
    return loaded  # type: ignore[no-any-return]
