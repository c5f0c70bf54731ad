"""Many keys at once: alignment, any iterable, NumPy integers, and keys that interfere."""

from __future__ import annotations

import array
import contextlib
import random
from collections import UserDict, deque
from types import MappingProxyType
from typing import Any

import pytest

from support import Key, check

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.fixture
def np():
    return pytest.importorskip("numpy")


class Failing:
    """An iterable that raises after three items."""

    def __init__(self, items: Any):
        self.first = items

    def __iter__(self) -> Any:
        yield from self.first[:3]
        raise OSError("no more")


# --- Any iterable ---


@pytest.mark.parametrize(
    "wrap",
    [list, tuple, iter, set, frozenset, deque, dict.fromkeys, lambda keys: (k for k in keys),
     lambda keys: dict.fromkeys(keys).keys(), lambda keys: dict(enumerate(keys)).values(),
     lambda keys: map(str, keys), type("List", (list,), {})],
)  # fmt: skip
def test_any_iterable_of_keys(cache, wrap):
    """The methods for many keys take any iterable, in its own order."""
    keys = [f"key {n}" for n in range(100)]
    cache.set_many((key, key) for key in keys[::2])
    expected = [key if key in keys[::2] else None for key in wrap(keys)]
    assert cache.gather(wrap(keys)) == expected
    assert cache.get_many(wrap(keys)) == {key: key for key in keys[::2]}
    assert cache.touch_many(wrap(keys)) == 50
    assert cache.delete_many(wrap(keys)) == 50
    assert len(cache) == 0


def test_strings_bytes_and_ranges_are_iterables(cache):
    """A str gives its characters, bytes and ranges their integers."""
    cache.update({"a": 1, 97: 2, 3: 3})
    assert cache.gather("ba") == [None, 1]
    for data in (b"ab", bytearray(b"ab"), memoryview(b"ab"), array.array("B", b"ab")):
        assert cache.gather(data) == [2, None]
    assert cache.gather(range(5)) == [None, None, None, 3, None]
    assert cache.gather(array.array("q", [3, -3])) == [3, None]
    assert cache.gather(array.array("d", [3.0, 3.5])) == [3, None]


@pytest.mark.parametrize("wrong", [5, None, object(), 1.5])
def test_no_iterable(cache, wrong):
    """What can't be iterated is a TypeError."""
    for call in (cache.gather, cache.get_many, cache.delete_many, cache.touch_many, cache.set_many):
        with pytest.raises(TypeError):
            call(wrong)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 100, 1000])
def test_gather_of_every_length(cache, count):
    """`gather` aligns whatever the number of keys: none, part of a block, whole blocks and more."""
    keys = [str(n) for n in range(count)]
    cache.set_many(dict.fromkeys(keys[::3], "value"))
    expected = ["value" if n % 3 == 0 else "default" for n in range(count)]
    assert cache.gather(keys, "default") == expected
    assert cache.gather([*keys, *keys], "default") == expected * 2


def test_mixed_keys_in_one_call(cache):
    """Keys of all types mix in one call."""
    keys = ["a", 1, 1.5, b"a", (1, "a"), None, Key("k"), 2**70, -1, -2, "é", frozenset()] * 5
    cache.set_many((key, [key]) for key in keys)
    assert cache.gather(keys) == [[key] for key in keys]
    assert cache.get_many(keys) == {key: [key] for key in keys}
    assert cache.delete_many(keys) == len(keys) // 5


def test_random_batches_agree_with_single_calls(cache):
    """Ten thousand entries in random batches: many at once do what one by one does."""
    rng = random.Random(4)
    reference: dict[Any, int] = {}
    for turn in range(60):
        keys = [rng.choice((rng.randrange(12_000), str(rng.randrange(12_000)))) for _ in range(500)]
        cache.set_many(dict.fromkeys(keys, turn))
        reference.update(dict.fromkeys(keys, turn))
        gone = rng.sample(list(reference), 30)
        assert cache.delete_many(gone) == 30
        for key in gone:
            del reference[key]
        asked = keys + gone
        assert cache.gather(asked) == [reference.get(key) for key in asked]
        assert cache.gather(asked) == [cache.get(key) for key in asked]
    assert len(cache) > 10_000
    assert dict(cache.items()) == cache.get_many(list(reference)) == reference


# --- set_many ---


@pytest.mark.parametrize(
    "wrap", [dict, UserDict, MappingProxyType, lambda items: list(items.items()),
             lambda items: iter(items.items()), lambda items: [list(i) for i in items.items()]],
)  # fmt: skip
def test_set_many_takes_mappings_and_pairs(cache, make, wrap):
    """`set_many` and `update` take every kind of mapping and of pairs, another cache included."""
    items = {"a": 1, "b": 2}
    cache.set_many(wrap(items))
    assert cache == items
    cache.update(wrap({"b": 3}))
    other = make()
    other.set_many(cache, ttl=5)
    assert other == {"a": 1, "b": 3}
    assert other.expires_in("a") == 5


@pytest.mark.parametrize("wrong", [[("a", 1, 2)], [("a",)], [5], "ab", [("a", 1), None]])
def test_set_many_of_no_pairs(cache, wrong):
    """What is no pair is a TypeError or ValueError, as in `dict.update`."""
    with pytest.raises((TypeError, ValueError)):
        cache.set_many(wrong)
    assert set(cache) <= {"a"}
    check(cache)


def test_set_many_of_one_key_twice(cache):
    """The last value of a repeated key wins, the first key object stays."""
    cache.set_many([(1, "a"), (True, "b"), (1.0, "c")])
    assert [(type(key), value) for key, value in cache.items()] == [(int, "c")]


def test_set_many_of_itself(cache):
    """A cache can be stored into itself."""
    cache.set_many({n: n for n in range(1000)})
    cache.set_many(cache)
    cache.update(cache.items())
    assert dict(cache.items()) == {n: n for n in range(1000)}


# --- NumPy ---


@pytest.mark.parametrize("dtype", INTEGERS)
def test_numpy_integers(cache, np, dtype):
    """Integer arrays of every width name the same entries as Python ints, to their limits."""
    limits = np.iinfo(dtype)
    numbers = [0, 1, 2, 100, limits.min, limits.max, limits.max - 1, limits.min + 1]
    cache.set_many((number, str(number)) for number in numbers[::2])
    expected = [str(n) if n in numbers[::2] else "none" for n in numbers]
    asked = np.array(numbers, dtype=dtype)
    assert cache.gather(asked, "none") == expected
    assert cache.get_many(asked) == {n: str(n) for n in numbers[::2]}
    assert cache.touch_many(asked) == len(asked) - expected.count("none")
    assert cache.delete_many(asked) == len(set(numbers[::2]))
    assert len(cache) == 0


def test_numpy_integers_around_the_hash_modulus(cache, np):
    """Integers whose hash is not themselves are found: at the modulus 2**61 - 1, and -1."""
    prime = 2**61 - 1
    numbers = [s * (m * prime + d) for s in (1, -1) for m in range(4) for d in (-2, -1, 0, 1, 2)]
    cache.set_many((number, number) for number in numbers)
    assert cache.gather(np.array(numbers, dtype=np.int64)) == numbers
    large = [2**63, 2**63 + 5, 2**64 - 1]
    cache.set_many((number, number) for number in large)
    assert cache.gather(np.array(large, dtype=np.uint64)) == large


@pytest.mark.parametrize(
    "view",
    [lambda a: a[::2], lambda a: a[::-1], lambda a: a[::-3], lambda a: a[5:5], lambda a: a[17:],
     lambda a: a.reshape(20, 50)[:, 3], lambda a: a.astype(">i8"), lambda a: a.astype("<i8"),
     lambda a: a.astype(">u2"), lambda a: a.astype(object), lambda a: a.astype("float64"),
     lambda a: a.astype("float32"), lambda a: a % 2 == 0,
     lambda a: a.view([("x", "i8"), ("y", "i8")])["y"]],
)  # fmt: skip
def test_numpy_arrays_of_any_layout(cache, np, view):
    """Strided, reversed, empty, byte-swapped, float, bool, object: all give what a list would."""
    cache.set_many({n: f"v{n}" for n in range(0, 1000, 3)})
    asked = view(np.arange(1000))
    assert cache.gather(asked) == cache.gather(asked.tolist())
    asked.flags.writeable = False
    assert cache.gather(asked) == cache.gather(asked.tolist())


def test_numpy_strings_and_dates(cache, np):
    """Arrays of strings and dates go by their elements."""
    cache.update(a=1, bc=2)
    assert cache.gather(np.array(["bc", "x", "a"])) == [2, None, 1]
    day = np.datetime64("2015-05-17")
    cache.set(day, 3)
    assert cache.gather(np.array([day, np.datetime64("2015-05-18")])) == [3, None]


def test_numpy_arrays_of_other_shapes(cache, np):
    """An array of no or two dimensions is a TypeError: its items are no keys."""
    cache.set(1, 1)
    for wrong in (np.array(1), np.array([[1, 2], [3, 4]]), np.zeros((2, 0))):
        with pytest.raises(TypeError):
            cache.gather(wrong)
    check(cache)


def test_numpy_integers_meet_keys_that_are_no_ints(cache, np):
    """Equal keys of other types are found by integers of an array as by ints of a list."""

    class Four:
        def __hash__(self) -> int:
            return 4

        def __eq__(self, other: object) -> bool:
            return other == 4

    cache.update({True: "bool", 2.0: "float", type("Int", (int,), {})(3): "int", Four(): "four"})
    assert cache.gather(np.arange(6)) == [None, "bool", "float", "int", "four", None]
    assert cache.gather(np.array([1, 0], dtype=bool)) == ["bool", None]


def test_many_numpy_integers(cache, np):
    """A large array in random order, half of it absent, is answered in its order."""
    cache.set_many({n * 7: n for n in range(30_000)})
    asked = np.random.default_rng(1).integers(0, 420_000, 50_000)
    expected = [n // 7 if n % 7 == 0 and n < 210_000 else -1 for n in asked.tolist()]
    assert cache.gather(asked, -1) == expected


def test_reads_of_arrays_count_rearm_and_expire(make, clock, np):
    """Reads through an array are reads: counted, re-arming where reads do, and never stale."""
    cache = make()
    cache.set_many({1: "a", 2: "b"}, ttl=5)
    clock.advance(4)
    assert cache.gather(np.array([1, 3])) == ["a", None]
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)
    expected = 5 if type(cache).__name__ == "SlidingTTLCache" else 1
    assert (cache.expires_in(1), cache.expires_in(2)) == (expected, 1)
    clock.advance(5)
    assert cache.gather(np.array([1, 2], dtype="int8")) == [None, None]
    assert cache.expire() == 0


# --- Interference ---


@pytest.mark.parametrize("method", ["gather", "get_many", "delete_many", "touch_many"])
@pytest.mark.parametrize("where", ["hash", "eq"])
def test_keys_that_change_their_own_list(cache, method, where):
    """Keys that empty or lengthen the list they are in end in an answer or a RuntimeError."""
    for change in (list.clear, lambda keys: keys.extend(range(5000)), list.pop, list.reverse):
        armed = []

        def act(change: Any = change, armed: list[Any] = armed) -> None:
            if armed:
                change(armed.pop())

        class Hostile(Key):
            __eq__ = Key.__eq__

            def __hash__(self, act: Any = act) -> int:
                if where == "hash":
                    act()
                return super().__hash__()

        cache.update({"a": 1, Key("k"): 2})
        hostile = Hostile("k", hook=act if where == "eq" else None)
        keys = ["a", "b", hostile, "c", *map(str, range(90))]
        armed.append(keys)
        with contextlib.suppress(RuntimeError):
            getattr(cache, method)(keys)
        assert not armed
        check(cache)
        cache.clear()


def test_keys_that_clear_the_cache_midway(cache):
    """A key that clears the cache in the midst of `gather`: what was read before stays valid."""
    keys = [*map(str, range(100)), Key("k", hook=cache.clear), *map(str, range(100))]
    cache.set_many((key, [key]) for key in map(str, range(100)))
    cache.set(Key("k"), 1)
    values = cache.gather(keys)
    assert values[:96] == [[key] for key in keys[:96]]
    assert set(map(type, values[128:])) <= {type(None), list}
    check(cache)


def test_generators_that_change_the_cache(cache):
    """The iterable of keys or pairs may use the very cache that consumes it."""

    def keys() -> Any:
        for n in range(100):
            cache.set(n, n)
            yield n
            cache.delete(n - 10)

    cache.gather(keys())
    cache.delete_many(keys())
    cache.set_many((key, cache.get(key)) for key in keys())
    check(cache)


@pytest.mark.parametrize("method", ["gather", "get_many", "delete_many", "touch_many", "set_many"])
def test_iterables_that_raise(cache, method):
    """What the iterable raises reaches the caller, and the cache is sound."""
    cache.set("a", 1)
    items = [("x", 1), ("y", 2), ("z", 3)] if method == "set_many" else ["b", "c", "d"]
    with pytest.raises(OSError, match="no more"):
        getattr(cache, method)(Failing(items))
    assert cache["a"] == 1
    check(cache)


def test_a_batch_that_fails_midway(cache):
    """An unhashable key ends a batch with TypeError; what came before it may have been done."""
    cache.update(a=1, b=2)
    assert set(cache) == {"a", "b"}
    for call in (
        lambda: cache.gather(["a", [], "b"]), lambda: cache.get_many(["a", {}]),
        lambda: cache.touch_many(["a", [], "b"]), lambda: cache.set_many([("c", 1), ([], 2)]),
        lambda: cache.delete_many(["a", set(), "b"]),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call()
        check(cache)
    assert cache["b"] == 2
