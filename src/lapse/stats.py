"""The figures of one cache."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CacheStats"]


class CacheStats(NamedTuple):
    """Counters of one cache since it was made."""

    #: Reads (get, c[k], gather, get_many) that found a live entry.
    hits: int
    #: Reads that did not.
    misses: int
    #: Entries stored, new or over an old one.
    sets: int
    #: Live entries removed by delete, del, pop or popitem.
    deletes: int
    #: Expired entries removed, by a read, a write or a sweep.
    expirations: int
    #: Entries that a probabilistic read ended before their deadline.
    early_expirations: int
    #: Values that get_or_load() had one caller reload ahead of time; those that it found past their
    #: deadline, within their grace.
    early_refreshes: int
    stale_hits: int
    #: Live entries now.
    size: int
    #: Native segments now.
    segments: int
    #: Segments split, merged; complete sweeps made.
    splits: int
    merges: int
    sweeps: int
    #: Values that another one replaced.
    replaced: int
    #: Live entries removed by a pattern, by a tag, by clear or close.
    pattern_deletes: int
    tag_deletes: int
    cleared: int
    #: Live entries that made way for others in a bounded cache.
    evictions: int
    #: Values that were not stored because they are heavier than all entries may be together.
    refused: int
    #: What the entries of a bounded cache weigh together: their number, unless it has a weigher.
    weight: int
    #: Loads that were outdated when they were to be stored.
    fenced_stores: int
    #: Bytes of native memory, and those of them that know tags, prefixes and leases.
    bytes: int
    tracking_bytes: int
    #: Exceptions that the listener raised, and events that there was no memory to tell.
    listener_errors: int

    @property
    def hit_ratio(self) -> float:
        """Hits over reads; 0.0 before the first read."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else 0.0
