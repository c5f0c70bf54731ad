"""Pure-Python oracle of the three caches: plain dicts and integer nanoseconds, no cleverness.

It says what every cache must answer; the native classes are compared with it. Not thread-safe.
"""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import ItemsView, Iterable, Mapping, MutableMapping, ValuesView
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any

from model_invalidation import Selecting, tag_set

ModelStats = namedtuple("ModelStats", "hits misses sets deletes expirations early_expirations size")
COUNTERS = ("hits", "misses", "sets", "deletes", "expirations", "early_expirations")
MISSING = object()
GONE = object()


def lifetime_ns(seconds: Any) -> float:
    """Lifetime in whole nanoseconds, at least one; `inf` where 63 bits can't hold it."""
    amount = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
    if not number or not amount > 0:
        raise ValueError(f"a ttl is a positive number of seconds, not {seconds!r}")
    return inf if amount >= 2**63 / 1e9 else max(1, round(amount * 1e9))


def fraction(name: str, value: Any, *, below: float = inf) -> float:
    """`value` if it lies in [0, 1] and under `below`."""
    if not 0 <= value <= 1 or value >= below:
        raise ValueError(f"{name} out of range: {value!r}")
    return value


@dataclass
class Entry:
    """One value and its times in nanoseconds; `end` is the deadline that nothing may pass."""

    value: Any
    ttl: float
    deadline: float
    end: float
    written: int
    tags: frozenset[str] = frozenset()


class Items(ItemsView):
    """Live items; neither iterating nor asking counts as a read."""

    def __iter__(self):
        return iter([(key, entry.value) for key, entry in self._mapping._live()])

    def __contains__(self, item):
        return any(item is pair or item == pair for pair in self)


class Values(ValuesView):
    """Live values; neither iterating nor asking counts as a read."""

    def __iter__(self):
        return iter([entry.value for _, entry in self._mapping._live()])

    def __contains__(self, value):
        return any(value is each or value == each for each in self)


class ModelTTLCache(Selecting, MutableMapping):
    """A dict whose entries end a fixed time after they were stored."""

    def __init__(
        self,
        default_ttl: Any = 3600,
        cleanup_interval: float | None = 300,
        *,
        maxsize: None = None,
        policy: None = None,
        weigher: None = None,
        listener: None = None,
        jitter: float = 0.0,
        clock: Any = None,
        name: str | None = None,
        seed: int | None = None,
    ) -> None:
        if any(option is not None for option in (maxsize, policy, weigher, listener)):
            raise NotImplementedError("bounds and listeners")
        if cleanup_interval is not None:
            lifetime_ns(cleanup_interval)
        self._default = inf if default_ttl is None else lifetime_ns(default_ttl)
        self._jitter = fraction("jitter", jitter, below=1)
        self._clock = clock or monotonic
        self._random = random.Random(seed)
        self._longest = inf
        self._entries: dict[Any, Entry] = {}
        self._closed = False
        self._counts = dict.fromkeys(COUNTERS, 0)
        self.name = name

    def _now(self) -> int:
        return round(self._clock() * 1e9)

    def _table(self) -> dict[Any, Entry]:
        if self._closed:
            raise RuntimeError("the cache is closed")
        return self._entries

    def _live(self) -> list[tuple[Any, Entry]]:
        now = self._now()
        return [(key, entry) for key, entry in self._table().items() if now < entry.deadline]

    def _find(self, key: Any) -> Entry | None:
        entry = self._table().get(key)
        if entry is None or self._now() < entry.deadline:
            return entry
        del self._entries[key]
        self._counts["expirations"] += 1
        return None

    def _kept_by_read(self, entry: Entry) -> bool:
        """What a read does to a live entry; False drops it."""
        return True

    def _read(self, key: Any) -> Entry | None:
        entry = self._find(key)
        if entry is not None and not self._kept_by_read(entry):
            del self._entries[key]
            self._counts["early_expirations"] += 1
            entry = None
        self._counts["misses" if entry is None else "hits"] += 1
        return entry

    def get(self, key: Any, default: Any = None) -> Any:
        entry = self._read(key)
        return default if entry is None else entry.value

    def __getitem__(self, key: Any) -> Any:
        entry = self._read(key)
        if entry is None:
            raise KeyError(key)
        return entry.value

    def gather(self, keys: Iterable[Any], default: Any = None) -> list[Any]:
        return [self.get(key, default) for key in list(keys)]

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        keys = list(keys)
        found = zip(keys, self.gather(keys, MISSING), strict=True)
        return {key: value for key, value in found if value is not MISSING}

    def __contains__(self, key: Any) -> bool:
        return self._find(key) is not None

    def __len__(self) -> int:
        return len(self._live())

    def __iter__(self):
        return iter([key for key, _ in self._live()])

    def items(self) -> Items:
        return Items(self)

    def values(self) -> Values:
        return Values(self)

    def __repr__(self) -> str:
        if self._closed:
            return f"{type(self).__name__}(closed)"
        return f"{type(self).__name__}({dict(islice(self.items(), 10))!r})"

    def set(self, key: Any, value: Any, ttl: Any = None, *, tags: Iterable[str] = ()) -> None:
        labels = tag_set(tags)
        length = self._default if ttl is None else lifetime_ns(ttl)
        if self._jitter and length < inf:
            length = max(1, round(length * (1 - self._jitter * self._random.random())))
        self._find(key)
        self._outdate(lambda other: other == key)
        now = self._now()
        end = now + self._longest
        self._entries[key] = Entry(value, length, min(now + length, end), end, now, labels)
        self._counts["sets"] += 1

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def add(self, key: Any, value: Any, ttl: Any = None) -> bool:
        if key in self:
            return False
        self.set(key, value, ttl)
        return True

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self.add(key, default)
        return self._entries[key].value

    def incr(self, key: Any, delta: Any = 1) -> Any:
        self.add(key, 0)
        entry = self._entries[key]
        entry.value += delta
        self._outdate(lambda other: other == key)
        return entry.value

    def set_many(self, other: Any, ttl: Any = None, *, tags: Iterable[str] = ()) -> None:
        pairs, labels = list(other.items() if isinstance(other, Mapping) else other), tag_set(tags)
        if ttl is not None:
            lifetime_ns(ttl)
        for key, value in pairs:
            self.set(key, value, ttl, tags=labels)

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        entry = self._find(key)
        self._outdate(lambda other: other == key)
        if entry is not None:
            del self._entries[key]
            self._counts["deletes"] += 1
            return entry.value
        if default is MISSING:
            raise KeyError(key)
        return default

    def delete(self, key: Any) -> bool:
        return self.pop(key, GONE) is not GONE

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def delete_many(self, keys: Iterable[Any]) -> int:
        return sum([self.delete(key) for key in list(keys)])

    def popitem(self) -> tuple[Any, Any]:
        for key, entry in self._live():
            del self[key]
            return key, entry.value
        raise KeyError("popitem(): the cache is empty")

    def clear(self) -> None:
        self._table().clear()
        self._outdate(lambda key: True)

    def touch(self, key: Any, ttl: Any = None) -> bool:
        length = self._default if ttl is None else lifetime_ns(ttl)
        entry = self._find(key)
        if entry is not None:
            entry.ttl = length
            entry.deadline = min(self._now() + length, entry.end)
        return entry is not None

    def touch_many(self, keys: Iterable[Any], ttl: Any = None) -> int:
        return sum([self.touch(key, ttl) for key in list(keys)])

    def expires_in(self, key: Any) -> float | None:
        entry = self._find(key)
        if entry is None:
            raise KeyError(key)
        return None if entry.deadline == inf else (entry.deadline - self._now()) / 1e9

    def expire(self, limit: int | None = None) -> int:
        now = self._now()
        ended = [key for key, entry in self._table().items() if entry.deadline <= now][:limit]
        for key in ended:
            del self._entries[key]
        self._counts["expirations"] += len(ended)
        return len(ended)

    def stats(self) -> ModelStats:
        return ModelStats(**self._counts, size=len(self))

    def copy(self) -> Any:
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__, _counts=dict.fromkeys(COUNTERS, 0))
        other.__dict__.pop("_leases", None)
        other._entries = {key: replace(entry) for key, entry in self._live()}
        return other

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, Mapping):
            return NotImplemented
        both = self.copy()
        both.update(other)
        return both

    def __ror__(self, other: Any) -> Any:
        return {**other, **dict(self.items())}

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    @classmethod
    def fromkeys(cls, keys: Iterable[Any], value: Any = None) -> Any:
        cache = cls()
        cache.set_many((key, value) for key in keys)
        return cache

    def close(self) -> None:
        self._closed = True
        self._entries = {}

    def __enter__(self) -> Any:
        self._table()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        self.close()


class ModelSlidingTTLCache(ModelTTLCache):
    """Entries that end a fixed time after they were last read, `max_lifetime` at the latest."""

    def __init__(self, *args: Any, max_lifetime: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._longest = inf if max_lifetime is None else lifetime_ns(max_lifetime)

    def _kept_by_read(self, entry: Entry) -> bool:
        entry.deadline = max(entry.deadline, min(self._now() + entry.ttl, entry.end))
        return True


class ModelProbabilisticTTLCache(ModelTTLCache):
    """Entries that reads may drop ahead of their end, more likely the nearer it is."""

    def __init__(
        self,
        default_ttl: Any = 3600,
        early_expiry_factor: float = 0.1,
        cleanup_interval: float | None = 300,
        *,
        beta: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(default_ttl, cleanup_interval, **options)
        self._early = fraction("early_expiry_factor", early_expiry_factor)
        if not beta >= 0:
            raise ValueError(f"beta must not be negative: {beta!r}")

    def _kept_by_read(self, entry: Entry) -> bool:
        ramp = entry.ttl * self._early
        late = self._now() - (entry.deadline - ramp)
        return not (late > 0 and self._random.random() * ramp < late)
