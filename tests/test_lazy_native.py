"""What the native cache does for lazy invalidation: leases alone, drops, compiled patterns."""

from __future__ import annotations

from typing import Any

import pytest

from lapse import escape
from lapse._core import Pattern, table_pattern
from model_invalidation import matches
from support import Key, check
from test_invalidation_stateful import KEYS, PATTERNS

# --- Leases alone ------------------------------------------------------------------------------

OUTDATING: dict[str, tuple[Any, set[str]]] = {
    "key": (lambda c: c._outdate_key("a:1"), {"a:1"}),
    "absent key": (lambda c: c._outdate_key("c:1"), {"c:1"}),
    "pattern": (lambda c: c._outdate_pattern(Pattern("a:*")), {"a:1", "a:2"}),
    "literal pattern": (lambda c: c._outdate_pattern(Pattern("a:1")), {"a:1"}),
    "bytes pattern": (lambda c: c._outdate_pattern(Pattern(b"a:*")), set()),
    "tag": (lambda c: c._outdate_tag("t"), {"tagged"}),
    "tag like a key": (lambda c: c._outdate_tag("a:1"), set()),
    "all": (lambda c: c._outdate_all(), {"a:1", "a:2", "b:1", "c:1", "tagged"}),
}


def state(cache: Any) -> Any:
    return cache._entries(), cache.stats()._replace(bytes=0, tracking_bytes=0)


@pytest.mark.parametrize("name", OUTDATING)
def test_leases_are_outdated_and_entries_stay(cache, name):
    """Those that are covered, before and not after; no entry, deadline or counter changes."""
    outdate, expected = OUTDATING[name]
    cache.set_many({"a:1": 1, "b:1": 2}, tags=["t"])
    leases = {key: cache.lease(key) for key in ("a:1", "a:2", "b:1", "c:1")}
    leases["tagged"] = cache.lease("d", tags=["t"])
    before = state(cache)
    outdate(cache)
    assert {key for key, lease in leases.items() if lease.outdated} == expected
    assert state(cache) == before
    assert all(cache.fill(cache.lease(key), 3) for key in leases)
    check(cache)


def test_an_outdated_tag_is_an_exact_str(cache):
    """What marks are named by runs no user code; anything else is no tag."""

    class Text(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise OSError("hash")

    tag = cache._outdate_tag(Text("t"))
    assert type(tag) is str
    assert tag == "t"
    for wrong in (b"t", 1, None):
        with pytest.raises(TypeError):
            cache._outdate_tag(wrong)


@pytest.mark.parametrize("wrong", [None, "a*", 5])
def test_only_compiled_patterns_outdate(cache, wrong):
    """A pattern that was not compiled is a TypeError."""
    with pytest.raises(TypeError):
        cache._outdate_pattern(wrong)


# --- Drops -------------------------------------------------------------------------------------


def test_a_drop_takes_what_it_expects(cache):
    """The very object, once; an equal one is another."""
    first, equal = [1], [1]
    cache.set("a", first, tags=["t"])
    assert cache._drop("a", equal) is False
    assert cache["a"] is first
    assert cache._drop("a", first) is True
    assert cache._drop("a", first) is False
    assert "a" not in cache
    assert cache.delete_tag("t") == 0
    check(cache)


def test_a_drop_outdates_nothing(cache):
    """A load that is under way is newer than what is dropped, and stored."""
    cache.set("a", 1)
    lease = cache.lease("a")
    assert cache._drop("a", 1)
    assert cache.fill(lease, 2)


def test_a_drop_is_a_deletion(make):
    """It is counted and told of as one; an expired entry goes as expired, and was not live."""
    told: list[Any] = []
    cache = make(listener=lambda *event: told.append(event))
    cache.set("a", 1)
    cache.set("b", 2, 1)
    cache.clock.advance(1)
    assert (cache._drop("a", 1), cache._drop("b", 2)) == (True, False)
    assert told == [("a", 1, "deleted"), ("b", 2, "expired")]
    assert (cache.stats().deletes, cache.stats().expirations) == (1, 1)


def test_a_drop_finds_equal_keys(cache):
    """Keys are compared as everywhere."""
    cache.set(Key("a"), 1)
    assert cache._drop(Key("b"), 1) is False
    assert cache._drop(Key("a"), 1) is True


# --- Listing by tag ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 300, 20_000])
def test_the_keys_that_bear_a_tag(cache, count):
    """All of them, live ones only; nothing is removed or outdated."""
    cache.set_many(((f"k:{n}", n) for n in range(count)), tags=["t", "u"])
    cache.set_many(((n, n) for n in range(300)), tags=["u"])
    cache.set("expired", 1, 1, tags=["t"])
    cache.clock.advance(1)
    lease = cache.lease("k:0", tags=["t"])
    assert sorted(cache._kept_with_tag("t")) == sorted(f"k:{n}" for n in range(count))
    assert cache._kept_with_tag("none") == []
    assert not lease.outdated
    assert len(cache) == count + 300
    check(cache)


@pytest.mark.parametrize("soft", [False, True])
def test_entries_within_their_grace(make, soft):
    """They are listed and looked at like live ones, by whoever has to remove them."""
    cache = make(default_ttl=10, stale_ttl=None if soft else 5)
    cache.set("k:1", 1, tags=["t"])
    cache.set("k:2", 2, tags=["t"])
    if soft:
        cache.soft_clear(5)
    else:
        cache.clock.advance(10)
    cache.set("k:3", 3, tags=["t"])
    assert (len(cache), cache.tags("k:1"), cache._look("k:1", None)) == (1, set(), None)
    found = cache._kept(), cache._kept_matching("k:*"), cache._kept_with_tag("t")
    assert [sorted(keys) for keys in found] == [["k:1", "k:2", "k:3"]] * 3
    assert cache._kept_matching("k:1") == ["k:1"]
    assert (cache._kept_tags("k:1"), cache._look_kept("k:1", None)) == ({"t"}, 1)
    assert cache._drop("k:1", 1) is False  # it was not live
    assert cache._look_kept("k:1", None) is None
    cache.clock.advance(5)
    assert sorted(cache._kept()) == ["k:3"]
    assert cache._kept_tags("k:2") == set()
    check(cache)


# --- Patterns ----------------------------------------------------------------------------------


def test_a_pattern_matches_what_the_cache_would_delete():
    """Every pattern on every key, as the model has it."""
    for source in PATTERNS:
        pattern = Pattern(source)
        assert pattern.source == source
        for key in KEYS:
            assert pattern.matches(key) is matches(source, key), (source, key)


@pytest.mark.parametrize("wrong", [None, 5, ["a"], bytearray(b"a")])
def test_what_is_no_pattern(wrong):
    """TypeError for other types, ValueError for one that is too long."""
    with pytest.raises(TypeError):
        Pattern(wrong)
    with pytest.raises(ValueError, match="1024"):
        Pattern("a" * 1025)


@pytest.mark.parametrize(("base", "text"), [(str, "a*"), (bytes, b"a*")])
def test_a_source_is_of_an_exact_type(base, text):
    """A subclass with a hash of its own is copied."""

    class Odd(base):  # type: ignore[misc]
        def __hash__(self) -> int:
            raise OSError("hash")

    pattern = Pattern(Odd(text))
    assert type(pattern.source) is base
    assert pattern.source == text
    assert repr(pattern) == f"Pattern({text!r})"


@pytest.mark.parametrize("table", ["users", "a*[b]", "", b"users", b"\\"])
def test_the_pattern_of_a_table(table):
    """What invalidate_table() removes."""
    colon = b":" if isinstance(table, bytes) else ":"
    pattern = Pattern(table_pattern(table))
    assert pattern.source == escape(table) + colon + (b"*" if isinstance(table, bytes) else "*")
    assert pattern.matches(table + colon + table)
    assert not pattern.matches(table)
    with pytest.raises(TypeError):
        table_pattern(5)
