"""Leading a flight: the call of the loader, what it brings, and who gets it.

    lead          in the caller's thread
    lead_batch    the same for many keys and one call
    fly           as a task of an event loop

Each takes the lease and looks into the cache before it calls the loader, stores what comes, and
settles the flight. What it finds goes to the leader, and those who wait look for themselves. `old`,
where it is given, is what is to be reloaded: it does not count as found.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from lapse.flight_board import DROPPED, MISSING, Flight, Run, board, inside
from lapse.flight_gates import Outcome

if TYPE_CHECKING:
    from lapse._core import Cache

__all__ = ["fly", "lead", "lead_batch"]


def lead(
    cache: Cache[Any, Any], flight: Flight, loader: Callable[[Any], Any], ttl: Any,
    old: Any = MISSING,
) -> Any:  # fmt: skip
    """The value that is found or loaded. Raises what the loader raises."""
    value = flight.begin(cache, old)
    found = value is not MISSING
    if not found:
        with flight.run:
            value = _plain(loader(flight.key))
            flight.store(cache, value, ttl)
    board.settle(flight, Outcome(value, dropped=found))
    return value


def lead_batch(
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
            board.settle(flight, DROPPED)
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


async def fly(
    cache: Cache[Any, Any], flight: Flight, loader: Callable[[Any], Any], ttl: Any,
    old: Any = MISSING,
) -> None:  # fmt: skip
    """Lead as a task. An Exception is for those who wait; anything else ends the task."""
    inside.set(flight.run)
    try:
        with flight:
            value = flight.begin(cache, old)
            found = value is not MISSING
            if not found:
                value = loader(flight.key)
                if _is_awaitable(value):
                    value = await value
                flight.store(cache, value, ttl)
            board.settle(flight, Outcome(value, dropped=found))
    except Exception as error:
        if not flight.settled:  # there was no memory to begin
            board.settle(flight, Outcome(error=error))
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
