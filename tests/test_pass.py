"""What a removal by pattern or tag promises while entries come and go.

Every entry that is there when the call begins and stays is gone when it returns.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import lapse
from support import Dying, check
from test_threads import in_threads

WAYS = {
    "index": lambda cache: cache.delete_pattern("t:*"),
    "every key": lambda cache: cache.delete_pattern("[t]:*"),
    "tag": lambda cache: cache.delete_tag("t"),
}
way = pytest.mark.parametrize("way", WAYS)


def crowd(listener: Any = None, value: Any = lambda n: n) -> Any:
    """1,000 entries that a pass of each way covers, among 9,000 others."""
    cache = lapse.TTLCache(None, cleanup_interval=None, listener=listener)
    cache.set_many({f"u:{n}": n for n in range(9000)})
    cache.set_many({f"t:{n}": value(n) for n in range(1000)}, tags=("t",))
    return cache


@way
def test_what_stays_is_removed_while_a_listener_changes_the_cache(way):
    """Whoever was there goes once, by the pass or otherwise, while others come and go."""
    causes: dict[str, list[str]] = {}

    def listener(key: str, value: int, cause: str) -> None:
        if key.startswith("t:"):
            causes.setdefault(key, []).append(cause)
        if cause in ("pattern", "tag"):
            cache.set_many({f"new {value}:{n}": n for n in range(20)})
            cache.delete_many([f"u:{value}", f"t:{(value * 7 + 500) % 1000}"])

    cache = crowd(listener)
    gone = WAYS[way](cache)
    assert sorted(causes) == sorted(f"t:{n}" for n in range(1000))
    assert all(len(each) == 1 for each in causes.values())
    counts = Counter(each[0] for each in causes.values())
    assert gone == counts["tag" if way == "tag" else "pattern"] > 100
    assert not cache.get_keys_matching_pattern("[t]:*")
    check(cache)


@way
def test_what_stays_is_removed_while_values_die(way):
    """The same for changes that a value's `__del__` makes."""
    deaths = []

    def die(n: int) -> None:
        deaths.append(n)
        cache.set_many({f"new {n}:{i}": i for i in range(10)})
        cache.delete(f"t:{(n * 7 + 500) % 1000}")

    cache = crowd(value=lambda n: Dying(lambda: die(n)))
    assert 100 < WAYS[way](cache) <= 1000
    assert sorted(deaths) == list(range(1000))
    assert not cache.get_keys_matching_pattern("[t]:*")
    check(cache)


@way
def test_a_listener_that_stores_again_does_not_hold_a_pass_up(way):
    """A pass removes what was there once; what its listener puts back can't keep it for ever."""
    calls = 0

    def listener(key: str, value: int, cause: str) -> None:
        nonlocal calls
        calls += 1
        if calls < 20_000:  # else the test would not end, either
            cache.set(key, value, tags=("t",))

    cache = lapse.TTLCache(None, cleanup_interval=None, listener=listener)
    cache.set_many({f"u:{n}": n for n in range(9000 if way == "index" else 0)})
    cache.set_many({f"t:{n}": n for n in range(600)}, tags=("t",))
    WAYS[way](cache)
    assert calls <= 2 * 600
    check(cache)


@way
def test_what_stays_is_removed_beside_writers(way):
    """Threads insert, delete and expire while a pass runs: none of those that stay is left over."""
    cache = crowd()

    def work(thread: int) -> None:
        if thread == 0:
            for turn in range(20):
                stay = {f"t:{turn} {n}": n for n in range(500)}
                cache.set_many(stay, tags=("t",))
                assert WAYS[way](cache) >= 500
                assert not cache.get_many(stay)
        for turn in range(40 if thread else 0):
            cache.set_many({f"t:{thread}:{n}": n for n in range(500)}, tags=("t", "more"))
            cache.delete_many([f"u:{n}" for n in range(turn, 9000, 40)])
            cache.set_many({f"v{thread}:{turn}:{n}": n for n in range(300)}, ttl=1e-9)
            cache.expire()

    in_threads(work, 3)
    check(cache)


def delete_and_store_meanwhile(make, first):
    """A cache after a pass whose listener deleted keys and stored others, from `first` on."""
    names = [f"k{first + n:08}" for n in range(400)]
    gone: Counter[str] = Counter()

    def listener(key: str, value: Any, cause: str) -> None:
        gone[cause] += 1
        if cause == "pattern" and not gone["deleted"]:
            while names:
                cache.delete(names.pop())
        elif cause == "deleted" and gone[cause] == 270:  # what they made room for comes now
            for n in range(270):
                cache.set(f"k{first + 500 + n:08}", n, tags=["t"])

    cache = make(listener=listener)
    cache.set_many(dict.fromkeys(names), tags=["t"])
    cache.delete_pattern("k*")
    return cache


def test_a_key_that_takes_the_place_of_another(make):
    """A key stored meanwhile may have the address of one that went: it is not mistaken for it."""
    for trial in range(150):
        cache = delete_and_store_meanwhile(make, trial * 1000)
        check(cache)
        left = len(cache)
        assert cache.delete_tag("t") == left
