"""Reference counts: no call, whether it succeeds or fails, keeps or drops a reference too many."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

from support import Key

TURNS = 50


class Canary:
    """A key or value whose references are counted; its hash and comparison can be made to raise."""

    def __init__(self) -> None:
        self.raising = False

    def __hash__(self) -> int:
        if self.raising:
            raise OSError("hash")
        return 5

    def __eq__(self, other: object) -> bool:
        if self.raising or getattr(other, "raising", False):
            raise OSError("eq")
        return self is other

    def __reduce__(self) -> tuple[Any, ...]:
        return Canary, ()

    def __deepcopy__(self, memo: Any) -> Canary:
        return Canary()


class Raising(Key):
    """A key whose comparison with a Canary raises."""

    raising = True


def failing(key: Any) -> Any:
    """An iterable that yields twice and raises."""
    yield key
    yield key
    raise OSError("iterable")


def expired(cache: Any) -> None:
    cache.clock.advance(10)


Case = Callable[[Any, Any, Any], Any]
CASES: dict[str, Case] = {
    "set": lambda c, k, v: c.set(k, v),
    "set with a ttl": lambda c, k, v: c.set(k, v, ttl=5),
    "overwrite": lambda c, k, v: (c.set(k, v), c.set(k, v), c.set(k, None)),
    "overwrite expired": lambda c, k, v: (c.set(k, v), expired(c), c.set(k, v)),
    "setitem": lambda c, k, v: c.__setitem__(k, v),
    "add": lambda c, k, v: (c.add(k, v), c.add(k, v), expired(c), c.add(k, v)),
    "setdefault": lambda c, k, v: (c.setdefault(k, v), c.setdefault(k, k), expired(c)),
    "get": lambda c, k, v: (c.set(k, v), c.get(k), c.get(v, v), c.get(k, default=v)),
    "get expired": lambda c, k, v: (c.set(k, v), expired(c), c.get(k, v)),
    "getitem": lambda c, k, v: (c.set(k, v), c[k]),
    "in": lambda c, k, v: (c.set(k, v), k in c, v in c),
    "expires_in": lambda c, k, v: (c.set(k, v), c.expires_in(k)),
    "touch": lambda c, k, v: (c.set(k, v), c.touch(k), c.touch(v), c.touch_many([k, v])),
    "delete": lambda c, k, v: (c.set(k, v), c.delete(k), c.delete(k)),
    "delete expired": lambda c, k, v: (c.set(k, v), expired(c), c.delete(k)),
    "delitem": lambda c, k, v: (c.set(k, v), c.__delitem__(k)),
    "pop": lambda c, k, v: (c.set(k, v), c.pop(k), c.pop(k, v)),
    "pop expired": lambda c, k, v: (c.set(k, v), expired(c), c.pop(k, v)),
    "popitem": lambda c, k, v: (c.set(k, v), c.popitem()),
    "incr": lambda c, k, v: (c.incr(k), c.incr(k, 300), c.incr(k, 300)),
    "gather": lambda c, k, v: (c.set(k, v), c.gather([k, v, k], v), c.gather(iter([k]))),
    "gather expired": lambda c, k, v: (c.set(k, v), expired(c), c.gather([k, v], v)),
    "get_many": lambda c, k, v: (c.set(k, v), c.get_many([k, v])),
    "set_many": lambda c, k, v: (c.set_many({k: v}), c.set_many([(k, v), (v, k)], 5)),
    "delete_many": lambda c, k, v: (c.set(k, v), c.delete_many([k, v, k])),
    "update": lambda c, k, v: (c.update({k: v}), c.update([(k, v)], name=v)),
    "iterate": lambda c, k, v: (c.set(k, v), list(c), list(c.items()), list(c.values())),
    "iterate halfway": lambda c, k, v: (c.set(k, v), c.set(v, k), next(iter(c.items()))),
    "views": lambda c, k, v: (c.set(k, v), v in c.values(), (k, v) in c.items()),
    "equality": lambda c, k, v: (c.set(k, v), c == {k: v}, c == 5),
    "union": lambda c, k, v: (c.set(k, v), c | {v: k}, {v: k} | c),
    "repr": lambda c, k, v: (c.set(k, v), repr(c)),
    "copy": lambda c, k, v: (c.set(k, v), c.copy(), copy.deepcopy(c)),
    "pickle": lambda c, k, v: (c.set(k, v), pickle.loads(pickle.dumps(c))),
    "expire": lambda c, k, v: (c.set(k, v), expired(c), c.expire()),
    "clear": lambda c, k, v: (c.set(k, v), c.clear()),
    "stats": lambda c, k, v: (c.set(k, v), c.stats(), c.get_stats()),
    "growth": lambda c, k, v: (c.set(k, v), c.set_many(dict.fromkeys(range(2000), v))),
    "close": lambda c, k, v: (c.set(k, v), c.copy().close()),
    "referents": lambda c, k, v: (c.set(k, v), gc.get_referents(c)),
}
FAILURES: dict[str, Case] = {
    "absent": lambda c, k, v: c[k],
    "absent in expires_in": lambda c, k, v: c.expires_in(k),
    "absent in pop": lambda c, k, v: c.pop(k),
    "absent in delitem": lambda c, k, v: c.__delitem__(k),
    "unhashable in set": lambda c, k, v: c.set([k], v),
    "unhashable in get": lambda c, k, v: c.get([k], v),
    "unhashable in gather": lambda c, k, v: (c.set(k, v), c.gather([k, [k]], v)),
    "unhashable in set_many": lambda c, k, v: c.set_many([(k, v), ([k], v)]),
    "unhashable in delete_many": lambda c, k, v: (c.set(k, v), c.delete_many([k, [k]])),
    "eq in get": lambda c, k, v: (c.set(k, v), c.get(Raising("r"), v)),
    "eq in set": lambda c, k, v: (c.set(k, v), c.set(Raising("r"), v)),
    "eq in set with a ttl": lambda c, k, v: (c.set(k, v), c.set(Raising("r"), v, 5)),
    "eq in add": lambda c, k, v: (c.set(k, v), c.add(Raising("r"), v)),
    "eq in delete": lambda c, k, v: (c.set(k, v), c.delete(Raising("r"))),
    "eq in gather": lambda c, k, v: (c.set(k, v), c.gather([k, Raising("r")], v)),
    "eq in set_many": lambda c, k, v: c.set_many([(k, v), (Raising("r"), v)]),
    "eq in incr": lambda c, k, v: (c.set(k, 1), c.incr(Raising("r"))),
    "wrong ttl": lambda c, k, v: c.set(k, v, -1),
    "wrong ttl in set_many": lambda c, k, v: c.set_many([(k, v)], "x"),
    "wrong ttl in touch": lambda c, k, v: (c.set(k, v), c.touch(k, 0)),
    "iterable in gather": lambda c, k, v: (c.set(k, v), c.gather(failing(k), v)),
    "iterable in set_many": lambda c, k, v: c.set_many(failing((k, v))),
    "no sum": lambda c, k, v: (c.set(k, v), c.incr(k)),
    "no pair": lambda c, k, v: c.set_many([(k, v), (k,)]),
    "too few arguments": lambda c, k, v: c.set(k),
    "too many arguments": lambda c, k, v: c.get(k, v, k),
    "unknown keyword": lambda c, k, v: c.set(k, value=v, until=k),
    "key twice": lambda c, k, v: c.get(k, key=v),
}


def references(objects: list[Any], before: list[int] | None = None) -> list[int]:
    """The reference counts; where they differ from `before`, after a garbage collection."""
    counts = [sys.getrefcount(each) for each in objects]
    if before is not None and counts != before:
        gc.collect()
        counts = [sys.getrefcount(each) for each in objects]
    return counts


@pytest.mark.parametrize("name", CASES)
def test_no_call_leaks(make, name):
    """After any call and a `clear` key, value and cache have the references they had before."""
    cache, key, value = make(), Canary(), Canary()
    CASES[name](cache, key, value)
    cache.clear()
    before = references([key, value, cache, type(cache)])
    for _ in range(TURNS):
        CASES[name](cache, key, value)
        cache.clear()
    after = references([key, value, cache, type(cache)], before)
    assert after == before


@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_leaks(make, name):
    """After any call that raises the references are as before, too."""
    cache, key, value = make(), Canary(), Canary()

    def turn() -> None:
        try:
            FAILURES[name](cache, key, value)
        except (KeyError, TypeError, ValueError, OSError):
            return
        pytest.fail("the call did not raise")

    turn()
    cache.clear()
    before = references([key, value, cache, type(cache)])
    for _ in range(TURNS):
        turn()
        cache.clear()
    after = references([key, value, cache, type(cache)], before)
    assert after == before


def test_a_dead_cache_releases_its_entries(make):
    """A cache that dies drops exactly the references it held, its class's included."""
    key, value = Canary(), Canary()
    cache = make()
    cache_class = type(cache)
    del cache
    before = references([key, value, cache_class])
    for _ in range(TURNS):
        cache = make()
        cache.set(key, value)
        cache.set(value, key)
        iterator = iter(cache.items())
        next(iterator)
        del cache, iterator
    after = references([key, value, cache_class], before)
    assert after == before


def test_each_entry_holds_one_reference(cache):
    """A stored key and a stored value have one reference more, however the table grows."""
    key, values = Canary(), [Canary() for _ in range(100)]
    before = references([key, *values])
    cache.set(key, None)
    cache.set_many(enumerate(values))
    cache.set_many((n, n) for n in range(1000, 4000))
    stored = references([key, *values])
    assert stored == [count + 1 for count in before]
    cache.delete_many(range(50))
    cache.clock.advance(10)
    cache.expire()
    after = references([key, *values], before)
    assert after == before


def test_memory_of_python_objects_is_steady(make):
    """A long run of mixed calls leaves no more blocks of Python memory than a short one."""

    def work() -> None:
        cache = make()
        for n in range(3000):
            cache.set(f"key {n % 700}", [n])
            cache.gather([f"key {n}", f"key {n % 700}"])
            cache.pop(f"key {n % 300}", None)
        cache.copy().clear()

    work()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(4):
        work()
    gc.collect()
    assert sys.getallocatedblocks() - before < 300
