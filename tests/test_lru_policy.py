"""Bounded caches: exact least-recently-used eviction, compared with an OrderedDict, and the bound.

What counts as a use: whatever reads or stores one entry (get, c[k], gather, get_many, get_or_load,
set, incr, touch, fill). What only looks (in, expires_in, tags, len, iteration, patterns) does not,
nor does an add() or setdefault() that finds the key there. `dict(cache)` reads key by key.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lapse import ManualClock, TTLCache
from lapse.traces import open_trace
from support import KINDS, Dying, Key, cache_maker, check, switching, wait_until

LONG = os.environ.get("LAPSE_LONG") == "1"
TRACES = Path(__file__).parents[1].parent / "shared" / "traces"
MISSING = object()

# Hit ratios of exact LRU in percent, as published with the traces.
HIT_RATIOS = [
    ("web07.trace.xz", 1024, 50.56),
    ("web07.trace.xz", 4096, 61.03),
    ("lirs-sprite.gz", 400, 70.77),
    ("arc-oltp.gz", 1000, 32.83),
    ("arc-oltp.gz", 10000, 60.70),
    ("zipf-1.0.gz", 100, 57.53),
]
LONG_HIT_RATIOS = [("orm-night.trace.xz", 4096, 84.33), ("orm-night.trace.xz", 1024, 67.36)]


class Evicted:
    """A listener that notes what was evicted, in order."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def __call__(self, key: Any, value: Any, cause: str) -> None:
        if cause == "evicted":
            self.pairs.append((key, value))

    def taken(self) -> list[tuple[Any, Any]]:
        """What was evicted since the last time."""
        pairs, self.pairs = self.pairs, []
        return pairs


class Model:
    """Exact LRU over an OrderedDict of key -> (value, deadline): oldest first.

    It holds no expired entries: the test sweeps both caches whenever the clock has moved.
    """

    def __init__(self, maxsize: int, ttl: float, clock: ManualClock, sliding: bool) -> None:
        self.entries: OrderedDict[Any, tuple[Any, float, float]] = OrderedDict()
        self.maxsize, self.ttl, self.clock, self.sliding = maxsize, ttl, clock, sliding
        self.evicted: list[tuple[Any, Any]] = []

    def get(self, key: Any, default: Any = None) -> Any:
        if key not in self.entries:
            return default
        value, deadline, ttl = self.entries.pop(key)
        self.entries[key] = value, self.clock() + ttl if self.sliding else deadline, ttl
        return value

    def set(self, key: Any, value: Any, ttl: float | None = None) -> None:
        ttl = self.ttl if ttl is None else ttl
        self._put(key, value, self.clock() + ttl, ttl)

    def _put(self, key: Any, value: Any, deadline: float, ttl: float) -> None:
        if self.maxsize == 0:
            return
        if key not in self.entries and len(self.entries) == self.maxsize:
            oldest, (old, _, _) = self.entries.popitem(last=False)
            self.evicted.append((oldest, old))
        self.entries[key] = value, deadline, ttl
        self.entries.move_to_end(key)

    def gather(self, keys: list[Any], default: Any = None) -> list[Any]:
        return [self.get(key, default) for key in keys]

    def get_many(self, keys: list[Any]) -> dict[Any, Any]:
        found = {key: self.get(key, MISSING) for key in keys}
        return {key: value for key, value in found.items() if value is not MISSING}

    def add(self, key: Any, value: Any, ttl: float | None = None) -> bool:
        if key in self.entries:
            return False
        self.set(key, value, ttl)
        return True

    def setdefault(self, key: Any, value: Any) -> Any:
        self.add(key, value)
        return self.entries[key][0] if key in self.entries else value

    def incr(self, key: Any, delta: int = 1) -> Any:
        if key not in self.entries:
            self.set(key, delta)
            return delta
        value, deadline, ttl = self.entries[key]
        self._put(key, value + delta, deadline, ttl)
        return value + delta

    def touch(self, key: Any, ttl: float | None = None) -> bool:
        if key not in self.entries:
            return False
        self.set(key, self.entries[key][0], ttl)
        return True

    def set_many(self, pairs: list[tuple[Any, Any]]) -> None:
        for key, value in pairs:
            self.set(key, value)

    def touch_many(self, keys: list[Any]) -> int:
        return sum([self.touch(key) for key in keys])

    def pop(self, key: Any, default: Any = None) -> Any:
        return self.entries.pop(key, (default,))[0]

    def delete(self, key: Any) -> bool:
        return self.entries.pop(key, None) is not None

    def delete_many(self, keys: list[Any]) -> int:
        return sum([self.delete(key) for key in keys])

    def delete_pattern(self, pattern: str) -> int:
        assert pattern.endswith("*")
        return self.delete_many([key for key in self.entries if key.startswith(pattern[:-1])])

    def get_or_load(self, key: Any, loader: Callable[[Any], Any]) -> Any:
        if key in self.entries:
            return self.get(key)
        self.set(key, loader(key))
        return loader(key)

    def clear(self) -> None:
        self.entries.clear()

    def expire(self) -> int:
        now = self.clock()
        return self.delete_many([k for k, (_, end, _) in self.entries.items() if end <= now])

    def look(self) -> dict[Any, Any]:
        return {key: value for key, (value, _, _) in self.entries.items()}

    def taken(self) -> list[tuple[Any, Any]]:
        pairs, self.evicted = self.evicted, []
        return pairs


def steps(rng: random.Random, names: list[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Calls of random methods with random arguments, for ever."""
    key = lambda: rng.choice(names)  # noqa: E731 - a draw of its own each time
    many = lambda: [key() for _ in range(rng.randrange(8))]  # noqa: E731
    ttl = lambda: rng.choice([None, None, 2, 15])  # noqa: E731
    kinds: list[tuple[int, Callable[[], tuple[str, tuple[Any, ...]]]]] = [
        (20, lambda: ("get", (key(), MISSING))),
        (20, lambda: ("set", (key(), rng.randrange(100), ttl()))),
        (4, lambda: ("gather", (many(), MISSING))),
        (2, lambda: ("get_many", (many(),))),
        (4, lambda: ("add", (key(), rng.randrange(100), ttl()))),
        (3, lambda: ("setdefault", (key(), rng.randrange(100)))),
        (4, lambda: ("incr", (key(), 1))),
        (4, lambda: ("touch", (key(), ttl()))),
        (2, lambda: ("touch_many", (many(),))),
        (2, lambda: ("set_many", ([(name, rng.randrange(100)) for name in many()],))),
        (3, lambda: ("get_or_load", (key(), len))),
        (4, lambda: ("delete", (key(),))),
        (2, lambda: ("pop", (key(), MISSING))),
        (1, lambda: ("delete_many", (many(),))),
        (1, lambda: ("delete_pattern", (rng.choice(["k1*", "k2*", "x*"]),))),
    ]
    weights = [weight for weight, _ in kinds]
    while True:
        yield rng.choices(kinds, weights)[0][1]()


LOOKS: list[Callable[[Any, Any], object]] = [
    lambda cache, key: key in cache,
    lambda cache, key: key in cache and cache.expires_in(key),
    lambda cache, key: cache.tags(key),
    lambda cache, key: list(cache.items()),
    lambda cache, key: cache.get_keys_matching_pattern("k*"),
    lambda cache, key: len(cache),
    lambda cache, key: cache.copy(),
    lambda cache, key: repr(cache),
]


@pytest.mark.parametrize("maxsize", [0, 1, 2, 3, 7, 50, 400])
def test_agrees_with_the_model(kind: str, maxsize: int) -> None:
    """Whatever is called, every answer and every eviction, in its order, is the model's."""
    rng = random.Random(f"{kind} {maxsize}")
    clock, evicted = ManualClock(), Evicted()
    cache = cache_maker(KINDS[kind][0], clock, KINDS[kind][1])(
        10, maxsize=maxsize, policy="lru", listener=evicted
    )
    model = Model(maxsize, 10, clock, kind == "sliding")
    names = [f"k{n}" for n in range(2 * maxsize + 3)]
    turns = 40_000 if LONG else 4_000
    for turn, (method, args) in zip(range(turns), steps(rng, names), strict=False):
        got = getattr(cache, method)(*args)
        assert got == getattr(model, method)(*args), (method, args)
        assert evicted.taken() == model.taken(), (method, args)
        if turn % 4 == 0:
            rng.choice(LOOKS)(cache, rng.choice(names))
        if turn % 10 == 0:
            clock.advance(rng.choice([0.1, 1, 3]))
            cache.expire(), model.expire()
        if turn % 50 == 0:
            assert dict(cache.items()) == model.look()
            assert cache._check()
        if turn % 900 == 0:
            cache.clear(), model.clear()
    drain(cache, model, evicted)


def drain(cache: Any, model: Model, evicted: Evicted) -> None:
    """New keys push out all that is left, in the model's order."""
    for n in range(model.maxsize):
        cache.set(("new", n), n)
        model.set(("new", n), n)
    assert evicted.taken() == model.taken()
    check(cache)


class TestEviction:
    @pytest.fixture
    def evicted(self) -> Evicted:
        """Notes what is evicted."""
        return Evicted()

    def test_the_least_recently_used_goes(self, make, evicted):
        """The one that was not used for longest makes way, and only for a new key."""
        cache = make(maxsize=3, policy="lru", listener=evicted)
        cache.set_many({"a": 1, "b": 2, "c": 3})
        cache.get("a")
        cache.set("b", 4)
        cache.set("d", 5)
        cache.set("e", 6)
        assert evicted.taken() == [("c", 3), ("a", 1)]
        assert dict(cache) == {"b": 4, "d": 5, "e": 6}

    @pytest.mark.parametrize("count", [5, 200])
    def test_reads_in_bulk_count_in_their_order(self, make, evicted, count):
        """gather() and get_many() use the keys one after another."""
        cache = make(maxsize=count, policy="lru", listener=evicted)
        cache.set_many((n, n) for n in range(count))
        order = random.Random(1).sample(range(count), count)
        assert cache.gather(order) == order
        cache.set_many((f"new {n}", n) for n in range(count))
        assert [key for key, _ in evicted.taken()] == order

    def test_arrays_of_numpy_count(self, make, evicted):
        """So do the integers of an array."""
        numpy = pytest.importorskip("numpy")
        cache = make(maxsize=100, policy="lru", listener=evicted)
        cache.set_many((n, n) for n in range(100))
        order = random.Random(2).sample(range(100), 100)
        assert cache.gather(numpy.array(order)) == order
        cache.set_many((f"new {n}", n) for n in range(100))
        assert [key for key, _ in evicted.taken()] == order

    def test_maxsize_0_holds_nothing(self, make):
        """Every call works, and nothing stays."""
        cache = make(maxsize=0, policy="lru")
        cache.set("a", 1)
        cache["b"] = 2
        cache.set_many({"c": 3})
        assert cache.add("d", 4)
        assert cache.setdefault("e", 5) == 5
        assert cache.incr("f", 6) == 6
        assert cache.get_or_load("g", len) == 1
        cache.fill(cache.lease("h"), 8)
        assert (len(cache), dict(cache), cache.stats().evictions) == (0, {}, 0)
        check(cache)

    def test_the_old_value_dies(self, make):
        """What is evicted is given up, after the call, with no lock held."""
        deaths = []
        cache = make(maxsize=1, policy="lru")
        cache.set("a", Dying(lambda: deaths.append(dict(cache))))
        cache.set("b", 2)
        assert deaths == [{"b": 2}] or deaths == [{}]
        assert dict(cache) == {"b": 2}

    def test_a_listener_may_store(self, make):
        """A listener that stores what was evicted keeps the bound, and ends."""
        stored = []

        def again(key: Any, value: Any, cause: str) -> None:
            if cause == "evicted" and len(stored) < 5:
                stored.append(key)
                cache.set(key, value)

        cache = make(maxsize=2, policy="lru", listener=again)
        cache.set_many((n, n) for n in range(4))
        assert len(cache) == 2
        assert len(stored) == 5
        check(cache)

    def test_figures(self, make):
        """`evictions` counts live entries that made way; they are no deletes and no expirations."""
        cache = make(maxsize=10, policy="lru")
        cache.set_many((n, n) for n in range(25))
        stats = cache.stats()
        assert (stats.evictions, stats.size, stats.sets) == (15, 10, 25)
        assert (stats.deletes, stats.expirations, stats.replaced) == (0, 0, 0)

    def test_expired_entries_make_way_as_such(self, make, clock):
        """An expired entry whose turn it is counts as expired, not as evicted."""
        causes = []
        cache = make(
            maxsize=2, policy="lru", listener=lambda key, value, cause: causes.append((key, cause))
        )
        cache.set("a", 1, 1)
        cache.set("b", 2)
        clock.advance(1)
        cache.set("c", 3)
        assert causes == [("a", "expired")]
        assert cache.stats().evictions == 0
        assert dict(cache) == {"b": 2, "c": 3}

    def test_keys_with_equal_hashes(self, make, evicted):
        """Entries are told apart when all of them have one hash."""
        cache = make(maxsize=8, policy="lru", listener=evicted)
        keys = [Key(n, 7) for n in range(40)]
        for n, key in enumerate(keys):
            cache.set(key, n)
            cache.get(keys[max(0, n - 3)])
            assert len(cache) == min(n + 1, 8)
        assert len(evicted.pairs) == 32
        check(cache)

    def test_tags_and_patterns_forget_what_was_evicted(self, make):
        """Evicted entries are in no index: by tag and by pattern only the rest goes."""
        cache = make(maxsize=9_000, policy="lru")
        for n in range(20_000):
            cache.set(f"t{n % 10}:{n}", n, tags=[f"tag{n % 7}"])
        left = dict(cache)
        assert cache.delete_pattern("t3:*") == sum(key.startswith("t3:") for key in left)
        left = dict(cache)
        assert cache.delete_tag("tag2") == sum(value % 7 == 2 for value in left.values())
        check(cache)

    def test_an_outdated_fill_evicts_nothing(self, make):
        """A load that may not be stored makes nothing go."""
        cache = make(maxsize=2, policy="lru")
        lease = cache.lease("c")
        cache.set_many({"a": 1, "b": 2})
        cache.delete("c")
        assert cache.fill(lease, 3) is False
        assert dict(cache.items()) == {"a": 1, "b": 2}
        check(cache)


class TestCopies:
    @pytest.mark.parametrize("maxsize", [0, 3])
    @pytest.mark.parametrize(
        "twin",
        [lambda c: c.copy(), copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
        ids=["copy", "__copy__", "deepcopy", "pickle"],
    )
    def test_copies_keep_the_bound(self, kind, maxsize, twin):
        """A copy holds the same entries and no more than the original may."""
        cache = KINDS[kind][0](
            60, cleanup_interval=None, maxsize=maxsize, policy="lru", **KINDS[kind][1]
        )
        cache.set_many({"a": 1, "b": 2})
        other = twin(cache)
        assert other == cache
        other.set_many((n, n) for n in range(10))
        assert len(other) == maxsize
        assert len(cache) == min(2, maxsize)
        assert other._check()

    def test_merging_keeps_the_bound(self, make):
        """`|` and update() hold to it too."""
        cache = make(maxsize=3, policy="lru")
        cache.update({n: n for n in range(10)})
        assert len(cache | {n: n for n in range(20, 30)}) == 3
        cache |= {"x": 1, "y": 2}
        assert len(cache) == 3
        assert set(cache) >= {"x", "y"}


@pytest.mark.parametrize("wrong", [-1, 2**63, 1.5, "3", True])
def test_bounds_that_are_none(make, wrong):
    """maxsize is a natural number, or None."""
    with pytest.raises((TypeError, ValueError), match="maxsize"):
        make(maxsize=wrong, policy="lru")


@pytest.mark.parametrize("wrong", ["fifo", 1])
def test_policies_that_are_none(make, wrong):
    """policy is None or one of the known names."""
    with pytest.raises(ValueError, match="policy"):
        make(policy=wrong)


@pytest.mark.parametrize(("name", "maxsize", "percent"), HIT_RATIOS + (LONG_HIT_RATIOS * LONG))
def test_real_traces(name: str, maxsize: int, percent: float) -> None:
    """Hit ratios on real traces are those of exact LRU, to the last published digit."""
    if not (TRACES / name).is_file():
        pytest.skip("no real traces: ../shared/traces")
    cache: Any = TTLCache(None, None, maxsize=maxsize, policy="lru")
    hits = requests = 0
    with open_trace(str(TRACES / name)) as trace:
        for chunk in trace:
            for key in chunk.keys:
                if cache.get(key) is None:
                    cache[key] = True
                else:
                    hits += 1
            requests += len(chunk.keys)
            assert len(cache) <= maxsize
    assert f"{100 * hits / requests:.2f}" == f"{percent:.2f}"
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (hits, requests - hits)
    assert stats.evictions == requests - hits - len(cache)
    assert cache._check()


_switch_often = switching(2e-6, autouse=False)


def random_calls(cache: Any, maxsize: int, rng: random.Random) -> Callable[[], object]:
    """A function that does something to the cache, at random."""
    key = lambda: rng.randrange(3 * maxsize)  # noqa: E731 - a draw of its own each time
    actions: list[Callable[[], object]] = [
        *([lambda: cache.set(key(), [1])] * 8),
        *([lambda: cache.get(key())] * 8),
        lambda: cache.set(key(), [2], 1),
        lambda: cache.add(key(), 3),
        lambda: cache.delete(key()),
        lambda: cache.pop(key(), None),
        lambda: cache.touch(key()),
        lambda: cache.gather([key() for _ in range(40)]),
        lambda: cache.set_many((key(), n) for n in range(10)),
        lambda: cache.fill(cache.lease(key()), 4),
    ]
    rare: list[Callable[[], object]] = [
        lambda: cache.clock.advance(0.5),
        cache.clear,
        cache.expire,
        lambda: cache.delete_pattern("*"),
        cache.copy,
        cache.popitem,
    ]

    def act() -> None:
        with suppress(KeyError):  # popitem() of an empty cache
            rng.choice(rare if rng.random() < 0.003 else actions)()

    return act


@pytest.mark.usefixtures("_switch_often")
@pytest.mark.parametrize("maxsize", [1, 10, 2_000])
def test_the_bound_holds_under_threads(maxsize: int) -> None:
    """len() is never above maxsize, whatever eight threads do; in the end all is sound."""
    cache: Any = TTLCache(60, None, maxsize=maxsize, policy="lru", clock=ManualClock())
    longest, done = [0], threading.Event()
    errors: list[BaseException] = []

    def look() -> None:
        """While all threads wait."""
        assert len(list(cache)) == len(cache) <= maxsize
        check(cache)

    pause = threading.Barrier(8, look, timeout=60)

    def work(thread: int) -> None:
        act = random_calls(cache, maxsize, random.Random(thread))
        for turn in range(60_000 if LONG else 6_000):
            act()
            if turn % 600 == 0:
                pause.wait()

    def watch() -> None:
        while not done.is_set():
            longest[0] = max(longest[0], len(cache))

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    watcher = threading.Thread(target=guarded, args=(watch,))
    threads = [threading.Thread(target=guarded, args=(lambda n=n: work(n),)) for n in range(8)]
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wait_until(lambda: longest[0])
    done.set()
    watcher.join(60)
    assert errors == []
    assert longest[0] <= maxsize
    check(cache)
    cache.set_many((f"new {n}", n) for n in range(maxsize))
    assert len(cache) == maxsize
    assert all(isinstance(key, str) for key in cache)
