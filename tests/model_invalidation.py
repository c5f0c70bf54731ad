"""The part of the oracle that removes by pattern and by tag, and that knows the leases.

A lease is outdated by what `_outdate` is told of, and by each deleted tag that it names when it is
filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import redis_glob

matches = lru_cache(1 << 18)(redis_glob.matches)


def tag_set(tags: Iterable[str]) -> frozenset[str]:
    """`tags` as a set; a lone str is no iterable of tags."""
    names = [tags] if isinstance(tags, (str, bytes)) else list(tags)
    if isinstance(tags, (str, bytes)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"tags are an iterable of str, not {tags!r}")
    return frozenset(names)


class ModelLease:
    """The right to store one load of a key."""

    def __init__(self, cache: Any, key: Any, tags: Iterable[str]) -> None:
        self.cache, self.key, self.tags = cache, key, tag_set(tags)
        self.used = False
        self.deleted: set[str] = set()  # tags that were deleted since it was taken
        hash(key)

    def outdated_for(self, tags: Iterable[str]) -> bool:
        """Whether it can't be filled with these tags."""
        return self.used or not self.deleted.isdisjoint(tags)

    @property
    def outdated(self) -> bool:
        return self.outdated_for(self.tags)


class Selecting:
    """Mixed into a model that has `_table()`, `_live()`, `_find()`, `_entries` and `set()`."""

    _entries: Any
    _find: Any
    _live: Any
    _table: Any
    set: Any

    @property
    def _out(self) -> list[ModelLease]:
        """The leases that were taken and are neither filled nor refused."""
        return self.__dict__.setdefault("_leases", [])

    def _outdate(self, covers: Callable[[Any], bool]) -> None:
        """A change: leases of keys that it covers can't be filled any more."""
        for lease in self._out:
            lease.used = lease.used or covers(lease.key)

    def _remove(self, chosen: Callable[[Any, Any], bool]) -> int:
        """Removes what `chosen(key, entry)` holds for; how many entries were live."""
        removed = sum(chosen(key, entry) for key, entry in self._live())
        self._entries = {k: e for k, e in self._table().items() if not chosen(k, e)}
        return removed

    def delete_pattern(self, pattern: Any) -> int:
        self._outdate(lambda key: matches(pattern, key))
        return self._remove(lambda key, _: matches(pattern, key))

    def get_keys_matching_pattern(self, pattern: Any) -> list[Any]:
        return [key for key, _ in self._live() if matches(pattern, key)]

    def invalidate_table(self, table: Any) -> int:
        prefix = table + (b":" if isinstance(table, bytes) else ":")

        def covers(key: Any, _: Any = None) -> bool:
            return isinstance(key, type(prefix)) and key.startswith(prefix)

        self._outdate(covers)
        return self._remove(covers)

    def delete_tag(self, tag: str) -> int:
        for lease in self._out:
            lease.deleted.add(tag)
        return self._remove(lambda _, entry: tag in entry.tags)

    def tags(self, key: Any) -> frozenset[str]:
        entry = self._find(key)
        return frozenset() if entry is None else entry.tags

    def lease(self, key: Any, *, tags: Iterable[str] = ()) -> ModelLease:
        self._table()
        lease = ModelLease(self, key, tags)
        self._out.append(lease)
        return lease

    def fill(
        self, lease: ModelLease, value: Any, ttl: Any = None, *, tags: Iterable[str] = ()
    ) -> bool:
        labels = lease.tags | tag_set(tags)
        if lease.cache is not self:
            raise ValueError("another cache's lease")
        good = not lease.outdated_for(labels)
        if lease in self._out:
            self._out.remove(lease)
        lease.used = True
        if good:
            others, self.__dict__["_leases"] = self._out, []  # a fill outdates no other lease
            self.set(lease.key, value, ttl, tags=labels)
            self.__dict__["_leases"] = others
        return good
