"""Bounded caches get another bound while they are in use."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from lapse import TTLCache
from lapse.traces import open_sample
from support import percent_of_hits


@pytest.fixture(params=["lru", "duel"])
def bounded(make, request):
    """Makes caches of each kind and policy that hold 1,000 entries."""

    def made(**options: Any) -> Any:
        return make(60, **{"maxsize": 1000, "policy": request.param, "seed": 1} | options)

    return made


def fill(cache: Any, n: int) -> None:
    cache.set_many({key: key for key in range(n)})


@pytest.mark.parametrize("size", [0, 1, 10, 999, 1000, 5000])
def test_another_bound(bounded, size):
    """What is too much is evicted at once, the rest stays, and the new bound holds from then on."""
    told: list[Any] = []
    cache = bounded(listener=lambda *event: told.append(event))
    fill(cache, 1000)
    cache.resize(size)
    assert cache.maxsize == size
    assert len(cache) == min(size, 1000)
    assert all(cause == "evicted" for *_, cause in told)
    assert len(told) == cache.stats().evictions == max(0, 1000 - size)
    fill(cache, 6000)
    assert len(cache) == min(size, 6000)
    assert cache._check()


def test_the_oldest_go(make):
    """Exact LRU lets go what was not used for longest."""
    cache = make(60, maxsize=10, policy="lru")
    fill(cache, 10)
    cache.get(0)
    cache.resize(3)
    assert sorted(cache) == [0, 8, 9]


def test_what_is_in_use_stays(make):
    """The default policy keeps what is asked for often."""
    cache = make(60, maxsize=1000)
    fill(cache, 1000)
    for _ in range(10):
        cache.gather(range(0, 1000, 10))
    cache.resize(200)
    assert sum(key in cache for key in range(0, 1000, 10)) >= 95


def test_again_and_again(bounded):
    """Any number of changes leaves a whole cache; 0 empties it, and it can be used again."""
    cache, rng = bounded(), random.Random(1)
    for _ in range(100):
        cache.resize(rng.choice([0, 1, 2, 50, 999, 3000]))
        fill(cache, rng.randrange(2000))
        assert len(cache) <= cache.maxsize
        assert cache._check()


def test_no_bound_to_change(make):
    """A cache that was made without a bound keeps none of the records that one needs."""
    cache = make(60)
    with pytest.raises(ValueError, match="maxsize"):
        cache.resize(10)
    assert cache.maxsize is None


@pytest.mark.parametrize(
    ("wrong", "error"), [(None, TypeError), (1.5, TypeError), (True, TypeError)]
)
def test_wrong_types(bounded, wrong, error):
    """A bound is an int, and the old one stays."""
    cache = bounded()
    with pytest.raises(error, match="maxsize"):
        cache.resize(wrong)
    assert cache.maxsize == 1000


@pytest.mark.parametrize("wrong", [-1, 2**63])
def test_wrong_values(bounded, wrong):
    """A bound is not negative, and fits in 63 bits."""
    with pytest.raises(ValueError, match="maxsize"):
        bounded().resize(wrong)


def test_copies_keep_it(bounded):
    """A copy has the bound that the cache has now, and from then on its own."""
    cache = bounded()
    cache.resize(7)
    fill(cache, 100)
    copy = cache.copy()
    assert copy.maxsize == 7
    copy.resize(3)
    fill(cache, 100)
    assert (cache.maxsize, len(cache), copy.maxsize, len(copy)) == (7, 7, 3, 3)


@pytest.mark.parametrize("policy", ["lru", "duel"])
def test_as_good_as_made_so(policy: str) -> None:
    """After a change the policy hits as often as in a cache that was made with that bound."""
    hits = []
    for first in (400, 4000):
        cache: Any = TTLCache(None, None, maxsize=first, policy=policy)
        cache.resize(400)
        with open_sample() as trace:
            hits.append(percent_of_hits(trace, cache))
    assert hits[1] == pytest.approx(hits[0], abs=0.7)


def test_threads(bounded):
    """Threads that store and one that changes the bound: it holds whenever nobody changes it."""
    cache, done = bounded(clock=None), threading.Event()

    def store(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            cache.set(rng.randrange(5000), seed)
            cache.get(rng.randrange(5000))

    threads = [threading.Thread(target=store, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    rng = random.Random(9)
    try:
        for _ in range(60):
            size = rng.choice([0, 10, 500, 3000])
            cache.resize(size)
            assert cache.stats().weight <= size + len(threads)  # tokens of stores under way
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert cache._check()
