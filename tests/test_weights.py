"""Bounded caches whose entries weigh different amounts: never too much together."""

from __future__ import annotations

import pickle
import random
import threading
import time
from collections import OrderedDict
from typing import Any

import pytest

from lapse import TTLCache
from lapse.traces import open_sample
from support import percent_of_hits, switching

POLICIES = ["lru", "duel"]
_switch_often = switching(1e-5, autouse=False)


def weight_of(_: Any, value: Any) -> int:
    """A value is its weight, or has one, or weighs 1."""
    return value if isinstance(value, int) else getattr(value, "weight", 1)


@pytest.fixture(params=POLICIES)
def policy(request):
    """Each policy."""
    return request.param


@pytest.fixture
def weighed(make, policy):
    """Makes caches of each kind and policy that hold a weight of 100."""

    def made(**options: Any) -> Any:
        given = {"maxsize": 100, "weigher": weight_of, "policy": policy, "seed": 1}
        return make(60, **given | options)

    return made


def holds_true(cache: Any) -> None:
    """The weight is the sum of all weights, and at most what it may be."""
    assert cache._check()
    assert cache.stats().weight == sum(weight_of(k, v) for k, v in cache.items())
    assert cache.stats().weight <= cache.maxsize


class WeighedLRU:
    """What an exact LRU of weights does."""

    def __init__(self, maxsize: int) -> None:
        self.entries: OrderedDict[Any, int] = OrderedDict()
        self.maxsize = maxsize
        self.evicted = self.refused = 0

    def get(self, key: Any) -> int | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def set(self, key: Any, value: int) -> None:
        if value > self.maxsize:
            self.entries.pop(key, None)
            self.refused += 1
            return
        if key in self.entries:
            self.entries.move_to_end(key)
        while self.total(key) + value > self.maxsize:
            self.entries.popitem(last=False)
            self.evicted += 1
        self.entries[key] = value

    def total(self, besides: Any) -> int:
        return sum(weight for key, weight in self.entries.items() if key != besides)

    def resize(self, maxsize: int) -> None:
        self.maxsize = maxsize
        while sum(self.entries.values()) > maxsize:
            self.entries.popitem(last=False)
            self.evicted += 1


@pytest.mark.parametrize("seed", range(6))
def test_exact_lru_of_weights(seed: int) -> None:
    """Step by step the cache holds what the model holds, whatever comes."""
    rng = random.Random(seed)
    cache: Any = TTLCache(None, None, maxsize=200, weigher=weight_of, policy="lru")
    model = WeighedLRU(200)
    for _ in range(3000):
        key, weight = rng.randrange(60), rng.choice([0, 1, 5, 20, 60, 199, 200, 201])
        match rng.randrange(12):
            case 0 | 1 | 2 | 3 | 4:
                cache.set(key, weight)
                model.set(key, weight)
            case 5:
                cache.delete(key)
                model.entries.pop(key, None)
            case 6 if rng.random() < 0.1:
                size = rng.choice([50, 200, 400])
                cache.resize(size)
                model.resize(size)
            case _:
                assert cache.get(key) == model.get(key)
        assert dict(cache.items()) == model.entries
    assert cache.stats().evictions == model.evicted > 100
    assert cache.stats().refused == model.refused > 10
    holds_true(cache)


@pytest.mark.parametrize("seed", range(4))
def test_never_too_heavy(weighed, clock, seed):
    """After every step of any kind the entries weigh at most what they may."""
    rng = random.Random(seed)
    cache = weighed()
    steps = {
        "set": lambda k, w: cache.set(k, w, ttl=rng.choice([None, 1, 30])),
        "set_many": lambda k, w: cache.set_many({k + i: w for i in range(5)}),
        "tagged": lambda k, w: cache.set(k, w, tags=[f"tag{w % 3}"]),
        "add": lambda k, w: cache.add(k, w),
        "setdefault": lambda k, w: cache.setdefault(k, w),
        "incr": lambda k, w: cache.incr(k, w % 7),
        "load": lambda k, w: cache.get_or_load(k, lambda _: w),
        "get": lambda k, w: [cache.get(k) for _ in range(3)],
        "delete": lambda k, w: cache.delete(k),
        "delete_tag": lambda k, w: cache.delete_tag(f"tag{w % 3}"),
        "touch": lambda k, w: cache.touch(k, 5),
        "later": lambda k, w: clock.advance(0.5),
        "expire": lambda k, w: cache.expire(),
    }
    rare = {"clear": lambda k, w: cache.clear(), "resize": lambda k, w: cache.resize(50 + w)}
    for _ in range(2500):
        names = list(rare if rng.random() < 0.01 else steps)
        step = (steps | rare)[rng.choice(names)]
        step(rng.randrange(80), rng.choice([0, 1, 3, 10, 40, 100, 101]))
        assert cache.stats().weight <= cache.maxsize
    holds_true(cache)
    assert cache.stats().evictions > 100
    assert cache.stats().refused > 10


def test_too_heavy(weighed):
    """What is heavier than all may be is not stored, and the older value of its key goes."""
    told: list[Any] = []
    cache = weighed(listener=lambda *event: told.append(event))
    cache.set("a", 30)
    cache.set("b", 30)
    cache.set("a", 101)
    assert dict(cache.items()) == {"b": 30}
    assert told == [("a", 30, "replaced")]
    assert cache.setdefault("c", 101) == 101
    assert cache.add("c", 500)
    assert cache.get_or_load("d", lambda _: 102) == 102
    assert cache.incr("b", 80) == 110
    assert len(cache) == 0
    assert cache.stats().refused == 5
    holds_true(cache)


def test_too_heavy_and_there_already(weighed):
    """`add` and `setdefault` leave what is there alone, whatever the new value weighs."""
    cache = weighed()
    cache.set("a", 30)
    assert cache.setdefault("a", 101) == 30
    assert not cache.add("a", 101)
    assert cache.stats().refused == 0


def test_a_stale_value_goes_for_one_that_is_too_heavy(weighed, clock):
    """A reload whose value cannot be stored ends the grace of the old one."""
    cache = weighed(stale_ttl=100)
    cache.set("a", 1)
    clock.advance(61)
    assert cache.get_or_load("a", lambda _: 101) == 101
    assert cache.get_or_load("a", lambda _: 2) == 2


def test_a_heavier_value_makes_others_go(weighed):
    """What becomes heavier stays within the bound, and what becomes lighter makes room."""
    cache = weighed()
    cache.set_many(dict.fromkeys(range(10), 10))
    cache.set(9, 55)
    assert cache.get(9) == 55
    assert len(cache) == 5
    cache.set(9, 5)
    cache.set_many(dict.fromkeys(range(20, 25), 10))
    assert len(cache) == 10
    holds_true(cache)


def test_a_weight_of_nothing(weighed):
    """Entries that weigh nothing take no room."""
    cache = weighed()
    cache.set_many(dict.fromkeys(range(1000), 0))
    assert len(cache) == 1000
    assert cache.stats().evictions == cache.stats().weight == 0
    cache.set_many(dict.fromkeys(range(2000, 2020), 10))
    holds_true(cache)


@pytest.mark.parametrize("answer", [-1, 2**32, 1.0, "1", None])
def test_wrong_answers(weighed, answer):
    """A weigher that answers no weight is the caller's error, and nothing changes."""
    cache = weighed(weigher=lambda key, value: answer if value == "bad" else 1)
    cache.set("a", "good")
    for call in (
        lambda: cache.set("a", "bad"),
        lambda: cache.set("b", "bad", tags=["t"]),
        lambda: cache.setdefault("b", "bad"),
        lambda: cache.set_many({"a": "bad"}),
        lambda: cache.get_or_load("b", lambda _: "bad"),
    ):
        with pytest.raises((TypeError, ValueError), match="weigher"):
            call()
    assert dict(cache.items()) == {"a": "good"}
    holds_true(cache)


def test_a_weigher_that_raises(weighed):
    """Its exception is the caller's; the cache is as before."""
    cache = weighed(weigher=lambda key, value: 1 // value)
    cache.set("a", 1)
    for call in (lambda: cache.set("a", 0), lambda: cache.incr("a", -1)):
        with pytest.raises(ZeroDivisionError):
            call()
    assert dict(cache.items()) == {"a": 1}


@pytest.mark.parametrize("deed", ["set", "delete", "clear", "resize", "close", "same"])
def test_a_weigher_that_uses_the_cache(weighed, deed):
    """Whatever a weigher does to the cache, nothing hangs and the bound is kept."""
    cache: Any = None
    deeds = {
        "set": lambda: cache.set("other", 40),
        "delete": lambda: cache.delete("a"),
        "clear": lambda: cache.clear(),
        "resize": lambda: cache.resize(60),
        "close": lambda: cache.close(),
        "same": lambda: cache.set("a", 41),
    }

    def weigher(_: Any, value: int) -> int:
        if value == 50:
            deeds[deed]()
        return value

    cache = weighed(weigher=weigher)
    cache.set_many(dict.fromkeys(range(10), 10))
    cache.set("a", 50)
    if deed != "close":
        assert cache.get("a") == 50
        holds_true(cache)


def test_options():
    """A weigher is callable, and goes with a bound."""
    with pytest.raises(TypeError, match="weigher"):
        TTLCache(maxsize=10, weigher=10)
    with pytest.raises(ValueError, match="maxsize"):
        TTLCache(weigher=weight_of)


def test_copies(weighed):
    """A copy and an unpickled cache weigh the same, and keep the bound."""
    cache = weighed(clock=None)
    cache.set_many({n: n for n in range(10)})
    for twin in (cache.copy(), pickle.loads(pickle.dumps(cache))):
        assert twin.stats().weight == 45
        twin.set("a", 90)
        holds_true(twin)


@pytest.mark.parametrize("weight", [3, 1000])
def test_equal_weights_change_nothing(weight: int) -> None:
    """Where all weigh the same, the policy hits as often as one that counts entries."""
    hits = []
    for options in ({"maxsize": 400}, {"maxsize": 400 * weight, "weigher": lambda k, v: weight}):
        cache: Any = TTLCache(None, None, **options)
        with open_sample() as trace:
            hits.append(percent_of_hits(trace, cache))
        assert len(cache) == 400
    assert hits[1] == pytest.approx(hits[0], abs=1.0)


@pytest.mark.usefixtures("_switch_often")
def test_threads(weighed):
    """However many threads store, the weight is never above the bound."""
    cache, errors, done = weighed(clock=None), [], threading.Event()

    def store(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(1500):
            cache.set(rng.randrange(50), rng.choice([0, 1, 7, 30, 100, 101]))

    def watch() -> None:
        while not done.is_set():
            if (weight := cache.stats().weight) > 100:
                errors.append(weight)

    watcher = threading.Thread(target=watch)
    writers = [threading.Thread(target=store, args=(seed,)) for seed in range(8)]
    for thread in (watcher, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    watcher.join()
    assert errors == []
    holds_true(cache)


@pytest.mark.parametrize("how", ["set", "add", "setdefault", "incr"])
def test_a_load_that_a_heavy_value_outdates(weighed, how):
    """What was read before a value was stored in vain does not come back."""
    cache = weighed()
    ways = {
        "set": lambda: cache.set("a", 500),
        "add": lambda: cache.add("a", 500),
        "setdefault": lambda: cache.setdefault("a", 500),
        "incr": lambda: cache.incr("a", 500),
    }

    def load(_: Any) -> int:
        ways[how]()
        return 1

    assert cache.get_or_load("a", load) == 1
    assert "a" not in cache


def test_an_outdated_load_that_is_too_heavy(weighed):
    """It takes nothing away."""
    cache = weighed()
    lease = cache.lease("a")
    cache.set("a", 2)
    assert not cache.fill(lease, 500)
    assert cache.get("a") == 2
    assert cache.stats().fenced_stores == 1


def test_an_entry_does_not_make_way_for_itself(weighed):
    """One that becomes heavier stays, whichever was used last."""
    for first, second in (("a", "b"), ("b", "a")):
        cache = weighed()
        cache.set(first, 50)
        cache.set(second, 45)
        assert cache.incr("a", 10) == cache.get("a") > 50
        assert "b" not in cache
        cache.set("c", 20)
        cache.set("a", 90)
        assert dict(cache.items()) == {"a": 90}


def test_only_what_is_stored_counts(weighed):
    """Refused values are no sets; an older value that goes with one was replaced."""
    cache = weighed()
    cache.set("a", 1)
    cache.set("a", 500)
    cache.add("b", 500)
    cache.set("c", 1)
    cache.incr("c", 500)
    stats = cache.stats()
    assert (stats.sets, stats.refused, stats.replaced) == (2, 3, 2)


def test_nothing_fits_into_nothing(weighed):
    """`maxsize=0` stores nothing, not even what weighs nothing."""
    cache = weighed(maxsize=0)
    cache.set("a", 0)
    assert len(cache) == 0
    assert cache.stats().refused == 1


def test_room_for_a_heavy_value_is_made_step_by_step(weighed):
    """A value that makes thousands go costs about as much as they do, one by one."""
    cache = weighed(maxsize=60_000, clock=None)
    cache.set_many(dict.fromkeys(range(60_000), 1))
    start = time.process_time()
    cache.set("heavy", 59_000)
    assert time.process_time() - start < 2  # a lap of the table for each would add up
    assert cache.get("heavy") == 59_000
    holds_true(cache)
