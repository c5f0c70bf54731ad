"""What any C hash table must survive and promise: odd keys, hostile hashes, growth, failure."""

from __future__ import annotations

import random
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from support import FREE_THREADED, Key, check, run_python

STORES: dict[str, Any] = {
    "set": lambda cache, key: cache.set(key, 1),
    "set with a ttl": lambda cache, key: cache.set(key, 1, 5),
    "setitem": lambda cache, key: cache.__setitem__(key, 1),
    "add": lambda cache, key: cache.add(key, 1),
    "setdefault": lambda cache, key: cache.setdefault(key, 1),
    "incr": lambda cache, key: cache.incr(key),
    "update": lambda cache, key: cache.update([(key, 1)]),
    "set_many": lambda cache, key: cache.set_many([(key, 1)]),
}
LOOKUPS: dict[str, Any] = {
    "get": lambda cache, key: cache.get(key),
    "getitem": lambda cache, key: cache[key],
    "in": lambda cache, key: key in cache,
    "gather": lambda cache, key: cache.gather([key]),
    "get_many": lambda cache, key: cache.get_many([key]),
    "delete": lambda cache, key: cache.delete(key),
    "delete_many": lambda cache, key: cache.delete_many([key]),
    "pop": lambda cache, key: cache.pop(key, None),
    "_drop": lambda cache, key: cache._drop(key, 1),
    "touch": lambda cache, key: cache.touch(key),
    "touch_many": lambda cache, key: cache.touch_many([key]),
    "expires_in": lambda cache, key: cache.expires_in(key),
}
CALLS = STORES | LOOKUPS


class Text(str):
    """A str of another type."""


class OddText(str):
    """A str with a hash of its own."""

    def __hash__(self) -> int:
        return 12


class Unhashable:
    """A key whose hash raises."""

    def __hash__(self) -> int:
        raise OSError("no hash")


class Counted(Key):
    """A key that counts how often it is hashed and compared."""

    hashed = compared = 0

    def __hash__(self) -> int:
        Counted.hashed += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return super().__eq__(other)


def counts(call: Any) -> tuple[int, int]:
    """How often a call hashes and compares Counted keys."""
    Counted.hashed = Counted.compared = 0
    call()
    return Counted.hashed, Counted.compared


# --- Keys that are equal, and keys that only look it ---


@pytest.mark.parametrize(
    "group",
    [
        (1, True, 1.0, Decimal(1), Fraction(1), 1 + 0j),
        (0, False, 0.0, -0.0),
        ("a", Text("a")),
        ((1, "a"), (1.0, "a"), (True, Text("a"))),
        (2**53, float(2**53)),
        (frozenset({1}), frozenset({1.0})),
    ],
)
def test_equal_keys_of_any_type_are_one(cache, group):
    """Keys that are equal with equal hashes name one entry, and the first object stays."""
    for key in group:
        cache.set(key, key)
    assert list(cache) == [group[0]]
    assert next(iter(cache)) is group[0]
    for key in group:
        assert cache[key] is group[-1]
        assert cache.gather([key]) == [group[-1]]
        assert key in cache
    assert cache.delete(group[1]) is True
    assert len(cache) == 0


@pytest.mark.parametrize("group", [(-1, -2), (0, 2**61 - 1), ("a", b"a"), (1, "1"), ((), None)])
def test_different_keys_stay_apart(cache, group):
    """Different keys are different entries, with the same hash (-1 and -2) too."""
    for key in group:
        cache.set(key, [key])
    assert [cache[key] for key in group] == [[key] for key in group]
    cache.delete(group[0])
    assert list(cache) == [group[1]]


def test_nan_keys_are_found_by_identity(cache):
    """A NaN equals nothing but is found as the same object, as in a dict."""
    one, other = float("nan"), float("nan")
    cache.set(one, 1)
    cache.set(other, 2)
    assert (cache[one], cache[other]) == (1, 2)
    assert cache.gather([other, one, float("nan")]) == [2, 1, None]
    assert cache.delete(float("nan")) is False
    assert cache.delete(one) is True
    assert list(cache) == [other]


def test_a_str_subclass_uses_its_own_hash(cache):
    """The shortcut for str is for exact str only: a subclass may hash and compare as it likes."""
    cache.set(OddText("a"), 1)
    cache.set("b", 2)
    assert cache.get(OddText("a")) == 1
    assert cache.get("a") is None
    assert cache.gather([OddText("a"), "b", OddText("b")]) == [1, 2, None]


def test_equal_strings_of_any_width_are_found(cache):
    """Equal str and bytes that are different objects are found, in every storage width."""
    for text in ("", "a", "é" * 3, "\u20ac" * 40, "\U0001f40d" * 7, "key\0key"):
        cache.set(text, text)
        cache.set(text.encode(), len(text))
        again = "".join(list(text))
        assert cache[again] == text
        assert cache[b"" + again.encode()] == len(text)
        assert cache.gather([again, again + "x"]) == [text, None]


def test_ints_of_every_size_are_found(cache):
    """Equal ints that are different objects are found, single-digit and long, of both signs."""
    numbers = [sign * 2**bits + step for bits in range(200) for sign in (1, -1) for step in (0, 1)]
    for number in numbers:
        cache.set(number, str(number))
    fresh = [int(str(number)) for number in numbers]
    assert cache.gather(fresh) == [str(number) for number in numbers]
    assert [cache.get(number) for number in fresh] == [str(number) for number in numbers]
    assert len(cache) == len(set(numbers))


# --- How often keys are hashed and compared ---


@pytest.mark.parametrize("own_clock", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_each_call_hashes_once_and_compares_once(make, clock, name, own_clock):
    """An equal key is hashed and compared once, an identical one not compared."""
    cache = make(clock=clock if own_clock else None)
    often = 2 if name in ("incr", "get_many") else 1  # a look and a store; the dict that it returns
    stored = Counted("a")
    cache.set(stored, 1)
    hashed, compared = counts(lambda: CALLS[name](cache, Counted("a")))
    assert (hashed, compared) <= (often, often)
    assert compared >= 1
    cache.set(stored, 1)
    hashed, compared = counts(lambda: CALLS[name](cache, stored))
    assert (hashed <= often, compared) == (True, 0)


def test_only_equal_hashes_are_compared(cache):
    """Keys are compared only when their full hashes agree."""
    for n in range(2000):
        cache.set(Counted(n, n * 1024), n)
    fresh = [Counted(n, n * 1024) for n in range(4000)]
    assert counts(lambda: [cache.get(key) for key in fresh]) == (4000, 2000)


def test_equal_hashes_cost_no_more_than_in_a_dict(cache):
    """Among keys of one hash the cache compares about as often as a dict does."""

    def work(mapping: Any) -> None:
        for n in range(300):
            mapping[Counted(n)] = n
        for n in range(400):
            mapping.get(Counted(n))

    def shrink(mapping: Any) -> None:
        for n in range(0, 300, 2):
            del mapping[Counted(n)]

    reference: dict[Any, Any] = {}
    for step in (work, shrink):
        expected = counts(lambda step=step: step(reference))[1]
        assert counts(lambda step=step: step(cache))[1] <= 1.5 * expected
    check(cache)


def test_more_equal_hashes_than_a_segment_holds(cache):
    """Thousands of different keys with one full hash are stored, found and removed."""
    keys = [n * (2**61 - 1) for n in range(1, 3001)]
    cache.set_many((key, n) for n, key in enumerate(keys))
    assert cache.gather(keys) == list(range(3000))
    assert cache.delete_many(keys[::2]) == 1500
    assert cache.gather(keys[:4]) == [None, 1, None, 3]
    assert sorted(cache) == keys[1::2]
    check(cache)


@pytest.mark.parametrize("shift", [7, 10, 16, 20, 32, 40, 48, 56])
def test_strided_keys_stay_linear(make, shift):
    """Keys `i << shift` take neither more memory nor (by far) more time than sequential ones."""

    def measured(keys: list[int]) -> tuple[float, int]:
        best = float("inf")
        for _ in range(3):
            cache = make()
            start = time.thread_time()
            for key in keys:
                cache.set(key, None)
            for key in keys:
                cache.get(key)
            best = min(best, time.thread_time() - start)
        return best, cache.__sizeof__()

    count = 10_000
    plain_time, plain_size = measured(list(range(2**30, 2**30 + count)))
    time_taken, size = measured([n << shift for n in range(count)])
    assert size <= 2 * plain_size
    assert time_taken <= 10 * max(plain_time, 0.005)  # seconds; some clocks are coarse


# --- Growing and shrinking ---


@pytest.mark.parametrize("count", [16, 127, 128, 640, 1024, 1025, 5000, 100_000])
def test_growth_with_deletes(cache, count):
    """While a cache grows and entries go, everything that should be there is found, and no more."""
    rng = random.Random(count)
    reference: dict[int, int] = {}
    for n in range(count):
        key = rng.getrandbits(40)
        cache.set(key, n)
        reference[key] = n
        if n % 3 == 2:
            gone = rng.choice((key, n))
            assert cache.delete(gone) is (reference.pop(gone, None) is not None)
    assert len(cache) == len(reference)
    assert dict(cache.items()) == reference
    keys = list(reference)
    assert cache.gather(keys) == list(reference.values())
    assert cache.delete_many(keys) == len(keys)
    assert list(cache) == []
    check(cache)


def test_filling_and_emptying_again_and_again(cache):
    """Slots of deleted entries are used again: with a sweep now and then memory does not grow."""
    sizes = []
    for turn in range(24):
        keys = [f"{turn}:{n}" for n in range(3000)]
        cache.set_many(dict.fromkeys(keys, turn))
        assert len(cache) == 3000
        sizes.append(cache.__sizeof__())
        for key in keys:
            assert cache.delete(key)
        cache.expire()
    assert max(sizes) <= 2.5 * sizes[0]
    check(cache)


def test_one_key_in_and_out(cache):
    """A table that holds one entry at a time neither grows nor clogs up."""
    size = None
    for n in range(20_000):
        cache.set(n, n)
        assert cache.pop(n) == n
        size = size or cache.__sizeof__()
    assert cache.__sizeof__() <= 2 * size
    assert cache.get(-5) is None
    check(cache)


# --- Failure leaves the table as it was ---


@pytest.mark.parametrize("name", CALLS)
def test_a_raising_hash(cache, name):
    """What `__hash__` raises reaches the caller, and the cache is as it was."""
    cache.update(a=1, b=2)
    with pytest.raises(OSError, match="no hash"):
        CALLS[name](cache, Unhashable())
    assert cache == {"a": 1, "b": 2}
    check(cache)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("count", [1, 20, 640, 1024])
def test_a_raising_comparison(cache, name, count):
    """What `__eq__` raises reaches the caller; the cache is as it was, about to split or not."""

    def refuse() -> None:
        raise OSError("no comparison")

    stored = Key("stored")
    cache.set(stored, 1)
    cache.set_many({n: n for n in range(1000, 999 + count)})
    before, times = dict(cache.items()), cache.expires_in(stored)
    with pytest.raises(OSError, match="no comparison"):
        CALLS[name](cache, Key("other", hook=refuse))
    assert dict(cache.items()) == before
    assert cache.expires_in(stored) == times
    check(cache)


def test_a_comparison_without_a_truth_value(cache):
    """An `__eq__` whose answer has no truth value raises, and the cache is as it was."""

    class Vague(Key):
        __hash__ = Key.__hash__

        def __eq__(self, other: object) -> Any:
            return Unhashable if other is None else NoTruth()

    class NoTruth:
        def __bool__(self) -> bool:
            raise OSError("no truth")

    cache.set(Key("a"), 1)
    for call in CALLS.values():
        with pytest.raises(OSError, match="no truth"):
            call(cache, Vague("b"))
    assert len(cache) == 1
    check(cache)


NO_MEMORY = """
import sys
try:
    import _testcapi
except ImportError:
    sys.exit(77)
import lapse
for cls in (lapse.TTLCache, lapse.SlidingTTLCache, lapse.ProbabilisticTTLCache):
    cache = cls(cleanup_interval=None, clock=lapse.ManualClock())
    keys = [f"key {n}" for n in range(3000)]
    calls = (
        lambda key: cache.set(key, key), lambda key: cache.get(key), lambda key: cache.pop(key, 0),
        lambda key: cache.set_many([(key, key)], 5), lambda key: cache.gather([key, 1, 2]),
        lambda key: cache.incr(len(key)), lambda key: cache.copy(), lambda key: [*cache.items()],
    )
    failed = 0
    for start in range(40):
        for call, key in zip(calls, keys[start * 8:]):
            _testcapi.set_nomemory(start // 2, start // 2 + 3)
            try:
                call(key)
            except MemoryError:
                failed += 1
            finally:
                _testcapi.remove_mem_hooks()
        cache.set_many({key: key for key in keys[start * 70 : start * 70 + 70]})
        assert cache._check() and dict(cache.items()) == dict(cache)
        assert all(cache[key] == key for key in cache if isinstance(key, str))
    assert failed > 5, failed
print("sound")
"""


@pytest.mark.skipif(FREE_THREADED, reason="a free-threaded CPython does not survive this itself")
def test_python_runs_out_of_memory():
    """MemoryError at any allocation of Python objects leaves a sound cache."""
    child = run_python(NO_MEMORY)
    if child.returncode == 77:
        pytest.skip("this interpreter has no _testcapi")
    assert (child.returncode, child.stdout.strip()) == (0, "sound"), child.stderr
