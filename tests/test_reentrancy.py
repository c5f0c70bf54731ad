"""Keys, values and clocks whose code changes the cache while the cache is at work."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

import lapse
from lapse.distributed.confirmations import Confirmations
from lapse.distributed.consistent_hash import ConsistentHashInvalidation
from lapse.invalidation.rules import InvalidationRules
from lapse.invalidation.source import Batch
from lapse.loading.sources import MappingSource
from lapse.loading.write_through import WriteThroughInvalidation
from lapse.scenarios.base import _Events
from support import PATIENCE, Dying, Key, check
from test_hash_table import CALLS


def grow(cache: Any) -> None:
    cache.set_many({f"new {n}": n for n in range(3000)})


CHANGES: dict[str, Any] = {
    "delete": lambda cache, key: cache.delete(key),
    "pop": lambda cache, key: cache.pop(key, None),
    "clear": lambda cache, key: cache.clear(),
    "clear and grow": lambda cache, key: (cache.clear(), grow(cache)),
    "grow": lambda cache, key: grow(cache),
    "overwrite": lambda cache, key: cache.set(key, 7),
    "move": lambda cache, key: (cache.delete(key), cache.set(key, 2)),
    "end": lambda cache, key: (cache.clock.advance(10), cache.expire()),
}


class Once:
    """A hook that runs `change` on the cache the first `times` times."""

    def __init__(self, cache: Any, change: Any, key: Any, times: int = 1):
        self.cache, self.change, self.key, self.left = cache, change, key, times

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            self.change(self.cache, self.key)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CALLS)
def test_a_comparison_changes_the_cache(cache, name, change):
    """`__eq__` of a probing key may delete the probed entry, clear or grow: the call ends well."""
    for equal in (True, False):
        cache.clear()
        cache.update(before=1)
        stored = Key("stored")
        cache.set(stored, 1)
        hook = Once(cache, CHANGES[change], stored)
        probing = Key("stored" if equal else "other", hook=hook)
        try:
            CALLS[name](cache, probing)
        except KeyError:
            assert name in ("getitem", "expires_in")
        assert hook.left == 0
        check(cache)


@pytest.mark.parametrize("name", CALLS)
def test_a_comparison_always_changes_the_cache(cache, name):
    """An `__eq__` that moves the probed entry every time can't keep a call from ending."""
    stored = Key("stored")
    cache.set(stored, 1)
    hook = Once(cache, CHANGES["move"], stored, times=10_000)
    try:
        CALLS[name](cache, Key("other", hook=hook))
    except (KeyError, RuntimeError):
        assert name not in ("update", "set_many") or hook.left < 10_000
    hook.left = 0
    assert cache[stored] == 2
    check(cache)


@pytest.mark.parametrize("name", CALLS)
def test_a_comparison_closes_the_cache(make, name):
    """`__eq__` may even close the cache: the call answers or raises, and the cache is closed."""
    cache = make()
    cache.set(Key("stored"), 1)
    try:
        CALLS[name](cache, Key("stored", hook=lambda: cache.close()))
    except (KeyError, RuntimeError):
        assert "closed" in repr(cache)
    with pytest.raises(RuntimeError):
        cache.get(1)


@pytest.mark.parametrize("name", CALLS)
def test_a_hash_changes_the_cache(cache, name):
    """`__hash__` runs before the table is looked at: it may clear or grow it."""

    class Changing(Key):
        __eq__ = Key.__eq__
        change: Any = None

        def __hash__(self) -> int:
            change, self.change = self.change, None
            if change is not None:
                change()
            return super().__hash__()

    for change in (cache.clear, lambda: grow(cache)):
        cache.set(Key("a"), 1)
        probing = Changing("a")
        probing.change = change
        try:
            CALLS[name](cache, probing)
        except KeyError:
            assert name in ("getitem", "expires_in")
        assert probing.change is None
        check(cache)


def test_a_str_subclass_clears_the_cache(cache):
    """A str subclass that clears the table while it is compared is not used after it is gone."""

    class Text(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            cache.clear()
            return False

    for name, call in CALLS.items():
        cache.set(Text("a"), Text("value"))
        try:
            call(cache, "a")
        except KeyError:
            assert name in ("getitem", "expires_in")
        check(cache)
        cache.clear()


REMOVALS: dict[str, Any] = {
    "clear": lambda cache, keys: cache.clear(),
    "delete": lambda cache, keys: [cache.delete(key) for key in keys],
    "del": lambda cache, keys: [cache.__delitem__(key) for key in keys if key in cache],
    "delete_many": lambda cache, keys: cache.delete_many(keys),
    "pop": lambda cache, keys: [cache.pop(key, None) for key in keys],
    "popitem": lambda cache, keys: [cache.popitem() for _ in keys if cache],
    "set": lambda cache, keys: [cache.set(key, 0) for key in keys],
    "setitem": lambda cache, keys: [cache.__setitem__(key, 0) for key in keys],
    "set_many": lambda cache, keys: cache.set_many(dict.fromkeys(keys, 0)),
    "expire": lambda cache, keys: (cache.clock.advance(10), cache.expire()),
    "get": lambda cache, keys: (cache.clock.advance(10), [cache.get(key) for key in keys]),
    "gather": lambda cache, keys: (cache.clock.advance(10), cache.gather(keys)),
    "add": lambda cache, keys: (cache.clock.advance(10), [cache.add(key, 0) for key in keys]),
    "iterate": lambda cache, keys: [cache.delete(key) for key in cache],
    "iterate values": lambda cache, keys: [cache.popitem() for _ in cache.values() if cache],
    "grow": lambda cache, keys: (cache.delete_many(keys[::2]), grow(cache), cache.clear()),
    "close": lambda cache, keys: cache.copy().close(),
}


@pytest.mark.parametrize("change", ["clear", "grow", "clear and grow", "delete", "end"])
@pytest.mark.parametrize("removal", REMOVALS)
def test_a_dying_value_changes_the_cache(cache, removal, change):
    """A value's `__del__` may change the cache in the midst of whatever removed the value."""
    keys = list(range(700))
    deaths = []
    left = [5]

    def die() -> None:
        deaths.append(1)
        if left[0]:
            left[0] -= 1
            CHANGES[change](cache, keys[deaths.count(1) * 7 % 700])

    for key in keys:
        cache.set(key, Dying(die))
    REMOVALS[removal](cache, keys)
    left[0] = 0
    check(cache)
    cache.clear()
    cache.expire()
    assert len(deaths) == 700


@pytest.mark.parametrize("removal", ["clear", "delete", "delete_many", "pop", "expire", "gather"])
def test_a_dying_key_changes_the_cache(cache, removal):
    """A key's `__del__` may change the cache too."""
    deaths = []

    class Mortal(Key):
        __hash__, __eq__ = Key.__hash__, Key.__eq__

        def __del__(self) -> None:
            deaths.append(1)
            cache.set(len(deaths), "epitaph")

    for n in range(50):
        cache.set(Mortal(n, n % 7), n)
    REMOVALS[removal](cache, [Key(n, n % 7) for n in range(50)])
    assert len(deaths) == 50
    check(cache)


def test_dying_values_see_a_closed_cache(make):
    """Values that die in `close` meet a closed cache."""
    cache = make()
    seen = []

    def die() -> None:
        with pytest.raises(RuntimeError):
            cache.get(1)
        seen.append(1)

    cache.set_many({n: Dying(die) for n in range(10)})
    cache.close()
    assert len(seen) == 10


def test_values_that_die_with_the_cache(make):
    """Values that die because the last reference to their cache went can run any code."""
    deaths = []
    cache = make()
    for n in range(100):
        cache.set(n, Dying(lambda: (deaths.append(1), make().set("a", 1))))
    del cache
    assert len(deaths) == 100


def test_comparing_caches_whose_values_change_them(cache, make):
    """`==` calls the values' `__eq__`, which may clear both sides."""

    class Value:
        __hash__ = None

        def __eq__(self, other: object) -> bool:
            cache.clear()
            other_cache.clear()
            return True

    other_cache = make()
    for each in (cache, other_cache):
        each.set_many({n: Value() for n in range(100)})
    assert cache == other_cache
    assert len(cache) == len(other_cache) == 0
    check(cache)


def test_incr_whose_sum_changes_the_cache(cache):
    """`__add__` of a value may change the cache; `incr` returns a sum and the cache is sound."""

    class Number:
        def __init__(self, change: Any):
            self.change = change

        def __add__(self, other: int) -> int:
            self.change(cache, "n")
            return 100 + other

    for change in CHANGES.values():
        cache.set("n", Number(lambda *args, change=change: change(*args)))
        assert cache.incr("n", 5) in (105, 12, 7, 5)
        check(cache)
        cache.clear()


def test_a_clock_that_changes_the_cache(make):
    """The clock is a callable like any other: it may clear or fill the cache that asks it."""
    state: dict[str, Any] = {"cache": None, "turn": 0}

    def clock() -> float:
        state["turn"] += 1
        cache, state["cache"] = state["cache"], None
        if cache is not None:
            cache.clear() if state["turn"] % 2 else grow(cache)
            state["cache"] = cache
        return 5.0

    cache = make(clock=clock)
    for n in range(20):
        cache.set("a", n)
        state["cache"] = cache
        for name, call in CALLS.items():
            try:
                call(cache, "a" if n % 2 else Key(1))
            except KeyError:
                assert name in ("getitem", "expires_in")
        list(cache.items()), len(cache), cache.expire()
        state["cache"] = None
        check(cache)


def test_a_clock_that_closes_the_cache(make):
    """A clock that closes the cache leaves it closed, whatever was under way."""
    doomed: list[Any] = []

    def clock() -> float:
        if doomed:
            doomed.pop().close()
        return 5.0

    for call in CALLS.values():
        cache = make(clock=clock)
        cache.set("a", 1)
        doomed.append(cache)
        try:
            call(cache, "a")
        except (KeyError, RuntimeError):
            assert not doomed
        with pytest.raises(RuntimeError):
            cache.get("a")


def test_garbage_collection_at_every_allocation(cache):
    """A collection may start at any allocation and traverse the table in whatever state it is."""
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for n in range(300):
            cache.set((n, "key"), [n])
            cache.gather([(n, "key"), (n - 1, "key")])
            cache.delete((n - 50, "key"))
        cache.copy().clear()
        assert dict(cache.items()) == {(n, "key"): [n] for n in range(250, 300)}
    finally:
        gc.set_threshold(*threshold)
    check(cache)


def locks_of_layers() -> dict[str, tuple[Any, Any]]:
    """Locks that are held for a few additions, and what a finalizer may call in their midst."""
    source = MappingSource({"a": 1})
    through = WriteThroughInvalidation(lapse.TTLCache(60), source)
    nodes = ConsistentHashInvalidation(through.cache, {"a": through.cache})
    events = _Events(InvalidationRules())
    confirmations = Confirmations(1.0)
    return {
        "source": (source._lock, lambda: source.fetch("a")),
        "write-through": (through._lock, lambda: through.write("a", 2)),
        "nodes": (nodes._lock, lambda: nodes.invalidate_key("a")),
        "events": (events._lock, lambda: events.receive(Batch((), ({"type": "x"},)))),
        "confirmations": (confirmations._changed, confirmations.present),
    }


@pytest.mark.parametrize("name", locks_of_layers())
def test_a_finalizer_in_the_midst_of_counting(name):
    """It does not wait for the thread that it runs in."""
    lock, call = locks_of_layers()[name]
    done: list[bool] = []

    def work() -> None:
        with lock:
            call()
            done.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert done == [True]
