"""Very many prefixes in one call: they go in one walk, and nobody sees them once it has begun."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lapse
from support import check

USERS = 1000  # prefixes: enough for a storm over as many entries as these tests store


def timelines(pages: int = 3, **options: Any) -> Any:
    """A cache of timelines, `pages` for each user, and a post of each."""
    cache = lapse.TTLCache(None, cleanup_interval=None, **options)
    cache.set_many({f"timeline:{u}:{p}": (u, p) for u in range(USERS) for p in range(pages)})
    cache.set_many({f"post:{u}": u for u in range(USERS)})
    return cache


def followers(step: int = 2) -> list[str]:
    """The patterns of every `step`-th user's timelines."""
    return [f"timeline:{u}:*" for u in range(0, USERS, step)]


def is_due(key: str, step: int = 2) -> bool:
    """Do these patterns match the key?"""
    kind, user, *_ = key.split(":")
    return kind == "timeline" and int(user) % step == 0


def test_what_is_covered_goes_and_is_counted():
    """Each pattern removes its own entries, and no others."""
    cache = timelines()
    assert cache._invalidate_patterns(followers()) == [3] * (USERS // 2)
    assert all(key in cache or is_due(key) for key in [f"timeline:{u}:0" for u in range(USERS)])
    assert not any(is_due(key) for key in cache)
    assert len(cache) == USERS + 3 * USERS // 2
    assert cache.stats().pattern_deletes == 3 * USERS // 2
    check(cache)


def test_nobody_sees_an_entry_once_the_walk_has_begun():
    """At the first entry that goes, all others that are covered have gone for every method."""
    seen: list[Any] = []

    def listener(key: str, value: Any, cause: str) -> None:
        seen.append((key, cause))
        if len(seen) > 1:
            return
        due = [
            k for k in (f"timeline:{u}:{p}" for u in range(USERS) for p in range(3)) if is_due(k)
        ]
        assert cache.gather(due) == [None] * len(due)
        assert not cache.get_many(due)
        assert not any(key in cache for key in due)
        assert not any(is_due(key) for key in cache)
        assert not any(is_due(key) for key in cache.get_keys_matching_pattern("*"))
        assert not any(map(cache.delete, due[::10]))
        assert cache.delete_many(due) == 0
        with pytest.raises(KeyError):
            cache[due[-1]]

    cache = timelines(listener=listener)
    cache._invalidate_patterns(followers())
    assert sorted(key for key, _ in seen) == sorted({key for key, _ in seen})
    assert all(is_due(key) for key, _ in seen)
    assert len(seen) == 3 * USERS // 2
    check(cache)


def test_the_cause_is_the_pattern():
    """Whoever takes an entry out, the listener is told why it went."""
    causes: dict[str, str] = {}

    def listener(key: str, value: Any, cause: str) -> None:
        causes[key] = cause
        cache.get(f"timeline:{(value[0] + 2) % USERS}:0")

    cache = timelines(listener=listener)
    cache._invalidate_patterns(followers())
    assert set(causes.values()) == {"pattern"}
    assert len(causes) == 3 * USERS // 2


def test_what_is_read_in_another_thread_is_never_seen_again():
    """A reader that has once missed a covered entry never meets one again."""
    cache = timelines(pages=20)
    keys = [f"timeline:{u}:{p}" for u in range(0, USERS, 2) for p in range(20)]
    wrong, stop = [], threading.Event()

    def read() -> None:
        missed = False
        while not stop.is_set():
            for key in keys[::7]:
                if cache.get(key) is None:
                    missed = True
                elif missed:
                    wrong.append(key)

    reader = threading.Thread(target=read)
    reader.start()
    cache._invalidate_patterns(followers())
    stop.set()
    reader.join()
    assert not wrong
    assert cache.get_many(keys) == {}


def test_other_patterns_go_along():
    """Globs, keys, other depths and other types, in the order of the answer."""
    cache = timelines()
    cache.set_many({b"timeline:0:0": 1, "x": 2, "a*b:1": 3, "search:1": 4})
    mixed = [*followers(), "post:?", "x", b"timeline:0:*", "a\\*b:*", "none:*", "search:*"]
    assert cache._invalidate_patterns(mixed)[USERS // 2 :] == [10, 1, 1, 1, 0, 1]
    check(cache)


def test_equal_patterns_count_once():
    """Of equal patterns the first has the count."""
    cache = timelines()
    assert cache._invalidate_patterns([*followers(), *followers()]) == [3] * 500 + [0] * 500


@pytest.mark.parametrize("wrong", [7, None, "x" * 1025, b"x" * 1025])
def test_one_wrong_pattern_and_nothing_goes(wrong):
    """Every pattern is checked before anything is done."""
    cache = timelines()
    with pytest.raises((TypeError, ValueError)):
        cache._invalidate_patterns([*followers(), wrong])
    assert len(cache) == 4 * USERS


def test_loads_that_are_covered_are_not_stored():
    """A load that began before the walk is refused; one of another key is stored."""
    cache = timelines()
    covered, other = cache.lease("timeline:2:0"), cache.lease("timeline:3:0")
    cache._invalidate_patterns(followers())
    assert covered.outdated
    assert not cache.fill(covered, "old")
    assert cache.fill(other, "new")


@pytest.mark.parametrize("make", [lapse.SlidingTTLCache, lapse.ProbabilisticTTLCache])
def test_other_caches(make):
    """Sliding and probabilistic caches do the same, bounded ones too."""
    for options in ({}, {"maxsize": 5000}):
        cache = make(600, cleanup_interval=None, **options)
        cache.set_many({f"timeline:{u}:0": u for u in range(USERS)}, tags=("t",))
        cache._invalidate_patterns(followers())
        assert len(cache) == USERS // 2
        assert cache.delete_tag("t") == USERS // 2
        check(cache)


names = st.text(alphabet="ab:*?[\\\xe9\u0416\U0001f600", max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    keys=st.sets(st.one_of(names, names.map(lambda s: s.encode())), max_size=40),
    chosen=st.lists(names.map(lambda s: lapse.escape(s) + ":*"), min_size=16, max_size=40),
)
def test_a_storm_removes_what_the_patterns_do_one_by_one(keys, chosen):
    """In any alphabet, the same entries go as by single calls."""
    together, singly = lapse.TTLCache(None), lapse.TTLCache(None)
    for cache in (together, singly):
        cache.set_many(dict.fromkeys(keys, 1))
    removed = together._invalidate_patterns(chosen)
    assert sum(removed) == sum(singly.delete_pattern(pattern) for pattern in chosen)
    assert set(together) == set(singly)
    check(together)
