"""Lazy invalidation: what has stopped being true is marked, and loaded anew when it is asked for.

    mark ──► 1. the loads under way that it covers are outdated (csrc/fence.h)
             2. the mark gets its number, and may be read            lazy_marks.py
    get  ──► is there a mark at all? ── no ──────────────────────────────────► the cache
             is the key's stamp as high as the newest mark? ── yes ──────────► the cache
             a test against the marks above it: covered?             lazy_stamps.py
                  no: its stamp rises ──► the cache      yes: a shared load, and a new stamp
    walker ──► the entries that nobody asks for, oldest mark first   lazy_walker.py

Nothing is enumerated when a mark is made. There is at most one load of a key under way: who leads
it asks once more whether the entry is marked, so it is not loaded twice for one mark.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from lapse._core import Pattern, table_pattern
from lapse.caches import ExpiringCache
from lapse.flight import Flights
from lapse.loading.backed import Backed, answer, awaited
from lapse.loading.lazy_marks import ALL, PATTERN, TAG, Marks
from lapse.loading.lazy_stamps import ABSENT, Stamps, Unmarked
from lapse.loading.lazy_walker import Walk, Walker
from lapse.loading.sources import FetchingSource

__all__ = ["LazyInvalidation", "LazyStats"]

Ttl = float | timedelta | None

MISSING: Any = object()
flights = Flights()


class LazyStats(NamedTuple):
    """What came of the calls since the object was made."""

    #: Values fetched from the source.
    loads: int
    #: Those of keys whose entry was marked.
    reloads: int
    #: Marks made, and those of them that were there already.
    marked: int
    repeated: int
    #: Marks that gave way to a coarser one.
    merged: int
    #: Marks that went, because nothing was left that they cover.
    retired: int
    #: Keys that were compared with marks.
    tested: int
    #: Marked entries that were removed because nobody had asked for them.
    reclaimed: int
    #: Live marks, by kind.
    key_marks: int
    pattern_marks: int
    tag_marks: int
    all_marks: int
    #: Keys that have a stamp.
    stamps: int
    #: Steps of the walker that have failed.
    errors: int

    @property
    def marks(self) -> int:
        """Live marks."""
        return self.key_marks + self.pattern_marks + self.tag_marks + self.all_marks


class LazyInvalidation(Backed):
    """Reads through a cache in which invalid entries are marked, not removed.

    Args:
        cache: a cache of lapse. Its own methods know nothing of marks: they read and list marked
            entries until those have been loaded anew or removed.
        data_source: any object with `fetch(key)`, plain or asynchronous; None means that there is
            no value.
        max_marks: marks that are remembered one by one; more of them are merged into coarser ones,
            so that more is loaded anew.
        max_stamps: keys that are remembered as tested or loaded; what was not used for longest is
            forgotten first, and tested again.
        pause: seconds that the walker sleeps between two steps; real time.
        start: start the walker at once; False = when start_walker() is called.
        name: shown in statistics and in the thread's name.

    Raises:
        ValueError: if max_marks, max_stamps or pause is not positive.

    The walker is a thread that removes the marked entries that nobody asks for, and then the marks.
    It sleeps while there are none. A forked child has one of its own.

    Every method that may call the source has an asynchronous form, aget(); backed.py says which
    source fits which. What the source raises reaches the caller; then nothing is stored, and what
    was marked stays so. Methods raise RuntimeError once the object is closed.

    Thread-safe. Nothing is locked while the source works; loads of one key are shared. After a mark
    has been made, no call of get() that begins later returns what was loaded before it, and no load
    that had begun is stored. An entry that somebody else has stored since, past this object, is
    loaded anew in vain, once.
    """

    __slots__ = ("_marks", "_stamps", "_unmarked", "_walk", "_walker", "name")

    def __init__(
        self,
        cache: ExpiringCache[Any, Any],
        data_source: FetchingSource,
        *,
        max_marks: int = 1024,
        max_stamps: int = 65_536,
        pause: float = 0.01,
        start: bool = True,
        name: str | None = None,
    ) -> None:
        options = {"max_marks": max_marks, "max_stamps": max_stamps, "pause": pause}
        for option, value in options.items():
            if not value > 0:
                raise ValueError(f"{option} must be positive, not {value!r}")
        self.name = name
        self._marks = Marks(max_marks)
        self._stamps = Stamps(cache, max_stamps)
        self._unmarked: Any = Unmarked(cache, self._marks, self._stamps)
        self._walk = functools.partial(Walk, cache, self._marks, self._stamps)
        thread = "lapse-lazy" + (f"-{name}" if name else "")
        self._walker = Walker(self._walk, min(pause, threading.TIMEOUT_MAX), thread)
        super().__init__(cache, data_source)
        if start:
            self.start_walker()

    # --- Reading ---

    def get(
        self, key: Any, default: Any = None, ttl: Ttl = None, *, tags: Iterable[str] = ()
    ) -> Any:
        """The value under `key`, loaded if it is missing or marked; `default` if there is none.

        What has to be fetched is stored for `ttl` seconds and bears `tags`; if none are named,
        those of the marked entry. A hit costs a read of the cache and one comparison and, while
        there are marks, a read of the key's stamp.
        """
        if self._closed:
            self._check_open()
        if not self._marks.count or not self._unmarked.is_marked(key):  # asked before it is read
            value = self.cache.get(key, MISSING)
            if value is not MISSING:
                return value
        tags = self._tags_of(key) if tags == () else tags
        value = flights.load(self._unmarked, key, self._load, ttl, tags, None)
        return default if value is ABSENT else value

    async def aget(
        self, key: Any, default: Any = None, ttl: Ttl = None, *, tags: Iterable[str] = ()
    ) -> Any:
        """get() for coroutines."""
        if self._closed:
            self._check_open()
        if not self._marks.count or not self._unmarked.is_marked(key):
            value = self.cache.get(key, MISSING)
            if value is not MISSING:
                return value
        tags = self._tags_of(key) if tags == () else tags
        value = await flights.aload(self._unmarked, key, self._aload, ttl, tags, None)
        return default if value is ABSENT else value

    def _tags_of(self, key: Any) -> Iterable[str]:
        return self.cache._kept_tags(key) or ()

    def _load(self, key: Any) -> Any:
        newest = self._marks.newest
        return self._loaded(key, answer(self.data_source.fetch(key)), newest)

    async def _aload(self, key: Any) -> Any:
        newest = self._marks.newest
        return self._loaded(key, await awaited(self.data_source.fetch(key)), newest)

    def _loaded(self, key: Any, value: Any, newest: int) -> Any:
        self._count("loads")
        return self._unmarked.loaded(key, value, newest)

    # --- Marking: each outdates loads first, and makes its mark then ---

    def mark_for_invalidation(self, key: Any) -> None:
        """Have a key loaded anew when it is asked for next. O(1)."""
        self._check_open()
        self.cache._outdate_key(key)
        self._marks.add_key(key)
        self._walker.wake()

    def mark_pattern_for_invalidation(self, pattern: str | bytes) -> None:
        """The same for every key that a glob pattern matches, see TTLCache.delete_pattern().

        O(1) and, while loads are under way, a look at each of them. TypeError or ValueError for a
        pattern that is none.
        """
        self._check_open()
        compiled = Pattern(pattern)
        self.cache._outdate_pattern(compiled)
        self._marks.add(PATTERN, compiled.source, compiled)
        self._walker.wake()

    def mark_table_for_invalidation(self, table: str | bytes) -> None:
        """The same for every key that begins with `table` and a colon."""
        self.mark_pattern_for_invalidation(table_pattern(table))

    def mark_tag_for_invalidation(self, tag: str) -> None:
        """The same for every entry that bears `tag`. O(1)."""
        self._check_open()
        name = self.cache._outdate_tag(tag)
        self._marks.add(TAG, name, name)
        self._walker.wake()

    def mark_all_for_invalidation(self) -> None:
        """The same for everything. O(1) but for the marks that it takes the place of."""
        self._check_open()
        self.cache._outdate_all()
        self._marks.add(ALL)
        self._walker.wake()

    # --- Reclaiming ---

    def start_walker(self) -> None:
        """Start the walker, unless it runs. RuntimeError if closed."""
        self._check_open()
        self._walker.start()

    def reclaim(self) -> int:
        """Remove now what has been marked before the call; how many entries went. Bounded steps."""
        self._check_open()
        return self._walk(last=self._marks.newest).finish()

    def close(self) -> None:
        """Refuse what comes from now on, end the walker, and remove what is marked. Idempotent."""
        if self._closed:
            return
        super().close()
        self._walker.stop()
        self._walk(last=self._marks.newest).finish()
        self._stamps.clear()

    def _after_fork(self) -> None:
        """In a forked child, where no other thread runs."""
        super()._after_fork()
        self._marks.renew()
        self._walker.restart_in_child()

    # --- Figures ---

    def stats(self) -> LazyStats:
        """What came of the calls so far. O(1)."""
        with self._lock:
            counts = dict.fromkeys(LazyStats._fields, 0) | self._counts
        counts |= self._marks.figures()
        return LazyStats(**counts | {"stamps": len(self._stamps), "errors": self._walker.errors})

    def get_stats(self) -> dict[str, Any]:
        """The same as a JSON-ready dict, with the number of live marks, the name and the class."""
        stats = self.stats()
        more = {"marks": stats.marks, "name": self.name, "class": type(self).__name__}
        return stats._asdict() | more
