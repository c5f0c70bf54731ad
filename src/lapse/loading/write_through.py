"""Write-through: what is written goes to the data source first, and to the cache if that took it.

    write(key, value)      lease of the key ──► data_source.write() ──► fill the lease, as a change
                                                     │  False               │ refused
                                                     ▼                      ▼
                                                 nothing changes     the entry is deleted

Writers of one key may reach the source in one order and the cache in another. None of them knows
the source's order, so whoever finds that another change of the key came between leaves the cache
empty:

    1. The lease is older than the source's write. It is outdated by every change that completes
       while the write runs, another writer's included: a fill that is a change outdates all other
       leases of the key.
    2. So of writers that overlap at most one fills its lease; each of the others deletes the entry
       after its own write, the one that was filled before it included. What stays in the cache was
       written by one that no other overlapped, or is nothing.
    3. A load that read the source before the write has a lease that the fill outdates: what it
       brings is not stored.
    4. A source that raises may or may not have changed: the entry is deleted.

Nothing is locked while the source works.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from lapse.caches import ExpiringCache
from lapse.loading.backed import Backed, answer, awaited
from lapse.loading.sources import WritableSource

if TYPE_CHECKING:
    from lapse._core import Lease

__all__ = ["WriteThroughInvalidation", "WriteThroughStats"]

Ttl = float | timedelta | None


class WriteThroughStats(NamedTuple):
    """What became of the writes, updates and deletions since the object was made."""

    #: Taken by the source, and now in the cache; deletions too.
    applied: int
    #: Taken by the source; another change came between, so the entry was deleted.
    overtaken: int
    #: Not taken by the source, which answered False.
    refused: int
    #: The source raised, and the entry was deleted.
    failed: int


class WriteThroughInvalidation(Backed):
    """Writes to a data source and keeps a cache in front of it true.

    Args:
        cache: a cache of lapse.
        data_source: any object with `write(key, value)`, `update(key, value)` and `delete(key)`,
            plain or asynchronous, which answer whether they did it. True and other true answers
            mean that the source has changed, false ones that it has not: then the cache stays as
            it is.

    Each method has an asynchronous form: awrite(), aupdate(), adelete(), awrite_many(),
    adelete_many(); backed.py says which source fits which. What the source raises, a cancellation
    included, reaches the caller after the entry was deleted. A method raises RuntimeError once the
    object is closed, and what cache.set() raises for a wrong key, ttl or tag.

    Thread-safe. Writers of one key, here or in other such objects on the same cache, leave it with
    the source's last write or without an entry, never with an older one. The cost is that of the
    source, a lease and a change of the cache.
    """

    __slots__ = ()

    def __init__(self, cache: ExpiringCache[Any, Any], data_source: WritableSource) -> None:
        super().__init__(cache, data_source)

    # --- One key ---

    def write(self, key: Any, value: Any, ttl: Ttl = None, *, tags: Iterable[str] = ()) -> bool:
        """Write to the source and, if it takes it, the cache for `ttl` seconds; whether it did."""
        with self._change(key, ttl, tags) as lease:
            taken = answer(self.data_source.write(key, value))
            return self._keep(lease, value, ttl, taken)

    def update(self, key: Any, value: Any, ttl: Ttl = None, *, tags: Iterable[str] = ()) -> bool:
        """The same through the source's update()."""
        with self._change(key, ttl, tags) as lease:
            taken = answer(self.data_source.update(key, value))
            return self._keep(lease, value, ttl, taken)

    def delete(self, key: Any) -> bool:
        """Delete from the source and, if it does, the cache; whether it did."""
        with self._change(key):
            taken = answer(self.data_source.delete(key))
            return self._drop(key, taken)

    async def awrite(
        self, key: Any, value: Any, ttl: Ttl = None, *, tags: Iterable[str] = ()
    ) -> bool:
        """write() for coroutines."""
        with self._change(key, ttl, tags) as lease:
            taken = await awaited(self.data_source.write(key, value))
            return self._keep(lease, value, ttl, taken)

    async def aupdate(
        self, key: Any, value: Any, ttl: Ttl = None, *, tags: Iterable[str] = ()
    ) -> bool:
        """update() for coroutines."""
        with self._change(key, ttl, tags) as lease:
            taken = await awaited(self.data_source.update(key, value))
            return self._keep(lease, value, ttl, taken)

    async def adelete(self, key: Any) -> bool:
        """delete() for coroutines."""
        with self._change(key):
            taken = await awaited(self.data_source.delete(key))
            return self._drop(key, taken)

    # --- Many keys, one after another ---

    def write_many(
        self, items: Mapping[Any, Any], ttl: Ttl = None, *, tags: Iterable[str] = ()
    ) -> dict[Any, bool]:
        """write() every pair, in order; whether the source took it, by key.

        What the source raises ends it there: the pairs before are written, those after are not.
        """
        tags = _kept(tags)
        return {key: self.write(key, value, ttl, tags=tags) for key, value in items.items()}

    def delete_many(self, keys: Iterable[Any]) -> dict[Any, bool]:
        """delete() every key, in order; whether the source did, by key. What it raises ends it."""
        return {key: self.delete(key) for key in dict.fromkeys(keys)}

    async def awrite_many(
        self, items: Mapping[Any, Any], ttl: Ttl = None, *, tags: Iterable[str] = ()
    ) -> dict[Any, bool]:
        """write_many() for coroutines."""
        tags = _kept(tags)
        return {key: await self.awrite(key, value, ttl, tags=tags) for key, value in items.items()}

    async def adelete_many(self, keys: Iterable[Any]) -> dict[Any, bool]:
        """delete_many() for coroutines."""
        return {key: await self.adelete(key) for key in dict.fromkeys(keys)}

    # --- Figures ---

    def stats(self) -> WriteThroughStats:
        """What became of the calls so far."""
        with self._lock:
            return WriteThroughStats(*(self._counts[field] for field in WriteThroughStats._fields))

    # --- Inside ---

    @contextmanager
    def _change(self, key: Any, ttl: Ttl = None, tags: Iterable[str] = ()) -> Iterator[Lease]:
        """Around a change of the source: if that raises, nobody knows what the source holds."""
        self._check_open()
        self.cache.touch_many((), ttl)  # touches nothing, but refuses a wrong ttl in time
        lease = self.cache.lease(key, tags=tags)
        try:
            yield lease
        except BaseException:
            self.cache.delete(key)
            self._count("failed")
            raise

    def _keep(self, lease: Lease, value: Any, ttl: Ttl, taken: Any) -> bool:
        """Store what the source took, unless another change came between."""
        if not taken:
            self._count("refused")
            return False
        stored = False
        try:
            stored = self.cache.fill(lease, value, ttl, change=True)
        finally:
            if not stored:  # because it is overtaken, or there was no memory for it
                self.cache.delete(lease.key)
        self._count("applied" if stored else "overtaken")
        return True

    def _drop(self, key: Any, taken: Any) -> bool:
        """Remove what the source has deleted."""
        if taken:
            self.cache.delete(key)
        self._count("applied" if taken else "refused")
        return bool(taken)


def _kept(tags: Iterable[str]) -> Iterable[str]:
    """Tags that can be gone through many times; a lone text stays one, for the cache to refuse."""
    return tags if isinstance(tags, (str, bytes)) else tuple(tags)
