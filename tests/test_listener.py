"""Listeners: every event once, with its cause, after the fact, and whatever the listener does."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import random
import threading
import weakref
from collections import Counter
from typing import Any

import pytest

import lapse
from support import KINDS, cache_maker, check, run_python, wait_until
from test_threads import in_threads


class Events(list):  # type: ignore[type-arg]
    """A listener that writes down what it is told."""

    def __call__(self, *event: Any) -> None:
        self.append(event)


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def cache(make: Any, events: list[Any]) -> Any:
    """A cache of each kind that writes its events down."""
    return make(listener=lambda *event: events.append(event))


# --- Each cause --------------------------------------------------------------------------------


def end(cache: Any) -> None:
    cache.clock.advance(10)


CAUSES: dict[str, Any] = {
    "replaced": {
        "set": lambda c: c.set("a", 2),
        "set with tags": lambda c: c.set("a", 2, tags=("t",)),
        "setitem": lambda c: c.__setitem__("a", 2),
        "set_many": lambda c: c.set_many({"a": 2}),
        "update": lambda c: c.update(a=2),
        "incr": lambda c: c.incr("a"),
        "fill": lambda c: c.fill(c.lease("a"), 2),
    },
    "deleted": {
        "delete": lambda c: c.delete("a"),
        "delitem": lambda c: c.__delitem__("a"),
        "pop": lambda c: c.pop("a"),
        "popitem": lambda c: c.popitem(),
        "delete_many": lambda c: c.delete_many("a"),
        "invalidate_key": lambda c: c.invalidate_key("a"),
        "batch": lambda c: c._invalidate_keys(["a"]),
        "pattern without wildcards": lambda c: c.delete_pattern("a"),
    },
    "pattern": {
        "delete_pattern": lambda c: c.delete_pattern("?"),
        "invalidate_pattern": lambda c: c.invalidate_pattern("a*"),
        "batch": lambda c: c._invalidate_patterns(["x*", "[a]", "a*"]),
    },
    "tag": {"delete_tag": lambda c: c.delete_tag("x")},
    "cleared": {"clear": lambda c: c.clear(), "close": lambda c: c.close()},
    "expired": {
        "expire": lambda c: (end(c), c.expire()),
        "get": lambda c: (end(c), c.get("a")),
        "gather": lambda c: (end(c), c.gather(["a"])),
        "set": lambda c: (end(c), c.set("a", 2)),
        "add": lambda c: (end(c), c.add("a", 2)),
        "fill": lambda c: (end(c), c.fill(c.lease("a"), 2)),
        "delete": lambda c: (end(c), c.delete("a")),
        "pop": lambda c: (end(c), c.pop("a", None)),
        "batch": lambda c: (end(c), c._invalidate_keys(["a"])),
        "pattern": lambda c: (end(c), c.delete_pattern("?")),
        "tag": lambda c: (end(c), c.delete_tag("x")),
        "clear": lambda c: (end(c), c.clear()),
    },
}
CASES = [(cause, name) for cause, calls in CAUSES.items() for name in calls]


@pytest.mark.parametrize(("cause", "name"), CASES)
def test_each_cause(cache, events, cause, name):
    """One event for one entry or value that left: its key, its value, and why."""
    cache.set("a", 1, tags=("x",))
    assert events == []
    CAUSES[cause][name](cache)
    assert events == [("a", 1, cause)]


def test_a_table_is_a_pattern(cache, events):
    """`invalidate_table` removes by pattern."""
    cache.set("t:1", 1)
    assert cache.invalidate_table("t") == 1
    assert events == [("t:1", 1, "pattern")]


def test_early(clock, events):
    """An entry that the draw ended left early."""
    make = cache_maker(lapse.ProbabilisticTTLCache, clock, {"early_expiry_factor": 1.0})
    cache = make(listener=lambda *event: events.append(event), seed=1)
    cache.set("a", 1)
    clock.advance(9.999999)
    while "a" in cache:
        cache.get("a")
    assert events == [("a", 1, "early")]


def test_what_is_no_event(cache, events):
    """Reads, touches and what leaves everything as it is."""
    cache.set("a", 1, tags=("x",))
    lease = cache.lease("b")
    cache.delete("b")
    cache.get("a"), cache.gather("ab"), cache.touch("a"), list(cache), len(cache), cache.copy()
    cache.add("a", 2), cache.setdefault("a", 2), cache.fill(lease, 2), cache.pop("b", None)
    cache.delete_tag("y"), cache.delete_pattern("b*"), cache.expire(), cache._check()
    with pytest.raises(ValueError, match="ttl"):
        cache.set("a", 2, ttl=-1)
    assert events == []


def test_an_event_comes_after_the_fact(make):
    """When the listener is told, the entry is gone, or another value is there."""
    seen = []
    cache = make(listener=lambda key, value, cause: seen.append((cause, cache.get(key))))
    cache.set("a", 1, tags=("x",))
    cache.set("a", 2, tags=("x",))
    cache.delete("a")
    cache.set("a", 3, tags=("x",))
    cache.delete_tag("x")
    cache.set("a", 4)
    cache.clear()
    assert seen == [("replaced", 2), ("deleted", None), ("tag", None), ("cleared", None)]


def test_statistics_agree(cache, events, clock):
    """The counters of the causes are the numbers of events."""
    for turn in range(30):
        cache.set_many({n: (turn, n) for n in range(50)}, tags=("t",))
        cache.set_many({f"a:{n}": n for n in range(50)}, ttl=1 if turn % 2 else 100)
        clock.advance(1)
        cache.delete_many(range(10)), cache.incr("n"), cache.get("a:1"), cache.popitem()
        [cache.delete_pattern, cache.delete_tag, lambda _: cache.clear()][turn % 3](
            "a:[1-3]*" if turn % 3 == 0 else "t"
        )
    stats = cache.stats()
    assert Counter(cause for *_, cause in events) == {
        "replaced": stats.replaced, "deleted": stats.deletes, "pattern": stats.pattern_deletes,
        "tag": stats.tag_deletes, "cleared": stats.cleared, "expired": stats.expirations,
    }  # fmt: skip
    assert min(Counter(cause for *_, cause in events).values()) > 0
    assert stats.listener_errors == 0


# --- Order -------------------------------------------------------------------------------------


def test_nested_changes_are_told_behind_the_running_event(make):
    """What the listener changes happens at once, and is told of in its turn."""
    log: list[str] = []

    def listener(key: str, value: Any, cause: str) -> None:
        log.append(f"begin {key}")
        for nested in value:
            assert cache.delete(nested)
            assert nested not in cache
        log.append(f"end {key}")

    cache = make(listener=listener)
    cache.update(a="bc", b="d", c="", d="")
    cache.delete("a")
    assert log == [f"{what} {key}" for key in "abcd" for what in ("begin", "end")]


def test_a_long_chain_of_nested_changes(make):
    """Each event makes the next: neither the stack nor the order suffers."""
    order: list[int] = []

    def listener(key: int, value: Any, cause: str) -> None:
        order.append(key)
        cache.delete(key + 1)

    cache = make(listener=listener)
    cache.set_many({n: n for n in range(20_000)})
    cache.delete(0)
    assert order == list(range(20_000))
    assert not cache


def test_changes_come_in_their_order(cache, events):
    """A thread's changes are told in the order in which they were made."""
    for n in range(100):
        cache.set("a", n)
    cache.delete("a")
    assert [value for _, value, _ in events] == list(range(100))


def test_threads_hear_of_their_own_changes(make):
    """An event comes in the thread that made it, in that thread's order; none twice, none lost."""
    heard: dict[int, list[Any]] = {}
    lock = threading.Lock()

    def listener(key: Any, value: Any, cause: str) -> None:
        with lock:
            heard.setdefault(threading.get_ident(), []).append((key, value, cause))

    cache = make(None, listener=listener)
    calls: list[Any] = [
        lambda k, v: cache.set(k, v),
        lambda k, v: cache.set(k, v, tags=(f"{k % 3}",)),
        lambda k, v: cache.add(k, v),
        lambda k, v: cache.fill(cache.lease(k), v),
        lambda k, v: cache.delete(k),
        lambda k, v: cache.pop(k, None),
        lambda k, v: cache.delete_tag(f"{k % 3}"),
        lambda k, v: cache._invalidate_keys([k, k + 1]),
        lambda k, v: cache.clear(),
    ]
    stored: list[Any] = [None] * 4

    def work(thread: int) -> None:
        draw, mine = random.Random(thread), set()
        for n in range(3000):
            call = draw.choice(calls[: 8 + (n % 20 == 0)])
            if call(draw.randrange(20), (thread, n)) is not False and calls.index(call) < 4:
                mine.add((thread, n))
        stored[thread] = mine

    in_threads(work, 4)
    told = [value for events in heard.values() for _, value, _ in events]
    left = list(cache.values())
    assert sorted(told + left) == sorted(set().union(*stored))
    assert len(heard) == 4
    check(cache)


# --- Faulty listeners --------------------------------------------------------------------------


def test_an_exception_is_logged_and_counted(make, caplog):
    """It never reaches the caller, and the other events come."""
    seen = []

    def listener(key: int, value: Any, cause: str) -> None:
        seen.append(key)
        if key % 2:
            raise ValueError(f"no {key}")

    cache = make(listener=listener, name="ages")
    cache.set_many({n: n for n in range(10)}, tags=("t",))
    with caplog.at_level(logging.ERROR, "lapse.events"):
        assert cache.delete(1) is True
        assert cache.pop(3) == 3
        assert cache.delete_tag("t") == 8
    assert sorted(seen) == list(range(10))
    assert len(caplog.records) == cache.stats().listener_errors == 5
    assert cache.get_stats()["listener_errors"] == 5
    assert {record.name for record in caplog.records} == {"lapse.events"}
    assert "ages" in caplog.text
    assert "no 3" in caplog.text
    check(cache)


EXITING = """
import lapse
seen = []
def listener(key, value, cause):
    seen.append(key)
    if key == 0:
        cache.delete("nested")
        raise {error}
cache = lapse.TTLCache(cleanup_interval=None, listener=listener)
cache.set("nested", 1)
cache.set_many({n: n for n in range(500)}, tags=("t",))
assert cache.delete_tag("t") == 500 and cache._check()
print(len(seen), len(set(seen)))
"""


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit", "GeneratorExit"])
def test_what_is_no_ordinary_exception(error):
    """It ends neither the call nor the process: it is reported, and no other event is lost."""
    run = run_python(EXITING.replace("{error}", error))
    assert (run.returncode, run.stdout.split()) == (0, ["501", "501"])
    assert error in run.stderr


def test_a_listener_that_clears_and_closes(make):
    """A listener may clear its cache, and close it: every entry is told of once."""
    seen = []

    def listener(key: int, value: Any, cause: str) -> None:
        seen.append(key)
        if len(seen) == 3:
            cache.clear()
        if len(seen) == 5:
            cache.close()

    cache = make(listener=listener)
    cache.set_many({n: n for n in range(1000)}, tags=("t",))
    assert cache.delete_pattern("*") == 0
    cache.delete_tag("t")
    assert sorted(seen) == list(range(1000))
    with pytest.raises(RuntimeError):
        cache.get(1)


def test_what_left_first_is_told_of_first(make):
    """A removal of many is told of to its end before what the listener itself removes."""
    seen = []

    def listener(key: str, value: Any, cause: str) -> None:
        seen.append(key)
        cache.delete("nested")

    cache = make(listener=listener)
    cache.set("nested", 0)
    cache.set_many({n: n for n in range(20)}, tags=("t",))
    assert cache.delete_tag("t") == 20
    assert (sorted(seen[:20]), seen[20:]) == ([*range(20)], ["nested"])


# --- Which listener ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [5, "listener", [], {}])
def test_a_listener_that_cannot_be_called(make, wrong):
    """It is refused when the cache is made."""
    with pytest.raises(TypeError):
        make(listener=wrong)


def test_a_listener_that_is_false(make):
    """A callable is a listener whatever its truth value."""
    heard = Events()
    cache = make(listener=heard)
    cache.set("a", 1)
    cache.delete("a")
    assert heard == [("a", 1, "deleted")]
    assert cache.stats().listener_errors == 0


@pytest.mark.parametrize("copied", [lambda c: c.copy(), copy.copy, copy.deepcopy, lambda c: c | {}])
def test_copies_keep_the_listener(cache, events, copied):
    """Copying is no event; what leaves the copy is."""
    cache.set("a", 1)
    other = copied(cache)
    assert events == []
    other.delete("a")
    cache.clear()
    assert events == [("a", 1, "deleted"), ("a", 1, "cleared")]


def test_pickles_lose_the_listener(cache, events):
    """A listener is not pickled: it need not even be possible."""
    cache.set("a", 1)
    other = pickle.loads(pickle.dumps(cache))
    other.delete("a")
    assert events == []
    assert other.stats().listener_errors == 0


def test_a_listener_and_its_cache_are_collected(make):
    """A cache and a listener that know each other die together, and in silence."""
    seen = []

    class Owner:
        def __init__(self) -> None:
            self.cache = make(listener=self.listen)
            self.cache.set("a", self)

        def listen(self, *event: Any) -> None:
            seen.append(event)

    gone = weakref.ref(Owner())
    gc.collect()
    assert gone() is None
    assert seen == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_sweeper_tells_too(kind):
    """Entries that the sweeping thread removes have expired."""
    events = []
    cache = KINDS[kind][0](0.01, cleanup_interval=0.01, listener=lambda *e: events.append(e))
    cache.set_many({n: n for n in range(300)})
    assert wait_until(lambda: len(events) == 300)
    assert sorted(events) == [(n, n, "expired") for n in range(300)]
    cache.close()
    assert len(events) == 300
