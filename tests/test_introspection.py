"""What a cache tells about itself: counters, statistics as JSON, snapshots, names."""

from __future__ import annotations

import inspect
import json
import math

import pytest

import lapse
from support import KINDS


def test_stats_are_a_named_tuple(cache):
    """`stats()` is a CacheStats, whose first seven fields every release has."""
    cache.set("a", 1), cache.get("a"), cache.get("b")
    stats = cache.stats()
    assert isinstance(stats, lapse.CacheStats)
    assert isinstance(stats, tuple)
    names = "hits misses sets deletes expirations early_expirations size"
    assert set(names.split()) <= set(stats._fields)
    assert (stats.hits, stats.misses, stats.sets, stats.size) == (1, 1, 1, 1)


def test_get_stats_is_ready_for_json(make):
    """`get_stats()` goes through JSON unchanged and names cache and class."""
    cache = make(name="users")
    cache.set("a", 1)
    assert cache.get_stats()["hit_ratio"] == 0
    cache.get("a"), cache.get("a"), cache.get("b"), cache.get("a")
    figures = cache.get_stats()
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["name"], figures["class"]) == ("users", type(cache).__name__)
    assert (figures["hits"], figures["misses"], figures["hit_ratio"]) == (3, 1, 0.75)
    assert set(cache.stats()._asdict()) <= set(figures)


def test_every_way_out_is_counted_once(make, clock):
    """Stores equal what is left plus what was deleted, replaced, expired or dropped early."""
    cache = make()
    cache.set_many({n: n for n in range(100)})
    cache.delete(0), cache.pop(1), cache.popitem(), cache.delete_many([2, 3, 2, 999])
    cache.pop(1, None), cache.delete(0)
    clock.advance(10)
    for n in range(4, 20):
        cache.get(n)
    cache.gather(range(20, 40))
    cache.expire()
    stats = cache.stats()
    assert stats.sets == 100
    assert stats.deletes == 5
    assert stats.expirations == 95
    assert stats.size == 0


def test_size_counts_the_live(cache, clock):
    """`stats().size` counts live entries, swept or not."""
    cache.set_many({n: n for n in range(10)})
    cache.set("later", 1, ttl=100)
    clock.advance(10)
    assert cache.stats().size == 1


def test_snapshot(make, clock):
    """`snapshot()` gives aligned arrays of keys, remaining seconds and ages."""
    np = pytest.importorskip("numpy")
    cache = make()
    cache.set("a", 1)
    clock.advance(4)
    cache.set("b", 2), cache.set("gone", 3, ttl=1), cache.set("never", 4, ttl=math.inf)
    clock.advance(2)
    shot = cache.snapshot()
    order = np.argsort(shot["key"])
    assert shot["key"][order].tolist() == ["a", "b", "never"]
    assert shot["key"].dtype == object
    assert shot["remaining"][order].tolist() == [4, 8, math.inf]
    assert shot["age"][order].tolist()[:2] == [6, 2]
    assert {array.shape for array in shot.values()} == {(3,)}
    assert shot["remaining"].dtype == shot["age"].dtype == np.float64


def test_the_age_of_a_touched_entry(make, clock):
    """Age counts from the last write or touch, or is NaN where the cache can't know it."""
    np = pytest.importorskip("numpy")
    cache = make()
    cache.set("a", 1, ttl=20)
    clock.advance(4)
    assert cache.snapshot()["age"][0] == 4 or np.isnan(cache.snapshot()["age"][0])
    cache.touch("a")
    clock.advance(1)
    assert cache.snapshot()["age"][0] == 1 or np.isnan(cache.snapshot()["age"][0])


def test_snapshot_of_odd_keys(cache):
    """Tuples, lists' worth of them and arrays' look-alikes stay single objects in a snapshot."""
    pytest.importorskip("numpy")
    keys = [(1, 2), (3, 4), "text", b"bytes", None, frozenset({1})]
    cache.set_many((key, 0) for key in keys)
    shot = cache.snapshot()
    assert shot["key"].shape == (6,)
    assert set(shot["key"].tolist()) == set(keys)
    cache.clear()
    assert cache.snapshot()["key"].shape == cache.snapshot()["remaining"].shape == (0,)


def test_snapshot_is_no_read(cache, clock):
    """A snapshot counts no hit and re-arms nothing."""
    pytest.importorskip("numpy")
    cache.set("a", 1)
    clock.advance(3)
    cache.snapshot()
    assert (cache.expires_in("a"), cache.stats().hits) == (7, 0)


def test_repr_of_a_cache_within_itself(cache):
    """`repr` of a cache that holds itself ends."""
    cache.set("self", cache)
    assert len(repr(cache)) < 1000
    cache.clear()


@pytest.mark.parametrize("option", ["jitter", "clock", "name", "seed", "maxsize", "policy"])
def test_options_are_keyword_only(kind, option):
    """Options beyond ttl, factor and interval are named, and the signature shows them."""
    signature = inspect.signature(KINDS[kind][0])
    assert signature.parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
    assert signature.parameters["default_ttl"].default == 3600
    assert signature.parameters["cleanup_interval"].default == 300


def test_every_public_method_is_documented(kind):
    """Each public name of a cache has a docstring."""
    cache_class = KINDS[kind][0]
    names = [name for name in dir(cache_class) if not name.startswith("_")]
    assert len(names) > 25
    assert [name for name in names if not inspect.getdoc(getattr(cache_class, name))] == []


def test_start_cleanup_thread(make):
    """The method of the reference is there and may be called at any time."""
    cache = make()
    assert cache.start_cleanup_thread() is None
    cache.set("a", 1)
    assert cache["a"] == 1
