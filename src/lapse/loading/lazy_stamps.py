"""Stamps: of each key, up to which mark it is known not to be marked; and the cache by that light.

    key ──► number            no mark up to it covers what the cache holds, now or later
    key ──► (number, value)   the same, as far as the cache holds this very value

They stand beside the cache, which knows nothing of marks:

    1. What is stored after a mark was made is not covered by it: it was loaded after it, since the
       mark outdated the loads before, or set() by somebody who knew better. So a stamp stays true,
       whatever is stored.
    2. Whether a key is marked is found out first, and the cache is read then.
    3. What is filled gets the number that was the newest right before. Marks outdate first and get
       their number then: those up to it have outdated the load, or were made before it began.
    4. Between a fill and its stamp a lease is used up, so nobody can join the load any more. That
       he who comes then does not load in vain there is a pair, from the load on: the newest number
       before it, and its value.
    5. A key without a stamp is tested against all marks, in vain perhaps. Lower stamps, and none,
       are always right: so they may be forgotten, and no lock is needed.
"""

from __future__ import annotations

from typing import Any

from lapse.caches import TTLCache
from lapse.loading.lazy_marks import Marks

__all__ = ["ABSENT", "Stamps", "Unmarked"]

MISSING: Any = object()
#: What a load brings of which the source has no value.
ABSENT: Any = object()


class Stamps:
    """The stamps of one cache's keys, at most `most`: the least recently used goes first."""

    __slots__ = ("_cache", "_known")

    def __init__(self, cache: Any, most: int) -> None:
        self._cache = cache
        self._known: TTLCache[Any, Any] = TTLCache(None, None, maxsize=most, policy="lru")

    def of(self, key: Any) -> int:
        """The number that holds for what is in the cache now; 0 if there is none."""
        stamp = self._known.get(key, 0)
        if type(stamp) is not tuple:
            return int(stamp)
        number, value = stamp
        held = self._cache._look_kept(key, MISSING)
        return number if held is value else 0

    def give(self, key: Any, number: int) -> None:
        """No mark up to `number` covers what the cache holds under a key."""
        self._known.set(key, number)

    def give_to(self, key: Any, number: int, value: Any) -> None:
        """No mark up to `number` covers a key if the cache holds this very value."""
        self._known.set(key, (number, value))

    def forget(self, key: Any) -> None:
        self._known.delete(key)

    def clear(self) -> None:
        self._known.clear()

    def __len__(self) -> int:
        return len(self._known)


class Unmarked:
    """The cache as loads see it: what is marked is missing, and what is filled gets its stamp."""

    __slots__ = ("cache", "marks", "stamps")

    def __init__(self, cache: Any, marks: Marks, stamps: Stamps) -> None:
        self.cache, self.marks, self.stamps = cache, marks, stamps

    def is_marked(self, key: Any) -> bool:
        """Is what the cache holds under a key covered by a mark? If not, it is not from now on."""
        newest = self.marks.newest
        stamp = self.stamps.of(key)
        if stamp >= newest:
            return False
        tags = self.cache._kept_tags(key) if self.marks.tagged else ()
        if self.marks.cover(key, tags, stamp):
            return True
        self.stamps.give(key, newest)
        return False

    def loaded(self, key: Any, value: Any, newest: int) -> Any:
        """What a load brings that began when `newest` was the highest number; it is filled next."""
        if value is None:
            return ABSENT
        if self.marks.count:
            self.stamps.give_to(key, newest, value)
        return value

    # --- What a flight asks of a cache ---

    def _look(self, key: Any, default: Any) -> Any:
        marked = self.is_marked(key)
        value = self.cache._look(key, default)
        if not marked:
            return value
        if value is not default:
            self.marks.tally("reloads")
        return default

    def _stale(self, key: Any, default: Any) -> Any:
        return default if self.is_marked(key) else self.cache._stale(key, default)

    def fill(self, lease: Any, value: Any, ttl: Any = None) -> bool:
        if value is ABSENT:
            self._drop_stale(lease.key)
            return False
        newest = self.marks.newest
        stored: bool = self.cache.fill(lease, value, ttl)
        if not stored:
            self.stamps.forget(lease.key)
        elif self.marks.count:
            self.stamps.give(lease.key, newest)
        return stored

    def _drop_stale(self, key: Any) -> None:
        """The source has no value any more: neither is an old one to be served on."""
        old = self.cache._stale(key, ABSENT)
        if old is not ABSENT:
            self.cache._drop(key, old)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)
