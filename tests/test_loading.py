"""get_or_load(): one load a key, and never an old value afterwards."""

from __future__ import annotations

import gc
import inspect
import weakref
from datetime import timedelta
from typing import Any

import pytest

from lapse.flight_board import board
from loads import PATIENCE, Call, Counting, Held, everything_lands, run, wait_for_waiters, waiting
from support import Key, wait_until

_ = pytest.fixture(autouse=True)(everything_lands)


# --- One caller ---


def test_a_miss_loads_and_stores(cache):
    """The loader is called with the key; its value is returned, stored, and found the next time."""
    load = Counting()
    assert cache.get_or_load("k", load) == ("k", 1)
    assert cache.get_or_load("k", load) == ("k", 1)
    assert cache["k"] == ("k", 1)
    assert load.keys == ["k"]


def test_none_is_a_value(cache):
    """A loader may return None; it is stored like anything else."""
    calls = []
    for _ in range(2):
        assert cache.get_or_load("k", calls.append) is None
    assert calls == ["k"]


def test_ttl_and_tags(cache):
    """What was loaded lives for `ttl`, and bears `tags`."""
    cache.get_or_load("k", str, timedelta(seconds=3), tags=iter(["a", "b"]))
    assert cache.expires_in("k") == 3
    assert cache.tags("k") == {"a", "b"}
    cache.get_or_load("other", str)
    assert cache.expires_in("other") == 10
    assert cache.tags("other") == frozenset()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ttl": 0}, ValueError), ({"ttl": "1"}, ValueError), ({"ttl": float("nan")}, ValueError),
        ({"tags": "abc"}, TypeError), ({"tags": ""}, TypeError), ({"tags": [1]}, TypeError),
        ({"timeout": -1}, ValueError), ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
)  # fmt: skip
def test_wrong_arguments(cache, options, error):
    """A wrong ttl, tag or timeout is told before the loader is called."""
    load = Counting()
    with pytest.raises(error):
        cache.get_or_load("k", load, **options)
    with pytest.raises(error):
        cache.load_many(["k"], load, **options)
    with pytest.raises(error):
        run(cache.aget_or_load("k", load, **options))
    assert load.keys == []


def test_unhashable_key(cache):
    """An unhashable key is a TypeError, before anything is loaded."""
    load = Counting()
    with pytest.raises(TypeError):
        cache.get_or_load([], load)
    assert load.keys == []


def test_an_exception_stores_nothing(cache):
    """An exception of the loader is raised as it is; the next call loads anew."""
    with pytest.raises(KeyError, match="gone"):
        cache.get_or_load("k", Counting(KeyError("gone")))
    assert "k" not in cache
    assert cache.get_or_load("k", Counting()) == ("k", 1)


def test_an_awaitable_is_refused(cache):
    """A loader that returns a coroutine is a TypeError, and the coroutine is closed."""
    coroutines = []

    async def load_later(key):
        raise AssertionError("never runs")

    def load(key):
        coroutines.append(load_later(key))
        return coroutines[-1]

    with pytest.raises(TypeError, match="aget_or_load"):
        cache.get_or_load("k", load)
    with pytest.raises(TypeError, match="aget_or_load"):
        cache.load_many(["k"], load)
    assert [inspect.getcoroutinestate(c) for c in coroutines] == [inspect.CORO_CLOSED] * 2
    assert "k" not in cache


def test_closed_while_loading(cache):
    """A load that a close() has overtaken returns its value all the same."""

    def load(key):
        cache.close()
        return "value"

    assert cache.get_or_load("k", load) == "value"
    with pytest.raises(RuntimeError, match="closed"):
        cache.get_or_load("k", load)


def test_a_failed_load_holds_nothing(cache):
    """What a loader's exception refers to dies with the exception, without the cycle collector."""

    class Witness:
        pass

    def load(key):
        witness = Witness()
        seen.append(weakref.ref(witness))
        held.go.wait(PATIENCE)
        raise ValueError(key)

    def attempt():
        try:
            cache.get_or_load("k", load)
        except ValueError:
            failures.append("k")

    seen: list[Any] = []
    failures: list[Any] = []
    held = Held()
    gc.collect()
    gc.disable()
    try:
        calls = [Call(attempt) for _ in range(4)]
        wait_for_waiters(cache, "k", 3)
        held.go.set()
        for call in calls:
            call.result()
        assert len(failures) == 4
        assert wait_until(lambda: [ref() for ref in seen] == [None])
    finally:
        gc.enable()


# --- Several callers ---


def test_callers_share_one_load(cache):
    """Callers that come while a load is under way wait for it and get its value."""
    load = Held()
    calls = [Call(cache.get_or_load, "k", load) for _ in range(8)]
    wait_for_waiters(cache, "k", 7)
    load.go.set()
    assert [call.result() for call in calls] == [("k", 1)] * 8
    assert load.keys == ["k"]


def test_an_exception_reaches_every_caller(cache):
    """The exception of a shared load is raised in all who waited, and nothing is stored."""
    error = ValueError("no")
    load = Held(error)
    calls = [Call(cache.get_or_load, "k", load) for _ in range(5)]
    wait_for_waiters(cache, "k", 4)
    load.go.set()
    assert [call.error() for call in calls] == [error] * 5
    assert load.keys == ["k"]
    assert "k" not in cache
    assert cache.get_or_load("k", Counting()) == ("k", 1)


def test_an_interrupted_load_is_taken_over(cache):
    """KeyboardInterrupt ends the leader's call alone: one of those who waited loads anew."""
    first, second = Held(KeyboardInterrupt()), Counting()
    leader = Call(cache.get_or_load, "k", first)
    assert first.entered.wait(PATIENCE)
    others = [Call(cache.get_or_load, "k", second) for _ in range(4)]
    wait_for_waiters(cache, "k", 4)
    first.go.set()
    assert isinstance(leader.error(), KeyboardInterrupt)
    assert [call.result() for call in others] == [("k", 1)] * 4
    assert second.keys == ["k"]


def test_an_interrupted_leader_wakes_everybody(cache, monkeypatch):
    """An interrupt in the midst of waking those who wait does not leave the rest behind."""
    from lapse.flight_gates import ThreadGate

    load, wake, interrupts = Held(), ThreadGate._wake, [KeyboardInterrupt()]

    def interrupted(gate):
        if interrupts:
            raise interrupts.pop()
        wake(gate)

    leader = Call(cache.get_or_load, "k", load)
    assert load.entered.wait(PATIENCE)
    others = [Call(cache.get_or_load, "k", load) for _ in range(4)]
    wait_for_waiters(cache, "k", 4)
    monkeypatch.setattr(ThreadGate, "_wake", interrupted)
    load.go.set()
    assert isinstance(leader.error(), KeyboardInterrupt)
    assert [call.result() for call in others] == [("k", 1)] * 4


def test_other_keys_do_not_wait(cache):
    """Loads of different keys run beside each other, even where their hashes are equal."""
    load = Held()
    calls = [Call(cache.get_or_load, Key(name), load) for name in "ab"]
    assert wait_until(lambda: len(load.keys) == 2)
    assert waiting(cache, Key("a")) == waiting(cache, Key("b")) == 0
    joiners = [Call(cache.get_or_load, Key(name), load) for name in "ab"]
    wait_for_waiters(cache, Key("a"), 1)
    wait_for_waiters(cache, Key("b"), 1)
    load.go.set()
    results = [call.result() for call in calls]
    assert sorted(number for _, number in results) == [1, 2]
    assert [call.result() for call in joiners] == results


def test_equal_keys_share(cache):
    """Keys that are equal share a load, and their comparison may load something itself."""
    inner = Counting()
    load = Held()
    leader = Call(cache.get_or_load, Key("k"), load)
    assert load.entered.wait(PATIENCE)
    key = Key("k", hook=lambda: cache.get_or_load("inner", inner))
    joiner = Call(cache.get_or_load, key, load)
    wait_for_waiters(cache, Key("k"), 1)
    load.go.set()
    assert leader.result() == joiner.result()
    assert inner.keys == ["inner"]


def test_caches_do_not_share(make):
    """A load of one cache is none of another's."""
    first, second = make(), make()
    load = Held()
    leader = Call(first.get_or_load, "k", load)
    assert load.entered.wait(PATIENCE)
    assert second.get_or_load("k", Counting()) == ("k", 1)
    load.go.set()
    leader.result()


def test_whoever_leads_looks_once_more(cache):
    """What was stored between the miss and the lead is found: the loader is not called."""

    class Stores(dict):
        def get(self, place, default=None):
            cache.set("k", "stored")
            return super().get(place, default)

    board.running, usual = Stores(), board.running
    try:
        assert cache.get_or_load("k", Counting()) == "stored"
    finally:
        board.running = usual


def test_a_small_cache_still_shares(make):
    """Where nothing can be stored, callers share loads all the same."""
    cache = make(maxsize=0)
    load = Held()
    calls = [Call(cache.get_or_load, "k", load) for _ in range(4)]
    wait_for_waiters(cache, "k", 3)
    load.go.set()
    assert [call.result() for call in calls] == [("k", 1)] * 4
    assert len(cache) == 0


# --- Changes while a load runs ---


CHANGES = {
    "set": lambda c: c.set("t:k", "new"),
    "delete": lambda c: c.delete("t:k"),
    "pattern": lambda c: c.delete_pattern("t:*"),
    "table": lambda c: c.invalidate_table("t"),
    "tag": lambda c: c.delete_tag("tag"),
    "clear": lambda c: c.clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_outdates_the_load(cache, change):
    """Who came before a change gets the old value, which is not stored; later callers load anew."""
    old, new = Held(), Counting()
    early = [Call(cache.get_or_load, "t:k", old, tags=["tag"]) for _ in range(3)]
    wait_for_waiters(cache, "t:k", 2)
    assert old.entered.wait(PATIENCE)
    change(cache)
    late = cache.get_or_load("t:k", lambda key: new(key)[0] + " anew", tags=["tag"])
    old.go.set()
    assert [call.result() for call in early] == [("t:k", 1)] * 3
    assert late == cache["t:k"]
    assert late in ("new", "t:k anew")
    assert len(old.keys) == 1


def test_the_later_load_is_shared_too(cache):
    """After a change callers share the new load, while the old one goes on for its own."""
    old, new = Held(), Held()
    early = Call(cache.get_or_load, "k", old)
    assert old.entered.wait(PATIENCE)
    cache.delete("k")
    late = [Call(cache.get_or_load, "k", new) for _ in range(3)]
    wait_for_waiters(cache, "k", 2)
    old.go.set()
    assert early.result() == ("k", 1)
    assert "k" not in cache
    wait_for_waiters(cache, "k", 2)
    new.go.set()
    assert {call.result() for call in late} == {("k", 1)}
    assert new.keys == ["k"]
    assert cache["k"] == ("k", 1)


def test_other_changes_do_not_matter(cache):
    """Changes of other keys and tags leave a load alone: it is joined, and stored."""
    load = Held()
    calls = [Call(cache.get_or_load, "k", load, tags=["a"])]
    assert load.entered.wait(PATIENCE)
    cache.set("other", 1)
    cache.delete_tag("b")
    cache.delete_pattern("x*")
    calls.append(Call(cache.get_or_load, "k", load, tags=["a"]))
    wait_for_waiters(cache, "k", 1)
    load.go.set()
    assert [call.result() for call in calls] == [("k", 1)] * 2
    assert cache["k"] == ("k", 1)


def test_a_caller_with_more_tags_does_not_join(cache):
    """A load does not know of the deletion of a tag that it does not name: it is not shared."""
    old = Held()
    early = Call(cache.get_or_load, "k", old)
    assert old.entered.wait(PATIENCE)
    cache.delete_tag("t")
    assert cache.get_or_load("k", lambda key: "anew", tags=["t"]) == "anew"
    old.go.set()
    early.result()


def test_a_loader_may_set_its_key(cache):
    """What the loader itself stores under the key stays; its return value is only returned."""
    assert cache.get_or_load("k", lambda key: cache.set(key, "set") or "loaded") == "loaded"
    assert cache["k"] == "set"


# --- Timeouts ---


def test_timeout_bounds_the_wait(cache):
    """Who joins waits for so long, then TimeoutError; the load goes on for the others."""
    load = Held()
    calls = [Call(cache.get_or_load, "k", load, timeout=60) for _ in range(2)]
    wait_for_waiters(cache, "k", 1)
    with pytest.raises(TimeoutError, match="'k'"):
        cache.get_or_load("k", load, timeout=0)
    with pytest.raises(TimeoutError):
        cache.load_many(["k"], load, timeout=0.001)
    load.go.set()
    assert [call.result() for call in calls] == [("k", 1)] * 2


def test_the_leader_is_not_bounded(cache):
    """A timeout does not interrupt the loader in the caller's own thread."""
    assert cache.get_or_load("k", Counting(), timeout=0) == ("k", 1)
