"""The default policy of bounded caches: what it keeps, and how often it hits on real traces."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from lapse import ManualClock, TTLCache
from lapse.traces import open_sample, open_trace
from support import percent_of_hits

TRACES = Path(__file__).resolve().parents[1].parent / "shared" / "traces"

#: Trace, size, and percent of hits of the simulator in benchmarks/policies.
HIT_RATIOS = [
    ("web07.trace.xz", 205, 43.76),
    ("web07.trace.xz", 6145, 65.05),
    ("lirs-cs.gz", 423, 24.07),
    ("lirs-cpp.gz", 37, 46.19),
    ("lirs-multi1.gz", 26, 19.47),
    ("lirs-sprite.gz", 708, 85.56),
    ("zipf-1.0.gz", 100, 67.68),
    ("arc-oltp.gz", 1869, 46.55),
]
#: Points: hashes differ from the simulator's, and with them what the hand meets first.
NEAR = 0.6


@pytest.mark.parametrize(("name", "maxsize", "percent"), HIT_RATIOS)
def test_real_traces(name: str, maxsize: int, percent: float) -> None:
    """It hits as often as the simulator that chose it."""
    if not (TRACES / name).is_file():
        pytest.skip("no real traces: ../shared/traces")
    cache: Any = TTLCache(None, None, maxsize=maxsize)
    with open_trace(str(TRACES / name)) as trace:
        found = percent_of_hits(trace, cache)
    assert found == pytest.approx(percent, abs=NEAR)
    assert len(cache) == maxsize
    assert cache._check()


def test_it_beats_lru_on_the_sample() -> None:
    """On the trace that comes with the package it hits more often than exact LRU does."""
    ratios = {}
    for policy in ("duel", "lru"):
        cache: Any = TTLCache(None, None, maxsize=1024, policy=policy)
        with open_sample() as trace:
            ratios[policy] = percent_of_hits(trace, cache)
    assert ratios["lru"] == pytest.approx(50.56, abs=0.005)
    assert ratios["duel"] > ratios["lru"] + 2


@pytest.mark.parametrize("policy", [None, "duel"])
def test_a_loop_larger_than_the_cache(policy: str | None) -> None:
    """What is asked for in turn stays in part; exact LRU would never hit."""
    cache: Any = TTLCache(None, None, maxsize=100, policy=policy)
    hits = 0
    for _ in range(20):
        for key in range(150):
            if cache.get(key) is None:
                cache[key] = True
            else:
                hits += 1
    assert hits > 0.5 * 19 * 150


@pytest.mark.parametrize("maxsize", [1, 2, 100, 5000])
def test_a_flood(maxsize: int) -> None:
    """Ten times as many keys as fit, each stored once, leave at least 4 in 5 of what was used."""
    cache: Any = TTLCache(None, None, maxsize=maxsize)
    hot = [f"hot {n}" for n in range(maxsize * 4 // 5)]
    for _ in range(4):
        for key in hot:
            if cache.get(key) is None:
                cache[key] = True
    for n in range(10 * maxsize):
        cache[n] = True
        assert n in cache
    assert sum(key in cache for key in hot) >= 0.8 * len(hot)
    assert len(cache) == maxsize
    assert cache._check()


@pytest.mark.parametrize("policy", ["duel", "lru"])
def test_what_has_expired_goes_first(policy: str) -> None:
    """Nothing that lives makes way while there is something that has expired."""
    clock, gone = ManualClock(), []
    cache: Any = TTLCache(
        None,
        None,
        maxsize=3000,
        policy=policy,
        clock=clock,
        listener=lambda key, value, cause: gone.append(cause),
    )
    for n in range(3000):
        cache.set(n, n, ttl=10 if n % 3 else None)
    clock.advance(11)
    for n in range(3000, 5000):
        cache.set(n, n)
    assert set(gone) == {"expired"}
    cache.set(5000, 5000)
    assert gone.count("evicted") == 1


@pytest.mark.parametrize("policy", [None, "duel", "lru"])
def test_copies_keep_the_bound(policy: str | None) -> None:
    """copy() and pickle make caches of the same bound and policy."""
    cache: Any = TTLCache(None, None, maxsize=50, policy=policy)
    cache.set_many((n, n) for n in range(80))
    for other in (cache.copy(), pickle.loads(pickle.dumps(cache))):
        assert dict(other.items()) == dict(cache.items())
        other.set_many((n, n) for n in range(100, 200))
        assert len(other) == 50
        assert other._check()


def test_clearing_begins_anew() -> None:
    """After clear() the cache fills again, and its bound holds."""
    cache: Any = TTLCache(None, None, maxsize=500)
    for round_ in range(3):
        cache.set_many((n, n) for n in range(1200))
        assert len(cache) == 500, round_
        cache.clear()
        assert len(cache) == 0
        assert cache._check()
