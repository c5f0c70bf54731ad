"""Rows of the three caches, of what reads and writes through them, and of batches."""

from __future__ import annotations

from typing import Any

import lapse
from conformance import Database, Recorder, has_defaults, ours, row
from support import wait_until

# --- Time-based ---


def time_based(name: str, **defaults: Any) -> None:
    """The rows that the three caches share."""

    @row(name, f"({', '.join(f'{key}={value}' for key, value in defaults.items())})")
    def constructor() -> None:
        has_defaults(ours(name), **defaults)
        assert ours(name)(*defaults.values()).get("k") is None

    @row(name, "get(key)")
    def get() -> None:
        clock = lapse.ManualClock()
        cache = ours(name)(10, clock=clock)
        cache.set("k", 1)
        assert (cache.get("k"), cache.get("absent")) == (1, None)
        clock.advance(10)
        assert cache.get("k") is None

    @row(name, "set(key, value, ttl=None)")
    def set_() -> None:
        clock = lapse.ManualClock()
        cache = ours(name)(10, clock=clock)
        cache.set("k", 1, ttl=100)
        cache.set("other", 2, 5)
        clock.advance(11)
        assert (cache.get("k"), cache.get("other")) == (1, None)

    @row(name, "start_cleanup_thread()")
    def start_cleanup_thread() -> None:
        cache = ours(name)(0.01, cleanup_interval=0.01)
        cache.start_cleanup_thread()
        cache.set("k", 1)
        assert wait_until(lambda: cache.stats().expirations == 1)

    @row(
        name,
        "delete(key), delete_pattern(pattern), clear(), get_stats(), get_keys_matching_pattern()",
    )
    def what_administrators_use() -> None:
        cache = ours(name)()
        cache.set("b:1", 1)
        assert isinstance(cache.get_stats(), dict)
        cache.clear()
        assert cache.get("b:1") is None


time_based("TTLCache", default_ttl=3600, cleanup_interval=300)
time_based("SlidingTTLCache", default_ttl=3600, cleanup_interval=300)
time_based("ProbabilisticTTLCache", default_ttl=3600, early_expiry_factor=0.1, cleanup_interval=300)


@row("SlidingTTLCache", "get(key) starts the time anew")
def sliding() -> None:
    clock = lapse.ManualClock()
    cache = ours("SlidingTTLCache")(10, clock=clock)
    cache.set("k", 1)
    for _ in range(5):
        clock.advance(6)
        assert cache.get("k") == 1


@row("ProbabilisticTTLCache", "get(key) may end an entry in the last tenth of its time")
def probabilistic() -> None:
    clock = lapse.ManualClock()
    cache = ours("ProbabilisticTTLCache")(100, 0.1, clock=clock, seed=1)
    for n in range(1000):
        cache.set(n, n)
    clock.advance(89)
    assert all(cache.get(n) == n for n in range(1000))
    clock.advance(6)
    assert 300 < sum(cache.get(n) is None for n in range(1000)) < 700


# --- Around a data source ---

LAZY, WRITE, VERSIONS = "LazyInvalidation", "WriteThroughInvalidation", "VersionBasedInvalidation"


@row(LAZY, "(cache, data_source)")
def lazy() -> None:
    has_defaults(ours(LAZY), "cache", "data_source")


@row(LAZY, "get(key): from the cache, else fetched and stored")
def lazy_get() -> None:
    source, cache = Database(), lapse.TTLCache()
    it = ours(LAZY)(cache, source)
    assert (it.get("k"), cache.get("k"), it.get("absent")) == ("fresh", "fresh", None)
    source.held["k"] = "newer"
    assert it.get("k") == "fresh"


@row(LAZY, "mark_for_invalidation(key)")
def mark_for_invalidation() -> None:
    source = Database()
    it = ours(LAZY)(lapse.TTLCache(), source)
    it.get("k")
    source.held["k"] = "newer"
    it.mark_for_invalidation("k")
    assert (it.get("k"), it.get("k")) == ("newer", "newer")


@row(LAZY, "mark_pattern_for_invalidation(pattern)")
def mark_pattern_for_invalidation() -> None:
    source = Database()
    source.held = {"a:1": 1, "b:1": 1}
    it = ours(LAZY)(lapse.TTLCache(), source)
    assert (it.get("a:1"), it.get("b:1")) == (1, 1)
    source.held = {"a:1": 2, "b:1": 2}
    it.mark_pattern_for_invalidation("a:*")
    assert (it.get("a:1"), it.get("b:1")) == (2, 1)


@row(WRITE, "(cache, data_source)")
def write_through() -> None:
    has_defaults(ours(WRITE), "cache", "data_source")


def writes(name: str) -> None:
    """A row for write() or update()."""

    @row(WRITE, f"{name}(key, value) -> bool: the source first, then the cache")
    def is_written() -> None:
        source, cache = Database(), lapse.TTLCache()
        it = ours(WRITE)(cache, source)
        assert getattr(it, name)("k", "v") is True
        assert (source.held["k"], cache.get("k")) == ("v", "v")
        source.works = False
        assert getattr(it, name)("k", "w") is False
        assert cache.get("k") == "v"


writes("write")
writes("update")


@row(WRITE, "delete(key) -> bool: from the source first, then from the cache")
def write_through_delete() -> None:
    source, cache = Database(), lapse.TTLCache()
    it = ours(WRITE)(cache, source)
    it.write("k", "v")
    assert it.delete("k") is True
    assert (source.held, cache.get("k")) == ({}, None)
    source.works = False
    assert it.delete("k") is False


@row(VERSIONS, "(cache, data_source)")
def versions() -> None:
    has_defaults(ours(VERSIONS), "cache", "data_source")


@row(VERSIONS, "get(key): fetched anew when the source has a newer version")
def versions_get() -> None:
    source = Database()
    it = ours(VERSIONS)(lapse.TTLCache(), source)
    assert it.get("k") == "fresh"
    source.held["k"] = "newer"
    assert it.get("k") == "fresh"
    source.versions["k"] = 2
    assert (it.get("k"), it.get("absent")) == ("newer", None)


@row(VERSIONS, "invalidate_by_version(key, new_version)")
def invalidate_by_version() -> None:
    source, cache = Database(), lapse.TTLCache()
    it = ours(VERSIONS)(cache, source)
    it.get("k")
    it.invalidate_by_version("k", 1)
    assert cache.get("k") is not None
    it.invalidate_by_version("k", 2)
    source.versions["k"] = 2
    source.held["k"] = "newer"
    assert it.get("k") == "newer"


# --- Batches ---

OPTIMIZED = "OptimizedInvalidation"


@row(OPTIMIZED, "(cache, batch_size=100, batch_timeout=1.0)")
def optimized() -> None:
    has_defaults(ours(OPTIMIZED), "cache", batch_size=100, batch_timeout=1.0)
    with ours(OPTIMIZED)(Recorder(), 2, 60.0) as it:
        it.invalidate_key("a")
        it.invalidate_key("b")
        assert wait_until(lambda: it.cache.asked == {"a", "b"})


@row(OPTIMIZED, "invalidate_key(key), when batch_timeout is over")
def optimized_key() -> None:
    with ours(OPTIMIZED)(Recorder(), batch_timeout=0.01) as it:
        it.invalidate_key("a")
        assert wait_until(lambda: it.cache.asked == {"a"})


@row(OPTIMIZED, "invalidate_pattern(pattern)")
def optimized_pattern() -> None:
    with ours(OPTIMIZED)(Recorder(), batch_timeout=0.01) as it:
        it.invalidate_pattern("a:*")
        assert wait_until(lambda: it.cache.asked == {"pattern a:*"})


@row(OPTIMIZED, "start_batch_processing()")
def start_batch_processing() -> None:
    with ours(OPTIMIZED)(Recorder(), batch_timeout=0.01, start=False) as it:
        it.invalidate_key("a")
        it.start_batch_processing()
        assert wait_until(lambda: it.cache.asked == {"a"})
