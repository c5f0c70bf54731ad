"""Twenty threads on one bounded cache: the bound holds at every look, and the figures add up.

`len` never says more than the bound, whatever the table holds, so looks list the keys, too, where
one segment has them all at one instant. csrc/tests/bound.c counts the entries of several.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lapse import ManualClock, TTLCache
from support import FREE_THREADED, PATIENCE, Key, check, switching
from test_threads import in_threads

THREADS = 20
#: Of each thread. Without a GIL they all wait for the same entry's place.
CALLS = (500 if FREE_THREADED else 5_000) * (8 if os.environ.get("LAPSE_LONG") == "1" else 1)
ONE_SEGMENT = 784  # entries that never split one
TTL = 5

#: Plain keys, and such as share a hash, so that their `__eq__` is asked in the midst of a call.
KEYS: dict[str, Callable[[int], Any]] = {"int": int, "asking": lambda n: Key(n, n // 2)}
ACTIONS: list[tuple[int, Callable[[Any, list[Any], random.Random], object]]] = [
    (60, lambda cache, keys, rng: cache.set(rng.choice(keys), [1])),
    (60, lambda cache, keys, rng: cache.get(rng.choice(keys))),
    (10, lambda cache, keys, rng: cache.set(rng.choice(keys), [2], TTL)),
    (10, lambda cache, keys, rng: cache.delete(rng.choice(keys))),
    (10, lambda cache, keys, rng: cache.pop(rng.choice(keys), None)),
    (10, lambda cache, keys, rng: cache.add(rng.choice(keys), 3)),
    (5, lambda cache, keys, rng: cache.get_or_load(rng.choice(keys), repr)),
    (5, lambda cache, keys, rng: cache.touch(rng.choice(keys), TTL)),
    (3, lambda cache, keys, rng: cache.gather(rng.choices(keys, k=40))),
    (3, lambda cache, keys, rng: cache.set_many((key, 4) for key in rng.choices(keys, k=10))),
    (3, lambda cache, keys, rng: cache.clock.advance(0.1)),
    (1, lambda cache, keys, rng: cache.expire()),
]


_switch_often = switching(2e-6)


class Watcher(threading.Thread):
    """Looks at a cache all through a `with` block; `longest` is the most that it saw."""

    def __init__(self, cache: Any, maxsize: int) -> None:
        super().__init__()
        self.cache, self.listed = cache, maxsize <= ONE_SEGMENT
        self.longest, self._looked, self._done = 0, threading.Event(), threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            self.longest = max(self.longest, len(self.cache))
            if self.listed:
                self.longest = max(self.longest, len(list(self.cache)))
            self._looked.set()

    def __enter__(self) -> Watcher:
        self.start()
        assert self._looked.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


def left(cache: Any) -> int:
    """The entries that are there by the cache's own figures."""
    stats = cache.stats()
    gone = stats.deletes + stats.expirations + stats.evictions + stats.cleared
    return stats.sets - stats.replaced - gone


@pytest.mark.parametrize("policy", ["duel", "lru"])
@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("maxsize", [1, 50, 700, 3000])
def test_twenty_threads(policy: str, name: str, maxsize: int) -> None:
    """No look finds more than `maxsize` entries; nothing is lost count of."""
    cache: Any = TTLCache(None, None, maxsize=maxsize, policy=policy, clock=ManualClock())
    weights, keys = [weight for weight, _ in ACTIONS], [KEYS[name](n) for n in range(3 * maxsize)]

    def work(thread: int) -> None:
        rng = random.Random(thread)
        for _, action in rng.choices(ACTIONS, weights, k=CALLS):
            action(cache, keys, rng)
        if thread == 0:
            cache.clear()

    cache.set_many((-1 - n, n) for n in range(maxsize))
    with Watcher(cache, maxsize) as watcher:
        in_threads(work, THREADS)
    assert watcher.longest == maxsize
    check(cache)
    cache.clock.advance(TTL)
    cache.expire()
    assert left(cache) == len(cache)
    cache.set_many((("new", n), n) for n in range(maxsize))
    assert len(list(cache)) == maxsize


@pytest.mark.parametrize("policy", ["duel", "lru"])
def test_nothing_is_ever_held(policy: str) -> None:
    """maxsize 0: no look of any thread finds an entry."""
    cache: Any = TTLCache(None, None, maxsize=0, policy=policy)

    def work(thread: int) -> None:
        for n in range(CALLS // 10):
            cache.set(n, n)
            cache.add((thread, n), n)
            cache.set_many({n: thread})
            assert cache.get_or_load(n, repr) == repr(n)
            assert (cache.get(n), n in cache, list(cache)) == (None, False, [])

    with Watcher(cache, 0) as watcher:
        in_threads(work, THREADS)
    assert watcher.longest == 0
    assert cache.stats().evictions == 0
    check(cache)
