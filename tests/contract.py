"""The body that every cache runs, model and native alike: the mapping, away from time."""

from __future__ import annotations

import math
from collections.abc import ItemsView, KeysView, Mapping, MutableMapping, ValuesView
from typing import Any, ClassVar

import pytest

from support import cache_maker

ABSENT = object()


class Fixtures:
    """Binds the tests to `classes` (model and native), each made with the arguments `fixed`."""

    classes: ClassVar[dict[str, Any]]
    fixed: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(params=["model", "native"])
    def cache_class(self, request):
        return self.classes[request.param]

    @pytest.fixture
    def make(self, cache_class, clock):
        return cache_maker(cache_class, clock, self.fixed)

    @pytest.fixture
    def cache(self, make):
        return make()


class Contract(Fixtures):
    """What all three kinds have in common, away from time."""

    def test_a_stored_value_is_read_back(self, cache):
        """`get` and `c[k]` give what `set` and `c[k] = v` stored, the very object."""
        value = object()
        cache.set("a", value)
        cache["b"] = value
        assert cache.get("a") is value
        assert cache["b"] is value

    def test_an_absent_key(self, cache):
        """An absent key gives the default, or KeyError with the key."""
        assert cache.get("a") is None
        assert cache.get("a", 7) == 7
        assert cache.get("a", default=8) == 8
        with pytest.raises(KeyError) as caught:
            cache["a"]
        assert caught.value.args == ("a",)
        with pytest.raises(KeyError):
            del cache["a"]
        assert "a" not in cache

    def test_none_is_a_value(self, cache):
        """None is stored, found, counted and told from absence."""
        cache.set("a", None)
        assert cache.get("a", ABSENT) is None
        assert "a" in cache
        assert len(cache) == 1
        assert cache.gather(["a", "b"], ABSENT) == [None, ABSENT]
        assert cache.get_many(["a", "b"]) == {"a": None}
        assert cache.add("a", 1) is False
        assert cache.delete("a") is True

    def test_overwriting_keeps_the_first_key_object(self, cache):
        """A key equal to a stored one replaces the value, not the key."""
        cache.set(1, "int")
        cache.set(1.0, "float")
        cache.set(True, "bool")
        assert [(type(key), value) for key, value in cache.items()] == [(int, "bool")]

    def test_delete(self, cache):
        """`delete` says whether the key was there."""
        cache.set("a", 1)
        assert cache.delete("a") is True
        assert cache.delete("a") is False
        assert cache.get("a") is None

    def test_pop(self, cache):
        """`pop` removes and returns, falls back on its default, or raises KeyError."""
        cache.set("a", 1)
        assert cache.pop("a") == 1
        assert "a" not in cache
        assert cache.pop("a", None) is None
        with pytest.raises(KeyError):
            cache.pop("a")

    def test_popitem(self, cache):
        """`popitem` takes each entry once and raises KeyError when none is left."""
        cache.update(a=1, b=2, c=3)
        assert sorted(cache.popitem() for _ in range(3)) == [("a", 1), ("b", 2), ("c", 3)]
        with pytest.raises(KeyError):
            cache.popitem()

    def test_setdefault(self, cache):
        """`setdefault` stores only if absent and returns what is stored."""
        assert cache.setdefault("a", 1) == 1
        assert cache.setdefault("a", 2) == 1
        assert cache.setdefault("b") is None
        assert "b" in cache

    def test_add(self, cache):
        """`add` stores only if absent and says whether it did."""
        assert cache.add("a", 1) is True
        assert cache.add("a", 2) is False
        assert cache["a"] == 1

    def test_incr(self, cache):
        """`incr` starts from 0, adds delta and returns the sum."""
        assert cache.incr("n") == 1
        assert cache.incr("n", 5) == 6
        assert cache.incr("n", delta=-2) == 4
        assert cache.incr("n", 0.5) == 4.5
        assert cache["n"] == 4.5

    def test_incr_of_something_else(self, cache):
        """`incr` of a value that can't be added to raises and leaves the value."""
        cache.set("a", "text")
        with pytest.raises(TypeError):
            cache.incr("a")
        assert cache["a"] == "text"

    def test_update(self, cache):
        """`update` takes a mapping, pairs, keywords, or nothing."""
        cache.update({"a": 1})
        cache.update([("b", 2)], c=3)
        cache.update(self=4)
        cache.update()
        assert dict(cache.items()) == {"a": 1, "b": 2, "c": 3, "self": 4}

    def test_clear(self, cache):
        """`clear` removes everything and the cache goes on working."""
        cache.set_many({n: n for n in range(100)})
        cache.clear()
        assert len(cache) == 0
        assert list(cache) == []
        assert cache.get(5) is None
        cache.set(5, 6)
        assert cache[5] == 6

    def test_truth_and_length(self, cache):
        """An empty cache is false, `len` counts the entries."""
        assert not cache
        cache.set_many((n, n) for n in range(300))
        assert cache
        assert len(cache) == 300

    def test_gather(self, cache):
        """`gather` aligns with its keys, absent and repeated ones included."""
        cache.update(a=1, b=2)
        assert cache.gather(["b", "x", "a", "b"]) == [2, None, 1, 2]
        assert cache.gather(("x", "a"), 0) == [0, 1]
        assert cache.gather(iter("ab"), default=0) == [1, 2]
        assert cache.gather([]) == []

    def test_get_many(self, cache):
        """`get_many` gives a dict of what was found."""
        cache.update(a=1, b=2)
        assert cache.get_many(["b", "x", "a"]) == {"a": 1, "b": 2}
        assert cache.get_many(iter(())) == {}

    def test_set_many(self, cache):
        """`set_many` takes a mapping or any iterable of pairs."""
        cache.set_many({"a": 1})
        cache.set_many([("b", 2), ["c", 3]])
        cache.set_many((str(n), n) for n in range(2))
        assert dict(cache.items()) == {"a": 1, "b": 2, "c": 3, "0": 0, "1": 1}

    def test_delete_many(self, cache):
        """`delete_many` counts what it removed, each key once."""
        cache.update(a=1, b=2, c=3)
        assert cache.delete_many(["a", "x", "a", "c"]) == 2
        assert list(cache) == ["b"]

    def test_tags(self, cache):
        """An entry bears the tags of its last `set`, and goes with any one of them."""
        cache.set("a", 1, tags=["x", "y"])
        cache.set_many({"b": 2, "c": 3}, tags=("y",))
        assert cache.tags("a") == {"x", "y"}
        assert cache.tags("absent") == frozenset()
        assert cache.delete_tag("x") == 1
        cache.set("b", 4)
        assert cache.delete_tag("y") == 1
        assert cache == {"b": 4}

    def test_patterns(self, cache):
        """A pattern selects the keys that match it as a whole."""
        cache.set_many(dict.fromkeys(["user:1", "user:2", "users:1", b"user:3", 4]))
        assert sorted(cache.get_keys_matching_pattern("user:*")) == ["user:1", "user:2"]
        assert cache.delete_pattern("user?:[0-9]") == 1
        assert cache.invalidate_table("user") == 2
        assert set(cache) == {b"user:3", 4}

    def test_leases(self, cache):
        """What was loaded is stored, unless the key or a tag changed since the load began."""
        kept, changed = cache.lease("a", tags=["x"]), cache.lease("b", tags=["y"])
        cache.delete_tag("y")
        assert (kept.outdated, changed.outdated) == (False, True)
        assert cache.fill(kept, 1) is True
        assert cache.fill(changed, 2) is False
        assert cache.fill(kept, 3) is False
        assert cache == {"a": 1}

    def test_iteration(self, cache):
        """Iteration yields every key once, and the views pair keys with values."""
        cache.set_many((n, -n) for n in range(1000))
        assert sorted(cache) == list(range(1000))
        assert sorted(cache.keys()) == list(range(1000))
        assert sorted(cache.values()) == list(range(-999, 1))
        assert sorted(cache.items()) == [(n, -n) for n in range(1000)]

    def test_views(self, cache):
        """Views are those of a mapping: sized, live, with membership and set operations."""
        cache.set("a", 1)
        keys, values, items = cache.keys(), cache.values(), cache.items()
        assert isinstance(keys, KeysView)
        assert isinstance(values, ValuesView)
        assert isinstance(items, ItemsView)
        cache.set("b", 2)
        assert len(keys) == len(values) == len(items) == 2
        assert "b" in keys
        assert 2 in values
        assert 3 not in values
        assert ("b", 2) in items
        assert ("b", 3) not in items
        assert keys & {"a", "z"} == {"a"}

    def test_mutation_during_iteration(self, cache):
        """Changing the cache while iterating never raises; what stays is yielded once."""
        cache.set_many((n, n) for n in range(500))
        seen = []
        for key in cache:
            seen.append(key)
            cache.delete(key + 1)
            cache.set(key + 1000, key)
        assert len(seen) == len(set(seen))
        assert set(seen) >= {key for key in cache if key < 500}

    def test_it_is_a_mapping(self, cache_class, cache):
        """The class is a registered, generic MutableMapping."""
        assert issubclass(cache_class, MutableMapping)
        assert isinstance(cache, Mapping)

    def test_equality(self, cache, make):
        """Caches compare as mappings with any mapping, and differ from anything else."""
        cache.update(a=1, b=2)
        assert cache == {"b": 2, "a": 1}
        assert {"b": 2, "a": 1} == cache  # noqa: SIM300
        assert cache != {"a": 1}
        assert cache != {"a": 1, "b": 3}
        assert cache != [("a", 1), ("b", 2)]
        other = make()
        assert cache != other
        other.update(cache)
        assert cache == other

    def test_unhashable(self, cache):
        """A cache compares by content, so it has no hash."""
        with pytest.raises(TypeError):
            hash(cache)

    def test_union(self, cache_class, cache):
        """`|` makes a new cache of both, `|=` updates this one; the right side wins."""
        cache.update(a=1, b=2)
        both = cache | {"b": 3, "c": 4}
        assert type(both) is cache_class
        assert both == {"a": 1, "b": 3, "c": 4}
        assert cache == {"a": 1, "b": 2}
        assert ({"b": 3, "c": 4} | cache) == {"a": 1, "b": 2, "c": 4}
        same = cache
        cache |= {"c": 5}
        cache |= [("d", 6)]
        assert cache is same
        assert cache == {"a": 1, "b": 2, "c": 5, "d": 6}
        with pytest.raises(TypeError):
            cache | [("e", 7)]

    def test_copy(self, cache):
        """A copy holds the same entries and goes its own way."""
        cache.update(a=1, b=2)
        other = cache.copy()
        assert type(other) is type(cache)
        assert other == cache
        other.set("a", 3)
        cache.delete("b")
        assert cache == {"a": 1}
        assert other == {"a": 3, "b": 2}

    def test_fromkeys(self, cache_class):
        """`fromkeys` makes a cache of the class with one value for every key."""
        cache = cache_class.fromkeys("ab", 0)
        assert type(cache) is cache_class
        assert dict(cache.items()) == {"a": 0, "b": 0}
        assert dict(cache_class.fromkeys("a").items()) == {"a": None}

    def test_repr_is_bounded(self, cache, cache_class):
        """`repr` names the class and shows at most ten items."""
        cache.set("the key", "the value")
        text = repr(cache)
        assert cache_class.__name__ in text
        assert "'the key'" in text
        assert "'the value'" in text
        cache.set_many((f"key {n}", n) for n in range(1000))
        assert 0 < repr(cache).count("key ") <= 10

    def test_unhashable_keys(self, cache):
        """An unhashable key is TypeError in every method, and nothing is stored."""
        calls = (cache.get, cache.delete, cache.pop, cache.touch, cache.incr, cache.add)
        for call in (*calls[:5], lambda key: cache.add(key, 1), lambda key: cache.set(key, 1)):
            with pytest.raises(TypeError):
                call([])
        for call in (cache.gather, cache.get_many, cache.delete_many, cache.touch_many):
            with pytest.raises(TypeError):
                call([[]])
        for call in (cache.__getitem__, cache.__delitem__, cache.__contains__, cache.expires_in):
            with pytest.raises(TypeError):
                call({})
        assert len(cache) == 0

    def test_hits_and_misses(self, cache):
        """Reads count as hits or misses; membership, iteration and writes don't."""
        cache.set("a", 1)
        cache.get("a"), cache.get("x"), cache["a"]
        cache.gather("ax")
        cache.get_many("ax")
        with pytest.raises(KeyError):
            cache["x"]
        before = cache.stats()
        assert (before.hits, before.misses) == (4, 4)
        "a" in cache, len(cache), list(cache.items()), cache == {}, cache.expires_in("a")
        cache.touch("a"), cache.pop("a"), cache.delete("x")
        assert (cache.stats().hits, cache.stats().misses) == (4, 4)

    def test_other_counters(self, cache, clock):
        """Stores, removals and expirations are counted, and `size` is the length."""
        cache.set("a", 1), cache.set("b", 2), cache.set("c", 3, ttl=1)
        cache.delete("a"), cache.delete("x")
        clock.advance(1)
        cache.expire()
        stats = cache.stats()
        assert (stats.sets, stats.deletes, stats.expirations) == (3, 1, 1)
        assert (stats.early_expirations, stats.size) == (0, 1)

    def test_close(self, cache):
        """After `close` only `close` and `repr` work, the rest is RuntimeError."""
        cache.set("a", 1)
        cache.close()
        cache.close()
        assert repr(cache)
        for call in (
            lambda: cache.get("a"), lambda: cache["a"], lambda: cache.set("a", 1),
            lambda: cache.delete("a"), lambda: "a" in cache, lambda: len(cache),
            lambda: list(cache), cache.clear, cache.stats, cache.expire, cache.popitem,
            lambda: cache.gather("a"), lambda: cache.set_many({"a": 1}), cache.copy,
            lambda: cache.touch("a"), lambda: cache.expires_in("a"), lambda: cache.incr("a"),
            lambda: list(cache.items()), cache.__enter__,
        ):  # fmt: skip
            with pytest.raises(RuntimeError):
                call()

    def test_with(self, make):
        """`with` gives the cache and closes it at the end."""
        with make() as cache:
            cache.set("a", 1)
            assert cache["a"] == 1
        with pytest.raises(RuntimeError):
            cache.get("a")


class OptionContract(Fixtures):
    """What the constructors accept."""

    @pytest.mark.parametrize("wrong", [1.0, -0.1, 2, math.nan])
    def test_wrong_jitter(self, make, wrong):
        """`jitter` lies in [0, 1)."""
        with pytest.raises(ValueError):  # noqa: PT011
            make(jitter=wrong)

    @pytest.mark.parametrize("wrong", [0, -1, math.nan])
    def test_wrong_cleanup_interval(self, make, wrong):
        """`cleanup_interval` is a positive number of seconds or None."""
        with pytest.raises(ValueError):  # noqa: PT011
            make(cleanup_interval=wrong)
