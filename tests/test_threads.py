"""Many threads on one cache, with and without a GIL: no torn entry, no lost update, no crash."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from lapse import ManualClock
from support import KINDS, PATIENCE, Key, check, switching

THREADS = 6
LONG = 40 if os.environ.get("LAPSE_LONG") == "1" else 1


_switch_often = switching(2e-6)


def in_threads(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Runs work(0), work(1), … at once; gives their results, or raises the first error."""
    start = threading.Barrier(count)
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(n: int) -> None:
        start.wait()
        try:
            results[n] = work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
    return results


class Pair:
    """A value that says which key it was stored under, twice."""

    def __init__(self, key: Any, n: int):
        self.key, self.n, self.again = key, n, key


def verify(key: Any, value: Any) -> None:
    assert value is None or (value.key == key and value.again == key), (key, vars(value))


OPERATIONS: list[Callable[[Any, Any, int], Any]] = [
    lambda c, k, n: c.set(k, Pair(k, n)),
    lambda c, k, n: c.set(k, Pair(k, n), ttl=1),
    lambda c, k, n: c.add(k, Pair(k, n)),
    lambda c, k, n: verify(k, c.get(k)),
    lambda c, k, n: verify(k, c.get(k)),
    lambda c, k, n: verify(k, c.pop(k, None)),
    lambda c, k, n: verify(k, c.setdefault(k, Pair(k, n))),
    lambda c, k, n: c.delete(k),
    lambda c, k, n: k in c,
    lambda c, k, n: c.touch(k, 3),
    lambda c, k, n: [verify(k, v) for k, v in zip([k, k], c.gather([k, k]), strict=True)],
    lambda c, k, n: c.set_many([(k, Pair(k, n))]),
]
RARE: list[Callable[[Any], Any]] = [
    lambda c: [verify(k, v) for k, v in c.items()],
    lambda c: c.clock.advance(0.3),
    lambda c: c.expire(),
    lambda c: len(c),
    lambda c: c.stats(),
    lambda c: [verify(k, v) for k, v in c.copy().items()],
    lambda c: c.set_many((n, Pair(n, 0)) for n in range(2000)),
    lambda c: c.delete_many(range(500, 2000)),
    lambda c: c.clear(),
    lambda c: gc.collect(0),
    lambda c: repr(c),
]


@pytest.mark.parametrize(
    "keys",
    [list(range(50)), [f"key {n}" for n in range(3000)], [Key(n, n % 5) for n in range(25)]],
    ids=["few ints", "many texts", "equal hashes"],
)
def test_mixed_calls(cache, keys):
    """Whatever threads do at once, each value that is read belongs to its key."""

    def work(n: int) -> None:
        rng = random.Random(n)
        for turn in range(600 * LONG):
            key = rng.choice(keys)
            rng.choice(OPERATIONS)(cache, key, turn)
            if turn % 40 == 0:
                rng.choice(RARE)(cache)

    in_threads(work)
    for key, value in cache.items():
        verify(key, value)
    check(cache)


def test_readers_beside_a_writer(cache):
    """Readers always find entries that a writer only overwrites, while others come and go."""
    cache.set_many((n, Pair(n, 0)) for n in range(100))
    done = threading.Event()
    turns, reads = 8000 * LONG, [0] * THREADS

    def work(thread: int) -> None:
        if thread == 0:
            for n in range(50 * turns):
                if n > turns and any(reads):
                    break
                cache.set(n % 100, Pair(n % 100, n))
                cache.set(1000 + n % 3000, n)
                if n % 3 == 0:
                    cache.delete(1000 + n * 7 % 3000)
            done.set()
        while not done.is_set():
            for key, value in enumerate(cache.gather(range(100))):
                assert value.key == key
            assert cache[reads[thread] % 100].key == reads[thread] % 100
            reads[thread] += 1

    in_threads(work)
    assert any(reads)
    check(cache)


def test_entries_that_stay_are_iterated_once(cache):
    """An entry present during the whole iteration is met once, through splits and merges."""
    stay = [f"stays {n}" for n in range(1000)]
    cache.set_many(dict.fromkeys(stay, 1))
    done = threading.Event()

    def work(thread: int) -> None:
        if thread == 0:
            for _ in range(15 * LONG):
                seen = Counter(key for key in cache if isinstance(key, str))
                assert seen == dict.fromkeys(stay, 1)
            done.set()
        turn = 0
        while not done.is_set():
            turn += 1
            cache.set_many((thread * 10_000 + n, n) for n in range(3000))
            cache.delete_many(range(thread * 10_000, thread * 10_000 + 3000))
            cache.expire()

    in_threads(work, 3)
    check(cache)


def test_incr_loses_nothing(cache):
    """`incr` from many threads adds up exactly."""
    in_threads(lambda _: [cache.incr(n % 3) for n in range(1500)])
    assert [cache[n] for n in range(3)] == [THREADS * 500] * 3


def test_one_winner(cache):
    """Of many threads that `add`, `pop` or `popitem` one entry, exactly one gets it."""
    added = in_threads(lambda n: [cache.add(key, n) for key in range(1000)])
    assert [sum(column) for column in zip(*added, strict=True)] == [1] * 1000
    for key, value in cache.items():
        assert added[value][key]
    popped = in_threads(lambda _: [cache.pop(key, None) is not None for key in range(500)])
    assert [sum(column) for column in zip(*popped, strict=True)] == [1] * 500

    def take(_: int) -> list[Any]:
        taken = []
        while cache:
            try:
                taken.append(cache.popitem()[0])
            except KeyError:
                break
        return taken

    taken = [key for keys in in_threads(take) for key in keys]
    assert sorted(taken) == list(range(500, 1000))


def test_setdefault_agrees(cache):
    """All threads that `setdefault` one key get the same object."""
    for key in range(100):
        values = in_threads(lambda n, key=key: cache.setdefault(key, [n]), 3)
        assert all(value is values[0] for value in values)
        assert cache[key] is values[0]


def test_a_clock_moved_by_many():
    """No movement of a manual clock is lost."""
    clock = ManualClock()
    in_threads(lambda _: [clock.advance(0.5) for _ in range(2000)])
    assert clock() == THREADS * 1000


def test_counters_add_up(cache):
    """Hits and misses of many threads are all counted, to a few in a thousand."""
    cache.set("a", 1)
    in_threads(lambda _: [(cache.get("a"), cache.get("b")) for _ in range(2000)])
    stats = cache.stats()
    expected = THREADS * 2000
    assert 0.99 * expected <= stats.hits <= expected
    assert 0.99 * expected <= stats.misses <= expected


def use_for_ever(cache: Any) -> None:
    while True:
        cache.gather(range(50))
        cache.set(1, [1])
        for _ in cache.items():
            cache.get(5)


def test_close_beside_readers(make):
    """A cache closed under its users ends their calls with RuntimeError, never with a crash."""
    for _ in range(10):
        cache = make()
        cache.set_many((n, [n]) for n in range(2000))

        def work(thread: int, cache: Any = cache) -> None:
            if thread == 0:
                cache.close()
                return
            with pytest.raises(RuntimeError):
                use_for_ever(cache)

        in_threads(work, 4)


def test_caches_come_and_go_beside_the_sweeper(kind):
    """Threads make, fill and drop swept caches at the same time."""

    def work(thread: int) -> None:
        for turn in range(40 * LONG):
            cache = KINDS[kind][0](0.001, cleanup_interval=0.001)
            cache.set_many((n, [thread]) for n in range(50 * turn % 1500))
            cache.get(1)
            if turn % 3 == 0:
                cache.close()

    in_threads(work)


def test_values_with_code_of_their_own(cache):
    """Keys that compare in Python and values that die in Python may switch threads at any point."""

    class Busy(Key):
        __hash__ = Key.__hash__

        def __eq__(self, other: object) -> bool:
            for _ in range(5):
                pass
            return super().__eq__(other)

    class Mortal:
        def __init__(self, key: Any):
            self.key = key

        def __del__(self) -> None:
            cache.delete(self.key)

    def work(thread: int) -> None:
        rng = random.Random(thread)
        for _ in range(400 * LONG):
            key = Busy(rng.randrange(8), 3)
            cache.set(key, Mortal(Busy(rng.randrange(8), 3)))
            cache.get(Busy(rng.randrange(8), 3))

    in_threads(work)
    cache.clear()
    check(cache)
