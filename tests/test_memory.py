"""Memory comes back: what a cache has when it has lost entries is what those that are left need.

By the cache's own count; csrc/tests/test_pack.c counts the resident pages of the table, and
benchmarks/memory_return.py those of a process.
"""

from __future__ import annotations

import sys
import textwrap
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import lapse
from support import check, needs_real_memory, run_python, wait_until

ENTRIES = 40_000
KEPT = [0, 40, 400, 4_000, 17_000, 32_000]  #: after 40,000
CONSTANT = (
    64 << 10
)  #: bytes that a cache may have beyond 1.2 times what a new one of its entries has

BOUNDS: dict[str, dict[str, Any]] = {
    "unbounded": {},
    "duel": {"maxsize": ENTRIES},
    "lru": {"maxsize": ENTRIES, "policy": "lru"},
    "weighed": {"maxsize": ENTRIES, "weigher": lambda key, value: 1},
}

Make = Callable[..., Any]


@pytest.fixture(params=BOUNDS)
def bounded(request: pytest.FixtureRequest, make: Make) -> Make:
    """Makes caches of each kind, and of each with each bound."""
    return lambda: make(None, **BOUNDS[request.param])


def fill(cache: Any, keys: Iterable[int], ttl: float | None = None) -> None:
    """Stores None under each key."""
    cache.set_many(dict.fromkeys(keys), ttl=ttl)


def assert_tight(cache: Any, fresh: Any, kept: int) -> None:
    """The cache has the first `kept` entries, and hardly more memory than one made for them."""
    fill(fresh, range(kept))
    assert list(fresh) != [] or kept == 0
    assert sorted(cache) == list(range(kept))
    assert sys.getsizeof(cache) <= 1.2 * sys.getsizeof(fresh) + CONSTANT
    check(cache)
    fill(cache, range(kept, kept + 1000))
    check(cache)


@pytest.mark.parametrize("kept", KEPT)
def test_after_mass_expiry(bounded, clock, kept):
    """A sweep gives back what those needed that have expired."""
    cache = bounded()
    fill(cache, range(kept, ENTRIES), 5)
    fill(cache, range(kept))
    clock.advance(6)
    cache.expire()
    cache.expire()
    assert_tight(cache, bounded(), kept)


@pytest.mark.parametrize("kept", KEPT)
def test_after_deletes(bounded, kept):
    """The next sweeps give back what deleted entries needed."""
    cache = bounded()
    fill(cache, range(ENTRIES))
    cache.delete_many(range(kept, ENTRIES))
    cache.expire()
    cache.expire()
    assert_tight(cache, bounded(), kept)


def test_after_clear(bounded):
    """`clear` gives everything back, what a policy had learned too."""
    cache = bounded()
    fill(cache, range(2 * ENTRIES))
    cache.clear()
    assert_tight(cache, bounded(), 0)


@pytest.mark.parametrize("policy", ["duel", "lru"])
def test_after_a_smaller_bound(make, policy):
    """A cache that is made smaller does not wait for a sweep."""
    bound = {"maxsize": ENTRIES, "policy": policy}
    cache, fresh = make(None, **bound), make(None, **bound)
    fill(cache, range(ENTRIES))
    cache.resize(ENTRIES * 3 // 4)
    fill(fresh, range(len(cache)))
    assert sys.getsizeof(cache) <= 1.2 * sys.getsizeof(fresh) + CONSTANT
    check(cache)


def test_less_than_half_waits_for_a_quiet_time(cache):
    """The room of a few that are gone stays until a sweep finds that the cache has not grown."""
    fill(cache, range(ENTRIES))
    cache.delete_many(range(ENTRIES * 9 // 10, ENTRIES))
    full = sys.getsizeof(cache)
    cache.expire()
    assert sys.getsizeof(cache) == full
    cache.expire()
    assert sys.getsizeof(cache) < full * 9 / 10


def tagged(cache: Any, keys: Iterable[int]) -> None:
    """Stores None under each key, with two tags."""
    for key in keys:
        cache.set(key, None, tags=("all", f"group {key // 10}"))


@pytest.mark.parametrize("kept", [0, 400, 10_000, 18_000])
def test_tags(make, kept):
    """The index of tags gives back what it does not need, and knows those that are left."""
    cache, fresh = make(None), make(None)
    tagged(cache, range(20_000))
    tagged(fresh, range(kept))
    cache.delete_many(range(kept, 20_000))
    cache.expire()
    cache.expire()
    assert sys.getsizeof(cache) <= 1.2 * sys.getsizeof(fresh) + CONSTANT
    check(cache)
    assert cache.delete_tag("group 0") == min(kept, 10)
    assert cache.delete_tag("all") == max(kept - 10, 0)
    cache.expire()
    assert sys.getsizeof(cache) <= sys.getsizeof(make(None)) + CONSTANT


def test_tags_alone(cache):
    """Entries that bear no tags any more need no index of them."""
    tagged(cache, range(20_000))
    with_tags = sys.getsizeof(cache)
    for key in range(20_000):
        cache.set(key, None, tags=("all",) if key % 20 == 0 else ())
    cache.expire()
    assert sys.getsizeof(cache) < with_tags - 20_000 * 60
    check(cache)
    assert cache.delete_tag("all") == 1000


def test_prefixes(make):
    """So does the index of prefixes."""
    cache, fresh = make(None), make(None)
    for it, keys in (cache, 20_000), (fresh, 1000):
        it.set_many({f"table {n % 10}:{n}": None for n in range(keys)})
        it.get_keys_matching_pattern("table 1:*")
    cache.delete_many([f"table {n % 10}:{n}" for n in range(1000, 20_000)])
    cache.expire()
    assert sys.getsizeof(cache) <= 1.2 * sys.getsizeof(fresh) + CONSTANT
    assert len(cache.get_keys_matching_pattern("table 1:*")) == 100
    check(cache)


def test_the_sweeper_does_it(kind):
    """In an idle cache the sweeping thread gives back what has expired."""
    cache = {"ttl": lapse.TTLCache, "sliding": lapse.SlidingTTLCache}.get(
        kind, lapse.ProbabilisticTTLCache
    )(0.05, cleanup_interval=0.05)
    fill(cache, range(ENTRIES))
    assert wait_until(lambda: sys.getsizeof(cache) < CONSTANT)


class Named:
    """A key that is compared by Python code, which may let other threads run."""

    def __init__(self, thread: int, number: int) -> None:
        self.name = thread, number

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self.name == other.name


def test_while_others_read_and_write(make):
    """Threads that read and write meanwhile find what they stored."""
    cache, wrong = make(None), []
    over = threading.Event()

    def work(number: int) -> None:
        while not over.is_set():
            cache.set_many({Named(number, n): number for n in range(1000)})
            if any(cache.get(Named(number, n)) != number for n in range(1000)):
                wrong.append(number)
            cache.delete_many([Named(number, n) for n in range(5, 1000)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        fill(cache, range(5000))
        cache.delete_many(range(5000))
        cache.expire()
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    check(cache)


RESIDENT = """
    import lapse

    def resident():
        with open("/proc/self/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))

    clock = lapse.ManualClock()
    keys = list(range(500_000))
    for options in ({}, {"maxsize": len(keys)}, {"maxsize": len(keys), "policy": "lru"}):
        cache = lapse.TTLCache(10, clock=clock, cleanup_interval=None, **options)
        before = resident()
        for key in keys:
            cache.set(key, None)
        full = resident() - before
        assert full > 20_000, full
        clock.advance(11)
        cache.expire()
        left = resident() - before
        assert left < 1024, (options, full, left)
        del cache
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much is resident")
@needs_real_memory
def test_memory_comes_back_to_the_system():
    """When 500,000 entries have expired, less than a mebibyte of theirs stays resident."""
    run = run_python(textwrap.dedent(RESIDENT))
    assert (run.returncode, run.stderr) == (0, "")
