"""Versions: an entry is served only while its version is the newest known.

    cache    key ──► value                     plain values, as everybody else reads and drops them
                       ▲ is
    known    key ──► version, value            the newest version known, and the value that has it,
                                               or GONE: no value of that version was loaded yet

The two are not changed together; what keeps the pair true is identity:

    1. A value of the cache has the version that `known` says only if it is the very object that
       stands there. Whatever else is in the cache, put there by a set() say, has no version, and is
       loaded anew.
    2. The version in `known` only rises, as long as the key stays in it. Its change is one fill of
       a lease that was taken before the old version was read, so none is lost between two threads.
    3. A version is asked for before the value is fetched: a value may be newer than its version
       says, and is then loaded once in vain, but never older.
    4. A load that brings less than `known` has outdates itself, so it is not stored.
    5. `known` is bounded, and lives about as long as the cache's entries. What it forgets is loaded
       anew. It keeps a value that the cache has dropped until it forgets it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from lapse.caches import ExpiringCache, SlidingTTLCache
from lapse.loading.backed import Backed, answer, awaited
from lapse.loading.sources import VersionedSource

__all__ = ["VersionBasedInvalidation", "VersionStats"]

Ttl = float | timedelta | None

MISSING: Any = object()
GONE: Any = object()


class _Known(NamedTuple):
    """The newest version known of a key, and its value or GONE."""

    version: Any
    value: Any


class _VanishedError(KeyError):
    """The source has no such key."""


class VersionStats(NamedTuple):
    """What came of the calls since the object was made."""

    #: Calls of get() that the cache answered.
    hits: int
    #: Values fetched from the source.
    loads: int
    #: Those that were older than what was known, and not stored.
    behind: int
    #: Keys that the source turned out not to have any more.
    vanished: int
    #: Versions that invalidate_by_version() brought as news.
    raised: int
    #: Keys whose version is known now.
    known: int


class VersionBasedInvalidation(Backed):
    """Reads through a cache whose entries have versions.

    Args:
        cache: a cache of lapse. It holds plain values, which its own methods read as ever.
        data_source: any object with `fetch(key)` and `get_version(key)`, plain or asynchronous.
            Versions are any values that `<` orders, and rise as the value changes; None means that
            there is no such key.
        trust_versions: False = get() asks the source for the version each time, and fetches the
            value only if that has risen. True = it asks nothing for an entry whose version is the
            highest that this process has seen, by a load or by invalidate_by_version().
        max_versions: keys whose versions are remembered; what was not used for longest is forgotten
            first.

    Raises:
        ValueError: if max_versions is not positive.

    Every method that may call the source has an asynchronous form, aget(); backed.py says which
    source fits which. What the source raises reaches the caller, and nothing is stored. Methods
    raise RuntimeError once the object is closed, and what `<` raises for versions that it cannot
    compare.

    Thread-safe. Nothing is locked while the source works; loads of one key are shared. What a
    source brings that is behind what invalidate_by_version() has said, a replica say, is returned
    but not cached.
    """

    __slots__ = ("_known", "trust_versions")

    def __init__(
        self,
        cache: ExpiringCache[Any, Any],
        data_source: VersionedSource,
        *,
        trust_versions: bool = False,
        max_versions: int = 65_536,
    ) -> None:
        if not max_versions > 0:
            raise ValueError(f"max_versions must be positive, not {max_versions!r}")
        super().__init__(cache, data_source)
        self.trust_versions = trust_versions
        self._known: SlidingTTLCache[Any, _Known] = SlidingTTLCache(
            cache.default_ttl, maxsize=max_versions, policy="lru", clock=cache.clock
        )

    def get(
        self, key: Any, default: Any = None, ttl: Ttl = None, *, tags: Iterable[str] = ()
    ) -> Any:
        """The value of the newest version; `default` if the source has no such key.

        What has to be fetched is stored for `ttl` seconds and bears `tags`. A hit costs two reads
        of caches and, unless versions are trusted, one get_version().
        """
        self._check_open()
        try:
            needed = None if self.trust_versions else self._version(key)
            value = self._cached(key, needed)
            if value is MISSING:
                load = functools.partial(self._load, ttl=ttl)
                value = self.cache.get_or_load(key, load, ttl, tags=tags)
                if self._joined_too_old(key, value, needed):
                    value = self.cache.get_or_load(key, load, ttl, tags=tags)
        except _VanishedError:
            self._vanish(key)
            return default
        return value

    async def aget(
        self, key: Any, default: Any = None, ttl: Ttl = None, *, tags: Iterable[str] = ()
    ) -> Any:
        """get() for coroutines."""
        self._check_open()
        try:
            needed = None if self.trust_versions else await self._aversion(key)
            value = self._cached(key, needed)
            if value is MISSING:
                load = functools.partial(self._aload, ttl=ttl)
                value = await self.cache.aget_or_load(key, load, ttl, tags=tags)
                if self._joined_too_old(key, value, needed):
                    value = await self.cache.aget_or_load(key, load, ttl, tags=tags)
        except _VanishedError:
            self._vanish(key)
            return default
        return value

    def invalidate_by_version(self, key: Any, new_version: Any) -> bool:
        """Take notice that the source has `new_version` of a key; None: that it has none any more.

        Whether that was news: then the entry of the key is gone, and no load that began before is
        stored. A version that is known already, or is older, changes nothing. Costs no call of the
        source.
        """
        self._check_open()
        if new_version is None:
            return self._vanish(key)
        news = self._learn(key, new_version, GONE)
        if news:
            self.cache.delete(key)
            self._count("raised")
        return news

    def stats(self) -> VersionStats:
        """What came of the calls so far."""
        known = len(self._known)
        with self._lock:
            counts = dict.fromkeys(VersionStats._fields, 0) | self._counts | {"known": known}
        return VersionStats(**counts)

    # --- The source ---

    def _version(self, key: Any) -> Any:
        return _present(key, answer(self.data_source.get_version(key)))

    async def _aversion(self, key: Any) -> Any:
        return _present(key, await awaited(self.data_source.get_version(key)))

    def _load(self, key: Any, ttl: Ttl) -> Any:
        """Fetch a value, and note its version."""
        version = self._version(key)
        value = answer(self.data_source.fetch(key))
        if value is None:
            self._version(key)  # is it None, or has it vanished meanwhile?
        return self._loaded(key, version, value, ttl)

    async def _aload(self, key: Any, ttl: Ttl) -> Any:
        version = await self._aversion(key)
        value = await awaited(self.data_source.fetch(key))
        if value is None:
            await self._aversion(key)
        return self._loaded(key, version, value, ttl)

    # --- What is known ---

    def _cached(self, key: Any, needed: Any) -> Any:
        """The cached value, if its version is known and not below `needed` (None: any)."""
        value = self.cache.get(key, MISSING)
        if value is MISSING:
            return MISSING
        if self._is_newest(key, value, needed):
            self._count("hits")
            return value
        self._discard(key, value)
        return MISSING

    def _is_newest(self, key: Any, value: Any, needed: Any) -> bool:
        known = self._known.get(key)
        if known is None or known.value is not value:
            return False
        return needed is None or not known.version < needed

    def _joined_too_old(self, key: Any, value: Any, needed: Any) -> bool:
        """Did a shared load bring less than `needed`, because it had begun before that was asked?

        The next load has not: whoever joins one joins the youngest. Where versions are trusted,
        what is known outdates the loads that began before.
        """
        if needed is None or self._is_newest(key, value, needed):
            return False
        self._discard(key, value)
        return True

    def _loaded(self, key: Any, version: Any, value: Any, ttl: Ttl) -> Any:
        self._count("loads")
        if not self._learn(key, version, value, ttl):
            self.cache.delete(key)  # outdates this very load
            self._count("behind")
        return value

    def _learn(self, key: Any, version: Any, value: Any, ttl: Ttl = None) -> bool:
        """Note a version and its value, or GONE; False if that is no news."""
        while True:
            lease = self._known.lease(key)
            known = self._known.get(key)
            if known is not None and not _is_news(version, value, known):
                return False
            if self._known.fill(lease, _Known(version, value), ttl, change=True):
                return True

    def _discard(self, key: Any, value: Any) -> None:
        """Drop an entry that is out of date, unless somebody has put another in its place."""
        if self.cache._look(key, MISSING) is value:
            self.cache.delete(key)

    def _vanish(self, key: Any) -> bool:
        """Forget a key that the source has no more; was there anything to forget?"""
        self._count("vanished")
        known = self._known.delete(key)
        return self.cache.delete(key) or known

    # --- The end ---

    def close(self) -> None:
        """Refuse what comes from now on, and forget the versions. Idempotent."""
        super().close()
        self._known.close()


def _is_news(version: Any, value: Any, known: _Known) -> bool:
    """A higher version is; so is a value of the version that is known."""
    if known.version < version:
        return True
    return value is not GONE and not version < known.version


def _present(key: Any, version: Any) -> Any:
    """A version that the source gave; _VanishedError if that is None."""
    if version is None:
        raise _VanishedError(key)
    return version
