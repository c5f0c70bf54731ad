"""The caches that a replay compares: one of lapse's, and what else there is to store keys in.

All of them are unbounded, so that only expiry makes one miss where another hits.
"""

from __future__ import annotations

__all__ = ["CACHES", "Contender", "contenders"]

import functools
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lapse import ManualClock, ProbabilisticTTLCache, SlidingTTLCache, TTLCache, __version__
from lapse.traces import Key

#: The lapse caches by the name that `contenders` takes.
CACHES: dict[str, Callable[..., Any]] = {
    "ttl": TTLCache,
    "sliding": SlidingTTLCache,
    "probabilistic": ProbabilisticTTLCache,
}

_CENTURY_SECONDS = 100 * 365 * 86_400


@dataclass(frozen=True, slots=True)
class Contender:
    """A cache in the race: how to read, to store and to count its live entries."""

    name: str
    version: str
    read: Callable[[Key], object]
    store: Callable[[Key, object], object]
    size: Callable[[], int]
    #: The clock that the trace's timestamps drive, if the cache takes one.
    clock: ManualClock | None = None
    #: How many keys it has loaded by itself, for a cache that stores on a miss unasked.
    loads: Callable[[], int] | None = None
    #: What to do with it afterwards.
    close: Callable[[], object] | None = None


def contenders(cache: str, ttl: float, timed: bool) -> list[Contender]:
    """The lapse cache of that name and its rivals that are installed, new and empty.

    Args:
        cache: A name out of `CACHES`.
        ttl: The lifetime of every entry in seconds.
        timed: Whether a trace with timestamps is to drive the clocks.

    Raises:
        ValueError: The name is unknown, or the ttl is no lifetime.
    """
    if cache not in CACHES:
        raise ValueError(f"unknown cache {cache!r}; known: {', '.join(CACHES)}")
    found = [_lapse(cache, ttl, timed), _dict(), _lru_cache()]
    found += filter(None, [_cachetools(ttl, timed), _cachebox(ttl)])
    return found


def _lapse(cache: str, ttl: float, timed: bool) -> Contender:
    clock = ManualClock() if timed else None
    made = CACHES[cache](ttl, clock=clock)
    return Contender(
        name=f"lapse {cache}",
        version=__version__,
        read=made.get,
        store=made.set,
        size=made.__len__,
        clock=clock,
        close=made.close,
    )


def _dict() -> Contender:
    made: dict[Key, object] = {}
    return Contender("dict", platform.python_version(), made.get, made.__setitem__, made.__len__)


def _lru_cache() -> Contender:
    """Unlike the others it has no read without a load, so what it loads has to be no None."""
    load = functools.lru_cache(maxsize=None)(lambda key: True)
    return Contender(
        name="lru_cache",
        version=platform.python_version(),
        read=load,
        store=lambda key, value: None,
        size=lambda: load.cache_info().currsize,
        loads=lambda: load.cache_info().misses,
    )


def _cachetools(ttl: float, timed: bool) -> Contender | None:
    try:
        import cachetools
    except ImportError:
        return None
    clock = ManualClock() if timed else None
    options: dict[str, Any] = {"timer": clock} if clock else {}
    made: Any = cachetools.TTLCache(sys.maxsize, ttl, **options)
    return Contender(
        name="cachetools ttl",
        version=cachetools.__version__,
        read=made.get,
        store=made.__setitem__,
        size=made.__len__,
        clock=clock,
    )


def _cachebox(ttl: float) -> Contender | None:
    """Its clock cannot be driven, and a lifetime that it cannot represent ends the process."""
    try:
        import cachebox
    except ImportError:
        return None
    made: Any = cachebox.TTLCache(0, min(ttl, _CENTURY_SECONDS))
    return Contender("cachebox ttl", cachebox.__version__, made.get, made.insert, made.__len__)
