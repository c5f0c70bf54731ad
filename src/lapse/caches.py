"""The three expiring caches: thin subclasses of the native one.

They add constructors and what is not hot: views, copying, pickling, comparison. Every read and
write goes straight to the native methods of `lapse._core.Cache`.

    TTLCache               an entry expires a fixed time after it was stored
    SlidingTTLCache        every read starts its time anew, up to `max_lifetime`
    ProbabilisticTTLCache  near its end an entry may expire early, so that callers do not all
                           reload at once
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import timedelta
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar

from lapse import forks, sweeper
from lapse._core import FIXED, PROBABILISTIC, SLIDING, Cache, describe
from lapse.bounds import check_bounds, check_maxsize
from lapse.events import Announcer, Listener
from lapse.flight import Flights
from lapse.flight_refresh import Refresh, checked_refresh
from lapse.stats import CacheStats
from lapse.views import CacheItems, CacheKeys, CacheValues

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CacheStats", "ProbabilisticTTLCache", "SlidingTTLCache", "TTLCache"]

K = TypeVar("K")
V = TypeVar("V")
Seconds = float | timedelta
REPR_ITEMS = 10

if TYPE_CHECKING:
    Native = Cache
else:
    Native = GenericAlias(Cache, (K, V))  # lets a class be derived from Native[K, V]


class ExpiringCache(Native[K, V]):
    """What the three caches share: mapping manners, statistics, copying."""

    __slots__ = ()
    __class_getitem__ = classmethod(GenericAlias)  # type: ignore[var-annotated]
    __hash__ = None  # type: ignore[assignment]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        describe(cls)

    def _start(self, mode: int, options: dict[str, Any]) -> None:
        """Check the options, make the table, and put the cache under the sweeper's care."""
        if not 0 <= options["jitter"] < 1:
            raise ValueError(f"jitter must be in [0, 1), not {options['jitter']!r}")
        check_bounds(options)
        checked_refresh(options["refresh"])
        interval = sweeper.checked_interval(options["cleanup_interval"])
        seed = secrets.randbits(64) if options["seed"] is None else options["seed"]
        options = options | {"seed": seed}
        listener = options["listener"]
        if listener is not None and not callable(listener):
            raise TypeError(f"listener must be callable, not {listener!r}")
        announcer = None if listener is None else Announcer(listener, options["name"])
        self._open(mode, options, announcer, Flights())
        forks.watch(self)
        if interval is not None:
            sweeper.watch(self, interval)

    # --- Mapping manners ---

    def keys(self) -> CacheKeys[K]:
        """A live view of the keys; iterating it is weakly consistent."""
        return CacheKeys(self)

    def values(self) -> CacheValues[V]:
        """A live view of the values; iterating it is weakly consistent."""
        return CacheValues(self)

    def items(self) -> CacheItems[K, V]:
        """A live view of the pairs; iterating it is weakly consistent."""
        return CacheItems(self)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Store every pair of a mapping or an iterable, and the keyword arguments; default ttl."""
        if hasattr(other, "keys") and not hasattr(other, "items"):
            other = [(key, other[key]) for key in other.keys()]  # noqa: SIM118 - only keys() is known
        self.set_many(other)
        self.set_many(more)  # type: ignore[arg-type]

    @classmethod
    def fromkeys(cls, keys: Iterable[Any], value: Any = None) -> Self:
        """A new cache of the defaults with `value` under each of `keys`."""
        cache = cls()
        cache.set_many((key, value) for key in keys)
        return cache

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

    def __or__(self, other: Mapping[K, V]) -> Self:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged = self.copy()
        merged.update(other)
        return merged

    def __ror__(self, other: Mapping[K, V]) -> Self:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged = self._blank()
        merged.update(other)
        merged._restore(self._entries())
        return merged

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]
        self.update(other)
        return self

    def __repr__(self) -> str:
        if self.closed:
            return f"{type(self).__name__}(closed)"
        shown: list[str] = []
        for key, value in self.items():
            if len(shown) == REPR_ITEMS:
                shown.append("...")
                break
            shown.append(f"{key!r}: {'...' if value is self else repr(value)}")
        return f"{type(self).__name__}({{{', '.join(shown)}}}, default_ttl={self.default_ttl!r})"

    # --- Settings and figures ---

    @property
    def default_ttl(self) -> Seconds | None:
        """Seconds that an entry lives unless its own ttl says otherwise; None = for ever."""
        return self._options["default_ttl"]  # type: ignore[no-any-return]

    @property
    def name(self) -> str | None:
        """The name given to the constructor."""
        return self._options["name"]  # type: ignore[no-any-return]

    @property
    def maxsize(self) -> int | None:
        """Entries that the cache holds at most, or what they weigh together; None = no bound."""
        return self._options["maxsize"]  # type: ignore[no-any-return]

    def resize(self, maxsize: int) -> None:
        """Change the bound; what is too much then is evicted before this returns.

        Raises TypeError or ValueError for what is no bound, ValueError for a cache that was made
        without one. Other threads may go on. O(entries that go). The default policy begins anew.
        """
        check_maxsize(maxsize)
        self._resize(maxsize)
        self.expire()

    def stats(self) -> CacheStats:
        """Counters since the cache was made. O(segments)."""
        return CacheStats(size=len(self), **self._counters())

    def get_stats(self) -> dict[str, Any]:
        """The same as a JSON-ready dict, with the hit ratio, the name and the class."""
        stats = self.stats()
        more = {"hit_ratio": stats.hit_ratio, "name": self.name, "class": type(self).__name__}
        return stats._asdict() | more

    def snapshot(self) -> dict[str, Any]:
        """NumPy arrays over the live entries, aligned: `key`, `remaining` and `age` (seconds).

        `remaining` is inf for an entry that never expires. `age`, the time since the entry was
        stored or touched, is NaN where the cache cannot know it: an entry with a ttl of its own in
        a cache that does not keep each entry's ttl. Needs the extra `numpy`.
        """
        import numpy as np

        entries = self._entries()
        keys = np.empty(len(entries), dtype=object)
        keys[:] = [entry[0] for entry in entries]
        left = np.array([np.inf if e[2] is None else e[2] / 1e9 for e in entries], dtype=float)
        ttl = np.array([self._ttl_of(e) for e in entries], dtype=float)
        return {"key": keys, "remaining": left, "age": np.where(np.isinf(left), np.nan, ttl - left)}

    def _ttl_of(self, entry: tuple[Any, ...]) -> float:
        """Seconds that an entry was stored for; NaN if unknown."""
        own = entry[5]
        if self._mode != FIXED:
            return entry[3] / 1e9  # type: ignore[no-any-return]
        if own or self.default_ttl is None:
            return float("nan")
        ttl = self.default_ttl
        return ttl.total_seconds() if isinstance(ttl, timedelta) else float(ttl)

    # --- Copying ---

    def _blank(self) -> Self:
        """An empty cache of the same class, settings and attributes."""
        twin: Self = _remade(type(self), self._mode, self._options)
        for name, value in getattr(self, "__dict__", {}).items():
            setattr(twin, name, value)
        return twin

    def copy(self) -> Self:
        """A copy with the same settings, clock and remaining lifetimes; counters start at zero."""
        twin = self._blank()
        twin._restore(self._entries())
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        from copy import deepcopy

        twin = self._blank()
        memo[id(self)] = twin
        twin._restore(
            [(deepcopy(e[0], memo), deepcopy(e[1], memo), *e[2:]) for e in self._entries()]
        )
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        options = self._options | {"clock": None, "listener": None}
        state = getattr(self, "__dict__", None)
        return _unpickled, (type(self), self._mode, options, self._entries(), time.time()), state

    # --- Lifetime of the cache itself ---

    def start_cleanup_thread(self) -> None:
        """Put the cache under the sweeper's care, where it is already unless that is off."""
        interval = sweeper.checked_interval(self._options["cleanup_interval"])
        if interval is not None:
            sweeper.watch(self, interval)

    def __enter__(self) -> Self:
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """A constructor's arguments by name, from its local variables."""
    return {name: value for name, value in arguments.items() if name != "self"}


def _remade(cls: Any, mode: int, options: dict[str, Any]) -> Any:
    """A new cache that does not run the class's own __init__, whose arguments we cannot know."""
    cache = cls.__new__(cls)
    ExpiringCache._start(cache, mode, options)
    return cache


def _unpickled(
    cls: Any, mode: int, options: dict[str, Any], entries: list[Any], then: float
) -> Any:
    """Rebuild a pickled cache; the wall time spent pickled counts as lived."""
    cache = _remade(cls, mode, options)
    cache._restore(entries, max(0.0, time.time() - then))
    return cache


class TTLCache(ExpiringCache[K, V]):
    """A cache whose entries expire a fixed time after they were stored.

    Args:
        default_ttl: seconds (int, float or timedelta) that an entry lives; None = for ever.
        cleanup_interval: seconds between sweeps of expired entries; None = no sweeping thread.
        maxsize: entries that the cache holds at most; None = no bound.
        policy: which entry makes way: "lru", the one not used for longest, or "duel", the default,
            which hits more often. What has expired goes first.
        weigher: called as `weigher(key, value)` whenever a value is stored; answers what the entry
            weighs, an int from 0 to 2**32 - 1. Then `maxsize` bounds the sum. What weighs more than
            that is not stored (`refused` in the statistics), and an older value of its key goes.
        listener: called as `listener(key, value, cause)` after an entry, or a value, has left;
            cause is replaced, deleted, pattern, tag, cleared, expired, early or evicted. Its
            exceptions are logged.
        stale_ttl: seconds past its deadline in which an entry is served by get_or_load() and cached
            functions while one caller reloads it; everything else takes it for absent. None = none.
        stale_if_error: is it served, too, if the reload raises? False = that caller gets the error.
        refresh: where an old value is reloaded: "caller", in the call that has found it; "thread"
            or "task", in the background, and that call gets the old value like all others.
        jitter: 0 <= jitter < 1; each lifetime is multiplied by a draw from (1 - jitter, 1].
        clock: a callable that returns monotonic seconds; None = the native clock.
        name: shown in statistics.
        seed: of the cache's random generator; None = from the system.

    Raises:
        ValueError: for a lifetime, interval or jitter out of range.
        TypeError: for an option of the wrong type.

    Every single-key method is atomic; reads take no lock in the common case.
    """

    __slots__ = ()

    def __init__(
        self,
        default_ttl: Seconds | None = 3600,
        cleanup_interval: float | None = 300,
        *,
        maxsize: int | None = None,
        policy: str | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        listener: Listener | None = None,
        stale_ttl: Seconds | None = None,
        stale_if_error: bool = True,
        refresh: Refresh = "caller",
        jitter: float = 0.0,
        clock: Callable[[], float] | None = None,
        name: str | None = None,
        seed: int | None = None,
    ) -> None:
        self._start(FIXED, _given(locals()))


class SlidingTTLCache(ExpiringCache[K, V]):
    """A cache in which every read starts an entry's time anew.

    The arguments are those of TTLCache, and:
        max_lifetime: seconds after the last `set` at which an entry ends however often it is read;
            None = no such end.

    A read moves the deadline if that gains more than a tick of the coarse clock (milliseconds), so
    an entry may expire up to two ticks earlier than its last read suggests; under a caller's clock
    the deadline always moves. `in`, `len` and iteration do not count as reads.
    """

    __slots__ = ()

    def __init__(
        self,
        default_ttl: Seconds | None = 3600,
        cleanup_interval: float | None = 300,
        *,
        max_lifetime: Seconds | None = None,
        maxsize: int | None = None,
        policy: str | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        listener: Listener | None = None,
        stale_ttl: Seconds | None = None,
        stale_if_error: bool = True,
        refresh: Refresh = "caller",
        jitter: float = 0.0,
        clock: Callable[[], float] | None = None,
        name: str | None = None,
        seed: int | None = None,
    ) -> None:
        self._start(SLIDING, _given(locals()))


class ProbabilisticTTLCache(ExpiringCache[K, V]):
    """A cache whose entries may expire early, each reader drawing for itself.

    The arguments are those of TTLCache, and:
        early_expiry_factor: 0 <= f <= 1; within the last share f of its lifetime an entry is
            dropped by a read with a probability that grows linearly from 0 to 1.
        beta: >= 0; how eagerly loads are repeated ahead of time once their cost is known (XFetch;
            Vattani, Chierichetti, Lowenstein, VLDB 2015).

    `in`, `len` and iteration do not draw.
    """

    __slots__ = ()

    def __init__(
        self,
        default_ttl: Seconds | None = 3600,
        early_expiry_factor: float = 0.1,
        cleanup_interval: float | None = 300,
        *,
        beta: float = 1.0,
        maxsize: int | None = None,
        policy: str | None = None,
        weigher: Callable[[Any, Any], int] | None = None,
        listener: Listener | None = None,
        stale_ttl: Seconds | None = None,
        stale_if_error: bool = True,
        refresh: Refresh = "caller",
        jitter: float = 0.0,
        clock: Callable[[], float] | None = None,
        name: str | None = None,
        seed: int | None = None,
    ) -> None:
        if not 0 <= early_expiry_factor <= 1:
            raise ValueError(f"early_expiry_factor must be in [0, 1], not {early_expiry_factor!r}")
        if not beta >= 0:
            raise ValueError(f"beta must not be negative: {beta!r}")
        self._start(PROBABILISTIC, _given(locals()))


MutableMapping.register(ExpiringCache)
