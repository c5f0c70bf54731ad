"""Copies, pickles and subclasses: what a cache takes with it, and what it leaves."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import sys
import time
import weakref
from types import GenericAlias
from typing import Any

import pytest

import lapse
from support import FREE_THREADED, KINDS, Key, check

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


class Labelled(lapse.TTLCache):
    """A subclass with another constructor, attributes, and `get` overridden."""

    def __init__(self, label: str, **options: Any) -> None:
        super().__init__(20, cleanup_interval=None, **options)
        self.label = label

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(("own", key), default)


def cloned(cache: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(cache, protocol))


# --- Copies ---


@pytest.mark.parametrize("duplicate", [lambda c: c.copy(), copy.copy])
def test_a_copy_shares_settings_clock_and_values(make, clock, duplicate):
    """A copy has the same ttl, clock and very values; its counters start at zero."""
    cache = make(7, name="first")
    value = [1]
    cache.set("a", value)
    cache.get("a")
    other = duplicate(cache)
    assert other["a"] is value
    assert other.name == "first"
    assert other.stats().hits == 1
    other.set("b", 1)
    assert other.expires_in("b") == 7
    clock.advance(7)
    assert other == cache == {}


def test_a_deep_copy_copies_the_values(cache):
    """`copy.deepcopy` copies values, deadlines stay."""
    cache.set("a", [1], ttl=5)
    other = copy.deepcopy(cache)
    other["a"].append(2)
    assert cache["a"] == [1]
    assert other["a"] == [1, 2]
    assert 4 < other.expires_in("a") <= 5


def test_a_deep_copy_of_a_cache_that_holds_itself(cache):
    """A cache within itself is copied once."""
    cache.set("self", cache)
    other = copy.deepcopy(cache)
    assert other["self"] is other
    cache.clear(), other.clear()


def test_a_large_copy(cache):
    """A copy of many segments is complete and sound."""
    cache.set_many((n, str(n)) for n in range(20_000))
    cache.delete_many(range(0, 20_000, 3))
    other = cache.copy()
    cache.clear()
    assert dict(other.items()) == {n: str(n) for n in range(20_000) if n % 3}
    check(other)


# --- Pickles ---


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_keeps_entries_and_remaining_lifetimes(make, clock, protocol):
    """A clone has the entries, their remaining lifetimes, and the native clock."""
    cache = make(100)
    cache.set_many({"a": [1], ("b", 2): None, Key("k"): "key"})
    cache.set("endless", 1, ttl=math.inf)
    cache.set("gone", 1, ttl=10)
    clock.advance(40)
    other = cloned(cache, protocol)
    assert type(other) is type(cache)
    assert dict(other.items()) == dict(cache.items())
    assert 30 < other.expires_in("a") <= 60
    assert other.expires_in("endless") is None
    clock.advance(1e6)
    assert "a" in other
    other.set("new", 1)
    assert 70 < other.expires_in("new") <= 100
    check(other)


def test_time_spent_pickled_counts(make, monkeypatch):
    """The wall time between dumping and loading is taken off; what ends meanwhile is not loaded."""
    cache = make(100)
    cache.set_many({"short": 1}, ttl=20)
    cache.set("long", 2)
    data = pickle.dumps(cache)
    then = time.time()
    monkeypatch.setattr(time, "time", lambda: then + 30)
    other = pickle.loads(data)
    assert dict(other.items()) == {"long": 2}
    assert 60 < other.expires_in("long") <= 70.1


def test_a_wall_clock_that_went_back(make, monkeypatch):
    """A wall clock set back meanwhile makes nothing live longer than it had left."""
    cache = make(100)
    cache.set("a", 1)
    data = pickle.dumps(cache)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 90 < pickle.loads(data).expires_in("a") <= 100


def test_settings_survive_a_pickle():
    """Name, sliding and its hard end, the factor of early expiry: a clone goes on alike."""
    sliding = lapse.SlidingTTLCache(50, None, max_lifetime=80, name="s", clock=lapse.ManualClock())
    sliding.set("a", 1, ttl=5)
    other = cloned(sliding)
    assert other.name == "s"
    other.touch("a", 1000)
    assert other.expires_in("a") <= 80
    early = cloned(lapse.ProbabilisticTTLCache(100, 1.0, None, seed=1, clock=lapse.ManualClock()))
    early.set_many(dict.fromkeys(range(2000), 1), ttl=1e6)
    assert early.gather(range(2000)) == [1] * 2000
    assert early.stats().early_expirations == 0


def test_a_closed_cache_is_not_pickled(cache):
    """Pickling after `close` is RuntimeError, as everything else."""
    cache.close()
    with pytest.raises(RuntimeError):
        pickle.dumps(cache)


def test_values_that_do_not_pickle(cache):
    """What a value's own pickling raises reaches the caller."""
    cache.set("a", lambda: None)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(cache)
    assert "a" in cache


# --- Subclasses ---


def test_a_subclass_overrides_get(clock):
    """An overridden `get` is what callers get; `c[k]` and the rest stay."""
    cache = Labelled("x", clock=clock)
    cache.set("a", 1)
    cache.set(("own", "a"), 2)
    assert cache.get("a") == 2
    assert cache.get("b", 3) == 3
    assert cache["a"] == 1
    assert cache.label == "x"


def test_a_subclass_is_copied_and_pickled(clock):
    """Copies and pickles of a subclass are of the subclass, whatever its constructor takes."""
    cache = Labelled("x", clock=clock)
    cache.set("a", 1)
    other = cloned(cache)
    assert type(other) is Labelled
    assert (other["a"], other.label) == (1, "x")
    for twin in (cache.copy(), copy.copy(cache), cache | {}):
        assert type(twin) is Labelled
        assert twin["a"] == 1
        assert twin.expires_in("a") == 20


def test_a_subclass_overrides_setitem(make, kind):
    """A subclass may override any method and call the one behind it."""
    seen = []

    class Noting(KINDS[kind][0]):
        def __setitem__(self, key: Any, value: Any) -> None:
            seen.append(key)
            super().__setitem__(key, value)

        def __contains__(self, key: Any) -> bool:
            return key == "everything" or super().__contains__(key)

    cache = Noting(cleanup_interval=None)
    cache["a"] = 1
    assert seen == ["a"]
    assert "everything" in cache
    assert "a" in cache
    assert "b" not in cache
    del cache["a"]
    assert cache.get("a") is None


@pytest.mark.skipif(
    FREE_THREADED and sys.version_info < (3, 14),
    reason="3.13t keeps every class for ever: python/cpython#117783",
)
def test_subclasses_come_and_go():
    """A subclass that is no longer used is collected."""

    def use() -> Any:
        class Local(lapse.TTLCache):
            pass

        cache = Local(cleanup_interval=None)
        cache.set("a", 1)
        assert cache.get("a") == cache["a"] == 1
        return weakref.ref(Local)

    watch = use()
    gc.collect()
    assert watch() is None


def test_the_classes_are_generic(kind):
    """`TTLCache[str, int]` is an alias that makes caches."""
    cache_class = KINDS[kind][0]
    alias = cache_class[str, int]
    assert isinstance(alias, GenericAlias)
    assert alias.__args__ == (str, int)
    assert isinstance(alias(cleanup_interval=None), cache_class)


def test_a_copy_keeps_attributes_of_a_subclass(clock):
    """What a subclass keeps on its instances is on their copies too."""

    class Named(lapse.TTLCache):
        """A cache with an attribute of its own and another constructor."""

        def __init__(self, owner: str) -> None:
            super().__init__(clock=clock)
            self.owner = owner

    cache = Named("ada")
    cache["a"] = 1
    assert (cache.copy().owner, dict(cache.copy().items())) == ("ada", {"a": 1})
