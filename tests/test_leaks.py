"""Reference counts: no call, whether it succeeds or fails, keeps or drops a reference too many."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lapse
from lapse import _core
from lapse.invalidation import Invalidation, OptimizedInvalidation
from support import FREE_THREADED, Key

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


def failing_loader(key: Any) -> Any:
    raise OSError("loader")


def failing(key: Any) -> Any:
    """An iterable that yields twice and raises."""
    yield key
    yield key
    raise OSError("iterable")


def expired(cache: Any) -> None:
    cache.clock.advance(10)


def new(text: str) -> str:
    """The text as an object that nobody else has, so that its memory is counted."""
    return "".join([*text])


def in_loop(load: Any) -> Any:
    """What a coroutine's load brings, in an event loop of its own."""

    async def wait() -> Any:
        return await load

    return asyncio.run(wait())


def with_queue(cache: Any, use: Any) -> None:
    """A queue that is closed when it has been used."""
    with OptimizedInvalidation(cache, capacity=8, overflow_wait=0, start=False) as queue:
        use(queue)


def put_all(queue: Any, key: Any) -> None:
    queue.invalidate_key(key)
    queue.invalidate_tag(new("t"))
    queue.invalidate_table(new("a"))
    queue.invalidate_pattern(new("a*"))
    queue.invalidate_all()


def hashing(key: Any, call: Callable[[Any], Any]) -> None:
    """A call while the key's hash and comparison raise."""
    key.raising = True
    try:
        call(key)
    finally:
        key.raising = False


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
    "_drop": lambda c, k, v: (c.set(k, v), c._drop(k, k), c._drop(k, v), c._drop(k, v)),
    "_drop expired": lambda c, k, v: (c.set(k, v), expired(c), c._drop(k, v)),
    "_outdate": lambda c, k, v: (c._outdate_key(k), c._outdate_tag("t"), c._outdate_all()),
    "_outdate_pattern": lambda c, k, v: c._outdate_pattern(_core.Pattern("a*")),
    "Pattern": lambda c, k, v: (p := _core.Pattern("a*"), p.matches(k), p.matches("ab"), p.source),
    "_kept": lambda c, k, v: (c.set(k, v), list(c._kept()), c._look_kept(k, v)),
    "_kept_with_tag": lambda c, k, v: (c.set(k, v, tags=["t"]), c._kept_with_tag("t")),
    "_kept_tags": lambda c, k, v: (c.set(k, v, tags=["t"]), c._kept_tags(k), c._kept_tags(v)),
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
    "set with tags": lambda c, k, v: (c.set(k, v, tags=("t", "u")), c.set(k, k, tags=[new("t")])),
    "set_many with tags": lambda c, k, v: c.set_many({k: v, v: k}, 5, tags=(new("t"),)),
    "tags": lambda c, k, v: (c.set(k, v, tags=(new("t"),)), c.tags(k), c.tags(v)),
    "delete_tag": lambda c, k, v: (c.set(k, v, tags=(new("t"),)), c.delete_tag("t")),
    "delete_pattern": lambda c, k, v: (c.set(new("a:"), v), c.set("b", v), c.delete_pattern("a:*")),
    "delete_pattern, a key": lambda c, k, v: (c.set(new("a"), v), c.delete_pattern("a")),
    "keys matching": lambda c, k, v: (c.set(new("a"), v), c.get_keys_matching_pattern("a*")),
    "invalidate_table": lambda c, k, v: (c.set(new("a:"), v), c.invalidate_table("a")),
    "many patterns": lambda c, k, v: (
        c.set(new("a:1:"), v),
        c._invalidate_patterns([f"a:{n}:*" for n in range(70)]),
    ),
    "many keys": lambda c, k, v: (c.set(k, v), c._invalidate_keys([k, v, k, [k]])),
    "lease": lambda c, k, v: (c.lease(k), c.lease(k, tags=[new("t")]).outdated),
    "fill": lambda c, k, v: (
        c.fill(c.lease(k, tags=("t",)), v, tags=("u",)),
        c.fill(c.lease(k), v),
    ),
    "fill, outdated": lambda c, k, v: (lease := c.lease(k), c.set(k, k), c.fill(lease, v)),
    "get_or_load": lambda c, k, v: [c.get_or_load(k, lambda _: v, tags=("t",)) for _ in range(2)],
    "reload": lambda c, k, v: (c.set(k, k), c.soft_clear(), c.get_or_load(k, lambda _: v)),
    "reload that fails": lambda c, k, v: (
        c.set(k, v),
        c.soft_clear(),
        c.get_or_load(k, failing_loader),
    ),
    "load_many": lambda c, k, v: c.load_many([k, v], lambda keys: dict.fromkeys(keys, v)),
    "aget_or_load": lambda c, k, v: [in_loop(c.aget_or_load(k, lambda _: v)) for _ in range(2)],
    "soft_clear": lambda c, k, v: (c.set(k, v), c.soft_clear(), c.get(k), c.set(k, v)),
    "cached": lambda c, k, v: [lapse.cached(cache=c)(lambda key: v)(k) for _ in range(2)],
    "a queue": lambda c, k, v: with_queue(c, lambda q: (c.set(k, v), put_all(q, k), q.flush())),
    "a queue left": lambda c, k, v: with_queue(c, lambda q: (c.set(k, v), put_all(q, k))),
    "a full queue": lambda c, k, v: with_queue(c, lambda q: [put_all(q, k) for _ in range(3)]),
    "apply": lambda c, k, v: with_queue(c, lambda q: q.apply([Invalidation("key", k)])),
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
    "eq in _drop": lambda c, k, v: (c.set(k, v), c._drop(Raising("r"), v)),
    "unhashable in _drop": lambda c, k, v: c._drop([k], v),
    "unhashable in _outdate_key": lambda c, k, v: c._outdate_key([k]),
    "no tag": lambda c, k, v: c._outdate_tag(k),
    "no pattern": lambda c, k, v: _core.Pattern(k),
    "too long a pattern": lambda c, k, v: _core.Pattern("a" * 1025),
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
    "a tag that is none": lambda c, k, v: c.set(k, v, tags=[new("t"), k]),
    "an iterable of tags": lambda c, k, v: c.set(k, v, tags=failing(new("t"))),
    "a tag of a lease": lambda c, k, v: c.lease(k, tags=[k]),
    "eq in set with tags": lambda c, k, v: (c.set(k, v), c.set(Raising("r"), v, tags=("t",))),
    "eq in tags": lambda c, k, v: (c.set(k, v, tags=("t",)), c.tags(Raising("r"))),
    "eq in touch": lambda c, k, v: (c.set(k, v), c.touch(Raising("r"))),
    "eq in pop": lambda c, k, v: (c.set(k, v), c.pop(Raising("r"), v)),
    "eq in delete_many": lambda c, k, v: (c.set(k, v), c.delete_many([Raising("r"), k])),
    "eq in setdefault": lambda c, k, v: (c.set(k, v), c.setdefault(Raising("r"), v)),
    "eq in fill": lambda c, k, v: (c.set(k, v), c.fill(c.lease(Raising("r")), v)),
    "eq in expires_in": lambda c, k, v: (c.set(k, v), c.expires_in(Raising("r"))),
    "eq in get_or_load": lambda c, k, v: (c.set(k, v), c.get_or_load(Raising("r"), lambda _: v)),
    "a loader": lambda c, k, v: c.get_or_load(k, failing_loader, tags=(new("t"),)),
    "a loader of many": lambda c, k, v: c.load_many([k, v], failing_loader),
    "a coroutine's loader": lambda c, k, v: in_loop(c.aget_or_load(k, failing_loader)),
    "no mapping": lambda c, k, v: c.load_many([k, v], lambda keys: v),
    "a cached function": lambda c, k, v: lapse.cached(cache=c)(failing_loader)(k),
    "unhashable in a queue": lambda c, k, v: with_queue(c, lambda q: q.invalidate_key([k])),
    "no tag in a queue": lambda c, k, v: with_queue(c, lambda q: q.invalidate_tag(k)),
} | {
    f"hash in {name}": call
    for name, call in {
        "set": lambda c, k, v: hashing(k, lambda key: c.set(key, v)),
        "set with tags": lambda c, k, v: hashing(k, lambda key: c.set(key, v, tags=(new("t"),))),
        "get": lambda c, k, v: hashing(k, lambda key: c.get(key, v)),
        "gather": lambda c, k, v: hashing(k, lambda key: c.gather([v, key], v)),
        "set_many": lambda c, k, v: hashing(k, lambda key: c.set_many([(v, v), (key, v)])),
        "pop": lambda c, k, v: hashing(k, lambda key: c.pop(key, v)),
        "incr": lambda c, k, v: hashing(k, lambda key: c.incr(key)),
        "lease": lambda c, k, v: hashing(k, lambda key: c.lease(key, tags=(new("t"),))),
        "get_or_load": lambda c, k, v: hashing(k, lambda key: c.get_or_load(key, lambda _: v)),
        "delete_many": lambda c, k, v: hashing(k, lambda key: c.delete_many([v, key])),
    }.items()
}


def references(objects: list[Any], before: list[int] | None = None) -> list[int]:
    """The reference counts; where they differ from `before`, after a garbage collection."""
    counts = [sys.getrefcount(each) for each in objects]
    if before is not None and counts != before:
        gc.collect()
        counts = [sys.getrefcount(each) for each in objects]
    return counts


def hold_to(case: Case, cache: Any, turns: int = TURNS) -> None:
    """After a call and a `clear` key, value and cache have the references they had before."""
    key, value = Canary(), Canary()

    def turn() -> None:
        case(cache, key, value)
        cache.clear()

    turn()
    gc.collect()
    before = references([key, value, cache, type(cache)])
    for _ in range(turns):
        turn()
    assert references([key, value, cache, type(cache)], before) == before


@pytest.fixture(autouse=True)
def _little_to_collect() -> Iterator[None]:
    """The garbage collector looks at what a test makes, and at nothing else."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged would be kept by pytest."""
    for name in ("lapse.events", "lapse.loading"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)


def skip_what_is_kept(name: str) -> None:
    """Skips what a free-threaded CPython leaks itself."""
    if FREE_THREADED and "cached" in name:
        pytest.skip("CPython 3.13t keeps every function for ever: python/cpython#117783")


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("name", CASES)
def test_no_call_leaks(make, name):
    """After any call and a `clear` key, value and cache have the references they had before."""
    skip_what_is_kept(name)
    hold_to(CASES[name], make())


def raising_listener(*event: Any) -> None:
    raise OSError("listener")


OPTIONS: dict[str, dict[str, Any]] = {
    "bounded": {"maxsize": 2},
    "with a listener that raises": {"listener": raising_listener},
    "with stale values": {"stale_ttl": 5},
}


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CASES)
def test_no_call_leaks_with_options(make, name, option):
    """The same of caches that are bounded, have a listener, or serve old values."""
    skip_what_is_kept(name)
    hold_to(CASES[name], make(**OPTIONS[option]), 10)


@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_leaks(make, name):
    """After any call that raises the references are as before, too."""
    skip_what_is_kept(name)
    cache, key, value = make(), Canary(), Canary()

    def turn() -> None:
        try:
            FAILURES[name](cache, key, value)
        except (KeyError, TypeError, ValueError, OSError):
            return
        pytest.fail("the call did not raise")

    turn()
    cache.clear()
    gc.collect()
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


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(
    "name", ["set with tags", "delete_tag", "tags", "keys matching", "lease", "fill"]
)
def test_no_tag_is_kept(make, name):
    """Tags and keys that a call has made are gone when the entries are."""
    cache, key, value = make(), Canary(), Canary()

    def work() -> None:
        for _ in range(100):
            CASES[name](cache, key, value)
            cache.clear()
        gc.collect()

    work()
    before = sys.getallocatedblocks()
    work()
    assert sys.getallocatedblocks() - before < 90


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_finalizer_that_raises(make, monkeypatch):
    """Whatever removes a value whose `__del__` raises goes on, and drops its reference."""
    dead: list[int] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda _: dead.append(1))

    class Mortal:
        def __del__(self) -> None:
            raise OSError("del")

    ways: list[Callable[[Any], Any]] = [
        lambda c: c.set("a:1", 1),
        lambda c: c.delete("a:1"),
        lambda c: c.pop("a:1"),
        lambda c: c.delete_pattern("a:*"),
        lambda c: c.delete_tag("t"),
        lambda c: c.clear(),
        lambda c: (expired(c), c.expire()),
        lambda c: (expired(c), c.get("a:1")),
        lambda c: (expired(c), c.set("a:1", 1)),
        lambda c: with_queue(c, lambda q: (q.invalidate_key("a:1"), q.flush())),
        lambda c: c.close(),
    ]
    for n, way in enumerate(ways):
        cache = make()
        cache.set("a:1", Mortal(), tags=("t",))
        way(cache)
        assert len(dead) == n + 1
    bounded = make(maxsize=1)
    bounded.set("a:1", Mortal())
    bounded.set("b:1", 1)
    assert len(dead) == len(ways) + 1
