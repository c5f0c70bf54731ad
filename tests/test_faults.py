"""Each allocation of each call on a cache fails once: the cache is sound, the call works then."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults import (
    Value,
    between,
    contents,
    each_failure,
    leaves_nothing_behind,
    skip_what_cannot_be,
)
from lapse import _core
from support import KINDS

Case = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]


@pytest.fixture(autouse=True)
def _quiet_collector() -> Iterator[None]:
    """The garbage collector does not run by itself, and looks at little when it is told to run."""
    gc.disable()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()


# --- What is in a cache before the call; its answer goes to the call ---


def nothing(cache: Any) -> Any:
    """No entry; a new value."""
    return Value("new")


def some(cache: Any) -> Any:
    """A few entries, tagged, with ttls and expired; a new value."""
    cache.set("gone", Value("gone"), ttl=1)
    cache.clock.advance(2)
    cache.set("a:1", Value("a1"), tags=("t", "u"))
    cache.set("a:2", Value("a2"), ttl=5)
    cache.set("b:1", Value("b1"), tags=("u",))
    cache.set("n", 300)
    return Value("new")


def one(cache: Any) -> Any:
    """One entry."""
    cache.set("a:1", Value("a1"), tags=("t",))


def tagged(cache: Any) -> Any:
    """Entries in the tag index and in that of prefixes."""
    cache.delete_pattern("x:*")
    for n in range(30):
        cache.set(f"a:{n}", Value(f"a{n}"), tags=(f"t{n % 3}", "-".join("all")))
        cache.set(f"b:{n}", Value(f"b{n}"))
    return Value("new")


def expired(cache: Any) -> Any:
    """Entries that have all expired."""
    cache.set_many({f"a:{n}": Value(f"a{n}") for n in range(20)})
    cache.clock.advance(11)
    return Value("new")


def leased(cache: Any) -> Any:
    """A lease of a missing key, with a tag, and of a key that is there."""
    some(cache)
    return cache.lease("c", tags=("v",)), cache.lease("a:1"), Value("new")


SEVERAL = [f"k:{n}" for n in range(40)]
MANY_TAGS = [f"tag {n}" for n in range(12)]
VERY_MANY_TAGS = [f"tag {n}" for n in range(300)]
GLOBS = ["a:*", "b:1", "?", "[xyz]*", r"\n", *(f"p:{n}:*" for n in range(20))]
STORM = [f"a:{n}*" for n in range(20)]

CASES: dict[str, Case] = {
    "set": (some, lambda c, v: c.set("c", v)),
    "set, the first tag": (nothing, lambda c, v: c.set("c", v, tags=("t",))),
    "set again": (some, lambda c, v: c.set("a:1", v)),
    "set, a new key": (some, lambda c, v: c.set("c" * len("abc"), v)),
    "set over an expired one": (some, lambda c, v: c.set("gone", v)),
    "set with a ttl": (some, lambda c, v: c.set("c", v, ttl=7)),
    "set with tags": (some, lambda c, v: c.set("c", v, tags=("t", "w"))),
    "set with other tags": (tagged, lambda c, v: c.set("a:1", v, tags=["w", "x", "t1"])),
    "set with many tags": (some, lambda c, v: c.set("c", v, 3, tags=MANY_TAGS)),
    "setitem": (some, lambda c, v: c.__setitem__("c", v)),
    "set with very many tags": (tagged, lambda c, v: c.set("a:1", v, tags=VERY_MANY_TAGS)),
    "set_many": (some, lambda c, v: c.set_many(dict.fromkeys(SEVERAL, v))),
    "set_many with tags": (
        tagged,
        lambda c, v: c.set_many(dict.fromkeys(SEVERAL, v), 4, tags=MANY_TAGS),
    ),
    "add": (some, lambda c, v: c.add("c", v)),
    "add, present": (some, lambda c, v: c.add("a:1", v)),
    "setdefault": (some, lambda c, v: c.setdefault("c", v)),
    "incr": (some, lambda c, v: c.incr("n", 300)),
    "incr, a new key": (some, lambda c, v: c.incr("m", 300)),
    "touch": (some, lambda c, v: c.touch("a:1", 8)),
    "touch_many": (some, lambda c, v: c.touch_many(["a:1", "b:1", "x"], 8)),
    "get": (some, lambda c, v: (c.get("a:1"), c.get("x"), c.get("gone"))),
    "getitem": (some, lambda c, v: c["a:1"]),
    "in": (some, lambda c, v: ("a:1" in c, "x" in c)),
    "expires_in": (some, lambda c, v: c.expires_in("a:2")),
    "gather": (some, lambda c, v: c.gather(["a:1", "x", "b:1", "gone"])),
    "gather an iterable": (some, lambda c, v: c.gather(iter(SEVERAL))),
    "gather integers": (some, lambda c, v: c.gather(range(40))),
    "get_many": (some, lambda c, v: c.get_many(["a:1", "x", "b:1"])),
    "tags": (some, lambda c, v: c.tags("a:1")),
    "len": (some, lambda c, v: len(c)),
    "delete": (some, lambda c, v: c.delete("a:1")),
    "delitem": (some, lambda c, v: c.__delitem__("a:1")),
    "delete_many": (some, lambda c, v: c.delete_many(["a:1", "b:1", "x"])),
    "_invalidate_keys": (some, lambda c, v: c._invalidate_keys(["a:1", "b:1", "x"])),
    "delete_pattern": (tagged, lambda c, v: c.delete_pattern("a:*")),
    "delete_pattern, no prefix": (tagged, lambda c, v: c.delete_pattern("*:1?")),
    "delete_pattern, a key": (some, lambda c, v: c.delete_pattern("a:1")),
    "delete_pattern, bytes": (some, lambda c, v: c.delete_pattern(b"a:1")),
    "delete_pattern, the first": (some, lambda c, v: c.delete_pattern("a:*")),
    "_invalidate_patterns": (tagged, lambda c, v: c._invalidate_patterns(GLOBS)),
    "a storm": (tagged, lambda c, v: c._invalidate_patterns(STORM)),
    "get_keys_matching_pattern": (tagged, lambda c, v: c.get_keys_matching_pattern("a:*")),
    "delete_tag": (tagged, lambda c, v: c.delete_tag("t1")),
    "invalidate_table": (tagged, lambda c, v: c.invalidate_table("a")),
    "_drop": (some, lambda c, v: c._drop("a:1", c.get("a:1"))),
    "_outdate_key": (leased, lambda c, v: c._outdate_key("c")),
    "_outdate_tag": (leased, lambda c, v: c._outdate_tag("v")),
    "_outdate_pattern": (leased, lambda c, v: c._outdate_pattern(_core.Pattern("c*"))),
    "_outdate_all": (leased, lambda c, v: c._outdate_all()),
    "_kept": (some, lambda c, v: (list(c._kept()), c._look_kept("gone", None))),
    "_kept_with_tag": (tagged, lambda c, v: (c._kept_with_tag("t1"), c._kept_tags("a:1"))),
    "pop": (some, lambda c, v: c.pop("a:1")),
    "popitem": (one, lambda c, v: c.popitem()),
    "pop, absent": (some, lambda c, v: c.pop("x", None)),
    "expire": (expired, lambda c, v: c.expire()),
    "clear": (tagged, lambda c, v: c.clear()),
    "soft_clear": (some, lambda c, v: c.soft_clear(5)),
    "iterate": (some, lambda c, v: (list(c), list(c.values()), list(c.items()))),
    "lease": (leased, lambda c, v: c.lease("c", tags=("w", "x"))),
    "outdated": (leased, lambda c, v: (v[0].outdated, repr(v[0]))),
    "fill": (leased, lambda c, v: c.fill(v[0], v[2])),
    "fill with tags": (leased, lambda c, v: c.fill(v[0], v[2], 5, tags=["w", "x"])),
    "fill, the first tag": (nothing, lambda c, v: c.fill(c.lease("c", tags=("t",)), v)),
    "fill what is there": (leased, lambda c, v: c.fill(v[1], v[2], change=True)),
    "Pattern": (some, lambda c, v: (_core.Pattern("a*"), _core.Pattern(b"[a-z]?"))),
}
TELLING = [
    "set again",
    "set over an expired one",
    "get",
    "delete",
    "delete_pattern",
    "delete_tag",
    "pop",
    "popitem",
]
TELLING += [
    "expire",
    "clear",
    "_invalidate_keys",
    "a storm",
    "set_many",
    "fill what is there",
    "_drop",
]

BOUNDED = ["set, the first tag", "set with tags", "set with very many tags", "set_many"]
BOUNDED += ["incr, a new key", "fill, the first tag", "fill with tags"]

PYTHON_CASES: dict[str, Case] = {
    "update": (some, lambda c, v: c.update({"a:1": v}, c=v)),
    "stats": (some, lambda c, v: c.get_stats()),
    "repr": (some, lambda c, v: repr(c)),
    "equality": (some, lambda c, v: c == c.copy()),
    "copy": (tagged, lambda c, v: c.copy()),
    "deepcopy": (some, lambda c, v: copy.deepcopy(c)),
    "pickle": (some, lambda c, v: pickle.loads(pickle.dumps(c))),
    "union": (some, lambda c, v: (c | {"c": v}, {"c": v} | c)),
}


def run(make: Any, way: str, case: Case, **options: Any) -> int:
    """Let each allocation of a case fail; how many there were."""
    prepare, call = case
    model = make(**options)
    thing = prepare(model)
    before = contents(model)
    call(model, thing)
    after = contents(model)
    failures = 0

    def prepared() -> Any:
        # Every cache starts at the same time.
        model.clock.advance(1000 - model.clock())
        cache = make(**options)
        return cache, prepare(cache)

    for (cache, argument), raised in each_failure(way, prepared, lambda both: call(*both)):
        failures += 1
        state = contents(cache)
        assert between(state, before, after) if raised else state == after, (failures, state)
        try:
            call(cache, argument)
        except KeyError:
            assert state == after != before
        if after != before:
            assert contents(cache).keys() == after.keys()
    return failures


@pytest.mark.parametrize("way", ["python", "native", "short"])
@pytest.mark.parametrize("name", CASES)
def test_an_allocation_fails(make, name, way):
    """Whichever allocation fails: entries are as before or as after the call, which then works."""
    skip_what_cannot_be(way)
    leaves_nothing_behind(lambda: run(make, way, CASES[name]))


@pytest.mark.parametrize("way", ["python", "native", "short"])
@pytest.mark.parametrize("policy", ["duel", "lru"])
@pytest.mark.parametrize("name", BOUNDED)
def test_a_bounded_cache_runs_out_of_memory(make, name, policy, way):
    """A bounded cache never holds more than it may, and evicts nothing that it does not replace."""
    skip_what_cannot_be(way)
    leaves_nothing_behind(lambda: run(make, way, CASES[name], maxsize=4, policy=policy))


@pytest.mark.parametrize("way", ["python", "native", "short"])
@pytest.mark.parametrize("name", TELLING)
def test_no_memory_to_tell_a_listener(make, name, way, monkeypatch):
    """Where memory for the events of a listener is lacking, the call does its work all the same."""
    skip_what_cannot_be(way)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(logging.getLogger("lapse.events"), "disabled", True)
    told: list[Any] = []

    def work() -> None:
        run(make, way, CASES[name], listener=lambda *event: told.append(event))
        told.clear()
        cache = make(listener=lambda *event: told.append(event))
        cache.set(1, 1)
        cache.delete(1)
        assert told == [(1, 1, "deleted")]
        told.clear()

    leaves_nothing_behind(work, way)


TABLE_GROWS = [14, 448, 896, 1790]  # entries: the next one needs more memory
ORDER_GROWS = [63, 959, 1983]  # the exact order of use
WINDOW_GROWS = [16, 64, 128]  # the default policy's
GROWTH = [
    *((size, {}) for size in TABLE_GROWS),
    *((size, {"maxsize": 5000, "policy": "lru"}) for size in TABLE_GROWS + ORDER_GROWS),
    *((size, {"maxsize": 5000}) for size in TABLE_GROWS + WINDOW_GROWS),
]


@pytest.mark.parametrize("way", ["python", "native", "short"])
@pytest.mark.parametrize(("size", "bounds"), GROWTH)
def test_growth_runs_out_of_memory(make, size, bounds, way):
    """A cache that cannot grow keeps what it has; it grows when there is memory again."""
    skip_what_cannot_be(way)
    failed = 0

    def prepare() -> Any:
        cache = make(**bounds)
        cache.set_many({n: n for n in range(size)})
        return cache

    for cache, raised in each_failure(way, prepare, lambda c: c.set(size, size, ttl=5)):
        failed += raised
        assert contents(cache).keys() in ({*range(size)}, {*range(size + 1)})
        assert (size in cache) != raised
        cache.set_many({n: n for n in range(size, 2 * size)})
        assert cache.gather(range(2 * size)) == [*range(2 * size)]
    assert failed or way == "python"


@pytest.mark.parametrize("way", ["python", "native", "short", "step"])
def test_making_a_cache_runs_out_of_memory(kind, way):
    """A cache is made whole or not at all."""
    skip_what_cannot_be(way)
    make, options = (
        KINDS[kind][0],
        {"cleanup_interval": None, "maxsize": 10, "seed": 1, "stale_ttl": 5},
    )
    model = make(10, **options)

    def call(_: Any) -> None:
        if way == "python":
            _core.Cache.__new__(_core.Cache)._open(model._mode, model._options)
        else:
            make(10, **options)

    leaves_nothing_behind(lambda: [*each_failure(way, lambda: None, call)].clear())


@pytest.mark.parametrize("way", ["native", "short", "step"])
@pytest.mark.parametrize("name", PYTHON_CASES)
def test_python_code_runs_out_of_memory(make, name, way):
    """The same of what is written in Python."""
    leaves_nothing_behind(lambda: run(make, way, PYTHON_CASES[name]), way)
