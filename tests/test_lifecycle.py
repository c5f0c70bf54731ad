"""Birth and death of caches: closing, collection of cycles, many caches, memory given back."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from pathlib import Path

import pytest

from lapse.sweeper import Sweeper
from support import KINDS, Dying, Key, check, needs_real_memory, no_thread, wait_until


class Thing:
    """An object that weak references can watch."""


def resident_bytes() -> int:
    """Memory that this process holds, in bytes; skips where that can't be told."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc on this system")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


# --- Closing ---


def test_close_lets_go_of_everything(make):
    """`close` drops keys and values at once."""
    key, value = Thing(), Thing()
    watch = weakref.ref(key), weakref.ref(value)
    cache = make()
    cache.set(key, value)
    del key, value
    cache.close()
    assert [ref() for ref in watch] == [None, None]


def test_with_closes_after_an_exception(make):
    """`with` closes when its body raises, and lets the exception through."""
    cache = make()
    with pytest.raises(OSError, match="body"), cache:
        raise OSError("body")
    with pytest.raises(RuntimeError):
        len(cache)


def test_iterators_and_views_of_a_closed_cache(cache):
    """An iterator or a view that outlives `close` raises RuntimeError or ends."""
    cache.set_many((n, n) for n in range(5000))
    iterator, view = iter(cache.items()), cache.keys()
    next(iterator)
    cache.close()
    with pytest.raises(RuntimeError):
        len(view)
    with pytest.raises(RuntimeError):
        list(view)
    try:
        assert len(list(iterator)) < 5000
    except RuntimeError:
        assert "closed" in repr(cache)


def test_a_cache_that_was_never_initialised(kind):
    """A cache made by `__new__` alone, or whose constructor failed, raises instead of crashing."""
    cache_class = KINDS[kind][0]
    cache = cache_class.__new__(cache_class)
    for call in (
        lambda: cache.get(1), lambda: cache[1], lambda: cache.set(1, 1), lambda: list(cache),
        lambda: len(cache), lambda: cache.gather([1]), cache.expire, cache.copy, cache.stats,
    ):  # fmt: skip
        with pytest.raises((RuntimeError, AttributeError, TypeError)):
            call()
    assert cache_class.__name__ in repr(cache)
    cache.close()
    with pytest.raises(ValueError, match="-1"):
        cache_class(-1)


def test_initialising_twice(cache):
    """A second `__init__` is refused and changes nothing."""
    cache.set("a", 1)
    with pytest.raises(RuntimeError):
        cache.__init__()
    assert cache["a"] == 1


# --- Garbage collection ---


@pytest.mark.parametrize(
    "tie",
    [
        lambda cache, thing: cache.set("a", thing),
        lambda cache, thing: cache.set(thing, "a"),
        lambda cache, thing: cache.set("a", [{"deep": (thing,)}]),
        lambda cache, thing: cache.set((1, thing), None),
    ],
    ids=["value", "key", "nested value", "nested key"],
)
def test_cycles_are_collected(make, tie):
    """A cache that is in a cycle through a value or a key is collected with it."""
    cache, thing = make(), Thing()
    thing.cache = cache
    cache.set_many((n, n) for n in range(3000))
    tie(cache, thing)
    watch = weakref.ref(cache), weakref.ref(thing)
    del cache, thing
    gc.collect()
    assert [ref() for ref in watch] == [None, None]


def test_a_cycle_through_the_clock_is_collected(make):
    """A clock that refers to its cache does not keep it alive."""

    class Clock(Thing):
        def __call__(self) -> float:
            return 5.0

    clock = Clock()
    clock.cache = make(clock=clock)
    clock.cache.set("a", 1)
    watch = weakref.ref(clock.cache)
    del clock
    gc.collect()
    assert watch() is None


def test_the_collector_sees_every_container(cache):
    """Traversal names each key and value that can be in a cycle, wherever it lies, exactly once."""
    values = [[n] for n in range(2500)]
    keys = [Key(n, n * 977) for n in range(2500)]
    for n in range(2500):
        cache.set(n, values[n])
        cache.set(keys[n], "text")
    seen = [id(each) for each in gc.get_referents(cache)]
    assert set(map(id, values)) <= set(seen)
    assert set(map(id, keys)) <= set(seen)
    cache.delete_many(range(0, 2500, 2))
    seen = [id(each) for each in gc.get_referents(cache)]
    assert {id(value) for value in values} & set(seen) == {id(value) for value in values[1::2]}


def test_a_value_that_replaces_an_atomic_one_is_seen(cache):
    """Overwriting a text with a list, and back, keeps the collector's picture right."""
    box = [1]
    for value in ("text", box, "text", box):
        cache.set("a", value)
        assert any(each is box for each in gc.get_referents(cache)) is (value is box)
    cache.delete("a")
    assert not any(each is box for each in gc.get_referents(cache))


def test_live_entries_survive_collection(cache):
    """A collection takes nothing from a cache that is in use."""
    cache.set_many((n, [n]) for n in range(5000))
    cache.set("self", cache)
    gc.collect()
    assert cache.gather(range(5000)) == [[n] for n in range(5000)]
    assert cache["self"] is cache
    cache.clear()


def test_weak_references_and_dying(make):
    """Caches can be referred to weakly, and one that dies drops its entries."""
    deaths = []
    cache = make()
    watch = weakref.ref(cache)
    cache.set("a", Dying(lambda: deaths.append(1)))
    del cache
    assert watch() is None
    assert deaths == [1]


def test_the_sweeper_holds_no_cache(kind):
    """The process's sweeping thread does not keep a cache alive."""
    cache = KINDS[kind][0](cleanup_interval=0.01)
    cache.set("a", Thing())
    watch = weakref.ref(cache)
    del cache
    assert wait_until(lambda: watch() is None)


def test_the_sweeper_sweeps(kind):
    """The sweeping thread removes what has expired from a cache that nobody calls."""
    deaths: list[int] = []
    with KINDS[kind][0](0.01, cleanup_interval=0.01) as cache:
        cache.set_many({n: Dying(lambda: deaths.append(1)) for n in range(100)})
        assert wait_until(lambda: len(deaths) == 100)
        assert cache.stats().expirations == 100


def test_the_sweeper_starts_later(cache, monkeypatch):
    """A sweeping thread that was not to be had for one cache is started for the next."""
    sweeper = Sweeper()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            sweeper.watch(cache, 60)
    sweeper.watch(cache, 60)
    assert sweeper._thread is not None
    assert sweeper._thread.is_alive()
    sweeper.stop()


# --- Memory ---


@needs_real_memory
def test_ten_thousand_caches_created_and_dropped(kind):
    """Caches that come and go take no memory with them."""
    cache_class = KINDS[kind][0]
    for turn in range(10_000):
        if turn == 1000:
            before = resident_bytes()
        cache = cache_class(cleanup_interval=300 if turn % 2 else None)
        cache.set(turn, "value")
    del cache
    gc.collect()
    assert resident_bytes() - before < 16 * 2**20


@needs_real_memory
def test_a_thousand_caches_at_once(make):
    """A small cache is small: a thousand of them, one entry each, stay below 64 KiB a cache."""
    before = resident_bytes()
    caches = [make() for _ in range(1000)]
    for n, cache in enumerate(caches):
        cache.set("a", n)
    assert [cache["a"] for cache in caches] == list(range(1000))
    assert resident_bytes() - before < 1000 * 64 * 2**10
    assert all(sys.getsizeof(cache) < 64 * 2**10 for cache in caches)


def test_sizeof_follows_the_entries(cache):
    """`sys.getsizeof` tells the native memory: at least a word or two an entry, not ten."""
    empty = sys.getsizeof(cache)
    cache.set_many((n, None) for n in range(50_000))
    full = sys.getsizeof(cache)
    assert 50_000 * 24 <= full - empty <= 50_000 * 160


@pytest.mark.parametrize("removal", ["expire", "clear", "delete_many"])
def test_memory_is_given_back(cache, clock, removal):
    """A sweep after a mass removal gives back most of the memory, and the cache works on."""
    cache.set_many((n, None) for n in range(200_000))
    cache.set("stays", 1, ttl=100)
    full = sys.getsizeof(cache)
    clock.advance(10 if removal == "expire" else 0)
    getattr(cache, removal)(*([range(200_000)] if removal == "delete_many" else []))
    cache.expire()
    assert sys.getsizeof(cache) < full / 3
    assert len(cache) == (removal != "clear")
    check(cache)
    cache.set_many((n, n) for n in range(20_000))
    assert cache.gather(range(20_000)) == list(range(20_000))
    check(cache)
