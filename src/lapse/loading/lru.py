"""lru_cache and cache: those of functools, with invalidation.

Signatures, keys, counts and order are the standard library's. What is added: `ttl=`,
`single_flight=`, `cache_invalidate()`, and that a call which is under way while its result is
invalidated, or all are cleared, is not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, overload

from lapse._core import called_natively
from lapse.caches import TTLCache
from lapse.loading.functions import KeptFunction, P, R
from lapse.loading.keys import LONE_NEVER, LONE_PLAIN, NO_PLAN

__all__ = ["CacheInfo", "LruFunction", "cache", "lru_cache"]

Seconds = float | timedelta
SWEEP_INTERVAL = 300.0  # seconds between sweeps of what has expired
DEFAULT_MAXSIZE = 128


class CacheInfo(NamedTuple):
    """Figures of a function under lru_cache: those of functools."""

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


@called_natively
class LruFunction(KeptFunction[P, R]):
    """A function under lru_cache(). Two calls that miss at once both run."""

    __slots__ = ("_parameters",)
    _alone = True

    def __init__(
        self, function: Callable[P, R], maxsize: int | None, typed: bool, ttl: Seconds | None
    ) -> None:
        self._wrap(function)
        self._parameters = {"maxsize": maxsize, "typed": typed}
        interval = None if ttl is None else SWEEP_INTERVAL
        store: TTLCache[Any, R] = TTLCache(ttl, interval, maxsize=maxsize, policy="lru")
        if maxsize == 0:  # nothing is looked for, so arguments need not be hashable
            self._open(store, function, _no_key, NO_PLAN, alone=self._alone)
        else:
            plan = (0, 0, sys.maxsize, (), LONE_NEVER if typed else LONE_PLAIN)
            self._open(store, function, None, plan, typed=typed, alone=self._alone)

    def cache_info(self) -> CacheInfo:
        """Hits and misses since the last cache_clear(), the bound, how many results are kept."""
        counts, maxsize = self._counts(), self._parameters["maxsize"]
        return CacheInfo(counts["hits"], counts["misses"], maxsize, len(self.cache))

    def cache_clear(self) -> None:
        """Drop all results, those of calls that are under way too, and count from zero."""
        self._reset()

    def cache_parameters(self) -> dict[str, Any]:
        """A dict of the arguments `maxsize` and `typed`."""
        return dict(self._parameters)


@called_natively
class SingleFlightFunction(LruFunction[P, R]):
    """A function under lru_cache(single_flight=True)."""

    __slots__ = ()
    _alone = False

    def _miss(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._load(key, args, kwargs, None, (), None)


def _no_key(*_: Any, **__: Any) -> None:
    """The same key for all."""


@overload
def lru_cache(maxsize: Callable[P, R], typed: bool = False) -> LruFunction[P, R]: ...
@overload
def lru_cache(
    maxsize: int | None = 128,
    typed: bool = False,
    *,
    ttl: Seconds | None = None,
    single_flight: bool = False,
) -> Callable[[Callable[P, R]], LruFunction[P, R]]: ...
def lru_cache(
    maxsize: int | Callable[..., Any] | None = DEFAULT_MAXSIZE,
    typed: bool = False,
    *,
    ttl: Seconds | None = None,
    single_flight: bool = False,
) -> Any:
    """Keep the results of the last `maxsize` different calls: functools.lru_cache and invalidation.

    Args:
        maxsize: None = no bound; 0 or less = nothing is kept. Or the function itself: `@lru_cache`.
        typed: are 3 and 3.0 different arguments?
        ttl: seconds (int, float or timedelta) that a result is kept; None = until it makes way.
        single_flight: of the calls that miss the same key at once let one run, and the others wait
            for it, as get_or_load() does. Without it all of them run, as in functools.

    Arguments must be hashable. An exception is not kept. `f.cache_info()`, `f.cache_clear()`,
    `f.cache_parameters()` and `f.__wrapped__` are those of functools; `f.cache_invalidate(*args)`
    drops one result. What a call returns that began before such an invalidation is not kept. A
    method keeps the instances that it was called on alive, as in functools; cached() does not.
    Thread-safe. A hit is one native call, O(1).

    Raises TypeError for a maxsize that is none, ValueError for a ttl that is none.
    """
    kind = SingleFlightFunction if single_flight else LruFunction
    if callable(maxsize) and isinstance(typed, bool):
        return kind(maxsize, DEFAULT_MAXSIZE, typed, ttl)
    if maxsize is not None and not isinstance(maxsize, int):
        raise TypeError("lru_cache() wants an integer, a callable or None as its first argument")
    bound = None if maxsize is None else max(int(maxsize), 0)
    return lambda function: kind(function, bound, typed, ttl)


def cache(user_function: Callable[P, R], /) -> LruFunction[P, R]:
    """Keep the result of every different call: functools.cache, and what lru_cache() adds."""
    return LruFunction(user_function, None, False, None)
