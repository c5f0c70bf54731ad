"""Bounded caches under floods, and under keys that are chosen to hurt: what is hot stays."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import pytest

from lapse import TTLCache
from support import Key, check, run_python
from table_model import mixed

SIZES = [5, 10, 64, 784, 1024, 3000]
NAMES: dict[str, Callable[[str, int], Any]] = {
    "str": lambda kind, n: f"{kind}:{n}",
    "int": lambda kind, n: n if kind == "hot" else -2 - n,
    "tuple": lambda kind, n: (kind, n),
}
#: How a key that is asked for once comes in.
STORES: dict[str, Callable[[Any, list[Any]], object]] = {
    "set": lambda cache, keys: [cache.set(key, 1) for key in keys],
    "get, then set": lambda cache, keys: [cache.get(key) or cache.set(key, 1) for key in keys],
    "set_many": lambda cache, keys: cache.set_many(dict.fromkeys(keys, 1)),
    "get_or_load": lambda cache, keys: [cache.get_or_load(key, repr) for key in keys],
}


def ask(cache: Any, keys: Iterable[Any]) -> int:
    """A miss stores the key; how many hits there were."""
    hits = 0
    for key in keys:
        if cache.get(key) is None:
            cache.set(key, 1)
        else:
            hits += 1
    return hits


def hot_left(cache: Any, maxsize: int, name: str, store: str) -> float:
    """The part of a hot set that is left by ten times as many keys as fit, each asked for once."""
    hot = [NAMES[name]("hot", n) for n in range(maxsize * 4 // 5)]
    for _ in range(4):
        ask(cache, hot)
    STORES[store](cache, [NAMES[name]("cold", n) for n in range(10 * maxsize)])
    return sum(key in cache for key in hot) / len(hot)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("maxsize", SIZES)
def test_a_flood_leaves_what_is_hot(maxsize: int, name: str, store: str) -> None:
    """At least four in five; exact LRU keeps nothing."""
    cache: Any = TTLCache(None, None, maxsize=maxsize)
    assert hot_left(cache, maxsize, name, store) >= 0.8
    assert len(list(cache)) == maxsize
    check(cache)
    cache = TTLCache(None, None, maxsize=maxsize, policy="lru")
    assert hot_left(cache, maxsize, name, store) == 0


@pytest.mark.parametrize("maxsize", SIZES)
def test_what_becomes_hot_in_a_flood_gets_in(maxsize: int) -> None:
    """A hot set that is first asked for in the midst of a flood is soon there, and stays."""
    cache: Any = TTLCache(None, None, maxsize=maxsize)
    rng, hot = random.Random(maxsize), [f"hot:{n}" for n in range(maxsize // 2)]
    hits = 0
    ask(cache, range(maxsize))
    for turn in range(20):
        cold = range((turn + 1) * maxsize, (turn + 2) * maxsize)
        requests = rng.sample([*hot, *cold], len(hot) + len(cold))
        hits = ask(cache, requests)
    assert hits >= 0.9 * len(hot)


@pytest.mark.parametrize("maxsize", SIZES)
def test_what_was_pumped_up_goes(maxsize: int) -> None:
    """Keys that were asked for ever so often make way when others are asked for."""
    cache: Any = TTLCache(None, None, maxsize=maxsize)
    pumped, hot = list(range(maxsize)), [f"hot:{n}" for n in range(maxsize * 4 // 5)]
    ask(cache, pumped)
    for _ in range(20 + 300_000 // maxsize):
        cache.gather(pumped)
    for _ in range(60):
        hits = ask(cache, hot)
    assert hits == len(hot)
    assert cache._check()


# --- Hostile keys ---


def alike(count: int) -> list[int]:
    """Integers whose mixed hashes begin with the same six bits."""
    found: list[int] = []
    n = 0
    while len(found) < count:
        n += 1
        if mixed(n) >> 58 == 0:
            found.append(n)
    return found


HOSTILE: dict[str, Callable[[int], list[Any]]] = {
    "equal low bits": lambda count: [n << 20 for n in range(count)],
    "multiples of 2**32": lambda count: [n << 32 for n in range(count)],
    "equal high bits": lambda count: [(1 << 60) + n for n in range(count)],
    "far apart": lambda count: [n * 0x9E3779B97F4A7C15 for n in range(count)],
    "negative": lambda count: [-2 - n for n in range(count)],
    "floats": lambda count: [n / 1024 for n in range(count)],
    "one segment": alike,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_keys_cost_no_hits(kind: str) -> None:
    """Whatever pattern is in them, they are hit as often as other keys."""
    count, maxsize = 6000, 1200
    weights = list(accumulate(1 / (n + 1) for n in range(count)))
    numbers = random.Random(5).choices(range(count), cum_weights=weights, k=40_000)
    hits = []
    for keys in (list(range(count)), HOSTILE[kind](count)):
        cache: Any = TTLCache(None, None, maxsize=maxsize, seed=1)
        hits.append(ask(cache, [keys[n] for n in numbers]))
        assert len(list(cache)) == maxsize
        assert cache._check()
    assert hits[1] / hits[0] == pytest.approx(1, abs=0.02)


EQUAL: dict[str, Callable[[int], list[Any]]] = {
    "one hash": lambda count: [Key(n, 7) for n in range(count)],
    "few hashes": lambda count: [Key(n, n % 5 << 40) for n in range(count)],
    "one hash of ints": lambda count: [n * (2**61 - 1) for n in range(count)],
}


@pytest.mark.parametrize("policy", ["duel", "lru"])
@pytest.mark.parametrize("maxsize", [1, 2, 20, 150])
@pytest.mark.parametrize("kind", EQUAL | HOSTILE)
def test_hostile_keys_are_told_apart(kind: str, maxsize: int, policy: str) -> None:
    """Each has its own value, the bound holds, and what is left out is absent."""
    rng, keys = random.Random(kind), (EQUAL | HOSTILE)[kind](3 * maxsize)
    cache: Any = TTLCache(None, None, maxsize=maxsize, policy=policy)
    for _ in range(1500):
        n = rng.randrange(len(keys))
        if rng.random() < 0.5:
            cache.set(keys[n], n)
            assert cache.get(keys[n]) == n
        elif rng.random() < 0.3:
            cache.delete(keys[n])
            assert keys[n] not in cache
        assert cache.get(keys[n]) in (n, None)
        assert len(cache) <= maxsize
    cache.set_many((key, n) for n, key in enumerate(keys))
    assert sorted(n for _, n in cache.items()) == sorted(
        n for n in range(len(keys)) if keys[n] in cache
    )
    assert len(list(cache)) == maxsize
    check(cache)


WHAT_IS_LEFT = """if True:
    import random
    from lapse import TTLCache
    cache = TTLCache(None, None, maxsize=1000, seed={seed})
    for n in random.Random(1).choices(range(4000), k=30_000):
        cache.get(f"k{{n}}") or cache.set(f"k{{n}}", 1)
    print(sorted(cache))
"""


def test_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONHASHSEED and the cache's own seed fix what goes; without either others go."""

    def left(hash_seed: int | str, seed: int | None) -> str:
        monkeypatch.setenv("PYTHONHASHSEED", str(hash_seed))
        return run_python(WHAT_IS_LEFT.format(seed=seed)).stdout

    fixed = left(1, 1)
    assert fixed == left(1, 1)
    others = [left(2, 1), left(1, 2), left("random", 1), left(1, None)]
    assert fixed not in others
