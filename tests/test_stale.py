"""Values past their deadline: who is served, who reloads, and what puts an end to it."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import threading

import pytest

import lapse
from lapse.flight_refresh import MOST_WORKERS
from loads import Call, Counting, Held, HeldTask, entered, everything_lands, run, start
from support import PATIENCE, check, wait_until

landed = pytest.fixture(autouse=True)(everything_lands)


class Failing(Counting):
    """A loader that raises."""

    def __init__(self) -> None:
        super().__init__(ValueError("the origin is down"))


@pytest.fixture
def aged(make, clock):
    """A cache with a value of 'k' that is past its deadline, and within its grace."""
    cache = make(10, stale_ttl=20)
    cache["k"] = "old"
    clock.advance(11)
    return cache


# --- Who sees what ---


def test_absent_for_everything_else(aged):
    """A stale entry is absent for reads, length, iteration and removal by key."""
    assert aged.get("k") is None
    assert "k" not in aged
    assert len(aged) == 0
    assert list(aged) == []
    assert aged.gather(["k"]) == [None]
    with pytest.raises(KeyError):
        aged["k"]
    with pytest.raises(KeyError):
        aged.expires_in("k")
    assert aged.touch("k") is False
    assert aged.delete("k") is False
    assert aged._stale("k", None) is None


def test_sweeps_leave_it_until_its_grace_ends(aged, clock):
    """expire() takes an entry when its grace has passed, not before."""
    assert aged.expire() == 0
    clock.advance(18.9)
    assert aged.expire() == 0
    clock.advance(0.1)
    assert aged._stale("k", None) is None
    assert aged.expire() == 1
    check(aged)


def test_writes_replace_it(aged):
    """set(), add() and setdefault() store as if there were nothing."""
    assert aged.add("k", "new") is True
    assert aged["k"] == "new"
    assert aged.stats().expirations == 1


@pytest.mark.parametrize("option", ["stale_ttl", "refresh"])
def test_wrong_options_are_refused(option):
    """A stale_ttl that is no lifetime, or an unknown place to refresh, is a ValueError."""
    wrong = {"stale_ttl": -1, "refresh": "later"}[option]
    with pytest.raises(ValueError, match=r"later|positive"):
        lapse.TTLCache(10, None, **{option: wrong})


def test_a_wrong_refresh_of_a_call_is_refused(aged):
    """refresh= of a call is checked before the loader is called."""
    load = Counting()
    with pytest.raises(ValueError, match="later"):
        aged.get_or_load("k", load, refresh="later")
    assert load.keys == []


def test_a_grace_of_any_length(make, clock):
    """An endless grace serves for ever, and a lifetime that never ends has no use for one."""
    cache = make(10, stale_ttl=float("inf"))
    cache["k"] = "old"
    clock.advance(1e9)
    assert cache._stale("k", None) == "old"
    cache.set("n", 1, ttl=float("inf"))
    assert cache._stale("n", None) is None


# --- Reloading ---


def test_the_caller_reloads(aged):
    """The one who finds a stale value reloads it and gets the new one."""
    load = Counting()
    assert aged.get_or_load("k", load) == ("k", 1)
    assert aged["k"] == ("k", 1)
    assert aged.stats().stale_hits == 1


def test_others_are_served(aged):
    """While one caller reloads, all others get the old value at once."""
    load = Held()
    leader = Call(aged.get_or_load, "k", load)
    assert load.entered.wait(PATIENCE)
    assert [aged.get_or_load("k", Failing()) for _ in range(3)] == ["old"] * 3
    load.go.set()
    assert leader.result() == ("k", 1)
    assert aged.get_or_load("k", Failing()) == ("k", 1)


@pytest.mark.parametrize("where", ["thread", "task"])
def test_in_the_background(aged, where):
    """With a refresh in the background the first caller is served, too."""
    load = Held()
    assert aged.get_or_load("k", load, refresh=where) == "old"
    assert load.entered.wait(PATIENCE)
    assert aged.get_or_load("k", Failing(), refresh=where) == "old"
    load.go.set()
    assert wait_until(lambda: aged.get("k") == ("k", 1))


def test_background_workers_are_few(make, clock):
    """However many keys are reloaded at once, there are only so many threads."""
    cache = make(10, stale_ttl=20, refresh="thread")
    keys = range(5 * MOST_WORKERS)
    cache.set_many((key, "old") for key in keys)
    clock.advance(11)
    load = Held()
    assert [cache.get_or_load(key, load) for key in keys] == ["old"] * len(keys)
    assert load.entered.wait(PATIENCE)
    names = [thread.name for thread in threading.enumerate()]
    assert 1 <= names.count("lapse-refresh") <= MOST_WORKERS
    load.go.set()
    assert wait_until(lambda: len(cache) == len(keys))
    assert sorted(load.keys) == list(keys)


def test_waiting_for_a_worker_is_no_ring(make, clock):
    """Who has handed a reload over may wait for it later, though no worker has begun it."""
    cache = make(10, stale_ttl=20, refresh="thread")
    keys = range(MOST_WORKERS + 1)
    cache.set_many((key, "old") for key in keys)
    clock.advance(11)
    load = Held()
    for key in keys:
        assert cache.get_or_load(key, load) == "old"
    assert wait_until(lambda: len(load.keys) == MOST_WORKERS)
    (left,) = set(keys) - set(load.keys)
    clock.advance(20)
    with pytest.raises(TimeoutError):
        cache.get_or_load(left, load, timeout=0)
    load.go.set()
    assert wait_until(lambda: left in cache)


def test_load_many_reloads_and_is_served(aged):
    """A batch reloads its stale keys; those that somebody reloads already come as they were."""
    load = Held()
    leader = Call(aged.get_or_load, "k", load)
    assert load.entered.wait(PATIENCE)
    assert aged.load_many(["k", "m"], _ones) == {"k": "old", "m": 1}
    load.go.set()
    leader.result()


def _ones(keys):
    return dict.fromkeys(keys, 1)


# --- Failing reloads ---


def test_a_failing_reload_serves_on(aged, clock, caplog):
    """While the reload raises, the old value is served until its grace ends; it is logged."""
    with caplog.at_level(logging.WARNING, "lapse.loading"):
        assert aged.get_or_load("k", Failing()) == "old"
    assert "the old value is served on" in caplog.text
    clock.advance(18)
    assert aged.get_or_load("k", Failing()) == "old"
    clock.advance(2)
    with pytest.raises(ValueError, match="down"):
        aged.get_or_load("k", Failing())


def test_unless_that_is_not_wanted(make, clock):
    """stale_if_error=False: the caller who reloads gets the error, and the value stays stale."""
    cache = make(10, stale_ttl=20, stale_if_error=False)
    cache["k"] = "old"
    clock.advance(11)
    with pytest.raises(ValueError, match="down"):
        cache.get_or_load("k", Failing())
    assert cache._stale("k", None) == "old"


@pytest.mark.parametrize(
    "invalidate",
    [
        lambda c: c.delete("k"),
        lambda c: c.delete_pattern("k*"),
        lambda c: c.delete_tag("t"),
        lambda c: c.clear(),
    ],
)
def test_never_after_an_invalidation(make, clock, invalidate):
    """What was invalidated is not served, though its reload fails, or was begun before."""
    cache = make(10, stale_ttl=20)
    cache.set("k", "old", tags=["t"])
    clock.advance(11)
    load = Held(ValueError("the origin is down"))
    leader = Call(cache.get_or_load, "k", load, tags=["t"])
    assert load.entered.wait(PATIENCE)
    invalidate(cache)
    assert cache.get_or_load("k", lambda key: "new") == "new"
    cache.delete("k")
    load.go.set()
    assert isinstance(leader.error(), ValueError)


def test_a_batch_that_fails_serves_on(make, clock):
    """load_many() serves old values if its loader raises and there is one for every key."""
    cache = make(10, stale_ttl=20)
    cache.set_many({"a": 1, "b": 2})
    clock.advance(11)
    assert cache.load_many(["a", "b"], Failing()) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="down"):
        cache.load_many(["a", "b", "c"], Failing())


def test_an_interrupt_is_not_served_over(aged):
    """KeyboardInterrupt in the reload reaches the caller."""
    with pytest.raises(KeyboardInterrupt):
        aged.get_or_load("k", Counting(KeyboardInterrupt()))
    assert aged.get_or_load("k", Counting()) == ("k", 1)


# --- Coroutines ---


def test_coroutines_are_served(aged):
    """One task reloads and waits; the others get the old value; then all get the new one."""

    async def main():
        load = HeldTask()
        leader = start(aged.aget_or_load("k", load))
        await entered(load)
        assert [await aged.aget_or_load("k", Failing()) for _ in range(3)] == ["old"] * 3
        load.release()
        assert await leader == ("k", 1)
        assert await aged.aget_or_load("k", Failing()) == ("k", 1)

    run(main())


def test_a_task_in_the_background(aged):
    """refresh="task" serves the first caller too, and reloads in a task of the loop."""

    async def main():
        load = HeldTask()
        assert await aged.aget_or_load("k", load, refresh="task") == "old"
        await entered(load)
        load.release()
        while aged.get("k") is None:
            await asyncio.sleep(0)
        assert aged["k"] == ("k", 1)

    run(main())


def test_a_failing_task_serves_on(aged):
    """A reload that raises in a task leaves the old value to its caller, not after a change."""

    async def main():
        assert await aged.aget_or_load("k", Failing()) == "old"
        load = HeldTask(ValueError("the origin is down"))
        leader = start(aged.aget_or_load("k", load))
        await entered(load)
        aged.delete("k")
        load.release()
        with pytest.raises(ValueError, match="down"):
            await leader

    run(main())


def test_a_cancelled_reload_harms_nobody(aged):
    """The caller who reloads may be cancelled: the next one reloads."""

    async def main():
        load = HeldTask()
        leader = start(aged.aget_or_load("k", load))
        await entered(load)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        assert await aged.aget_or_load("k", Counting()) == ("k", 1)

    run(main())


# --- Cached functions ---


def test_cached_functions_are_served(make, clock):
    """A function under @cached with a stale_ttl cache is reloaded by one of its callers."""
    cache = make(10, stale_ttl=20)
    gate = Held()
    calls = []

    @lapse.cached(cache=cache)
    def double(x):
        calls.append(x)
        return gate(x) if len(calls) > 1 else "old"

    assert double(3) == "old"
    clock.advance(11)
    leader = Call(double, 3)
    assert gate.entered.wait(PATIENCE)
    assert double(3) == "old"
    gate.go.set()
    assert leader.result() == (3, 1)
    assert double(3) == (3, 1)


# --- Softly cleared ---


@pytest.fixture
def soft(make):
    """A cache of two entries that was softly cleared."""
    cache = make(10)
    cache.set_many({"a": 1, "b": 2})
    assert cache.soft_clear(30) == 2
    return cache


def test_soft_clear_ends_all_lives(soft):
    """After soft_clear() every entry is absent, and its old value is served while one reloads."""
    assert len(soft) == 0
    assert soft.get("a") is None
    assert soft._stale("b", None) == 2
    assert soft.get_or_load("a", lambda key: "new") == "new"
    assert soft["a"] == "new"
    check(soft)


def test_soft_clear_has_a_grace_of_its_own(soft, clock):
    """What was softly cleared goes after stale_ttl; what expires by itself has no such grace."""
    soft.set("c", 3, ttl=5)
    clock.advance(6)
    assert soft._stale("c", None) is None
    clock.advance(23.9)
    assert soft._stale("a", None) == 1
    clock.advance(0.1)
    assert soft._stale("a", None) is None
    assert soft.expire() == 3


def test_soft_clear_reaches_what_never_expires(make):
    """Entries without an end are ended, too, and fresh ones live."""
    cache = make(None)
    cache["a"] = 1
    cache.soft_clear()
    cache["b"] = 2
    assert dict(cache.items()) == {"b": 2}


def test_soft_clear_outdates_loads(make):
    """A load that began before soft_clear() is not stored."""
    cache = make(10)
    lease = cache.lease("a")
    assert cache.soft_clear() == 0
    assert cache.fill(lease, "old") is False


def test_a_slow_sliding_read_revives_nothing(clock):
    """soft_clear() of a large sliding cache leaves nothing alive, and a full sweep takes it all."""
    cache = lapse.SlidingTTLCache(10, None, clock=clock)
    cache.set_many((i, i) for i in range(20_000))
    assert cache.soft_clear(5) == 20_000
    assert cache.gather(range(20_000)) == [None] * 20_000
    clock.advance(5)
    assert cache.expire() == 20_000
    check(cache)


def test_twice_soft(make, clock):
    """A second soft_clear() ends what came since; what the first one ended is served no more."""
    cache = make(10)
    cache["a"] = 1
    cache.soft_clear(30)
    clock.advance(1)
    cache["b"] = 2
    assert cache.soft_clear(30) == 1
    assert cache._stale("b", None) == 2
    assert cache._stale("a", None) is None


# --- Copies ---


def test_copies_keep_the_options(make, clock):
    """Copies and pickles serve stale values as the cache that they are made of; none is in them."""
    cache = lapse.TTLCache(10, None, stale_ttl=20, refresh="thread", stale_if_error=False)
    cache["k"] = 1
    for twin in (cache.copy(), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        options = {name: twin._options[name] for name in ("stale_ttl", "refresh", "stale_if_error")}
        assert options == {"stale_ttl": 20, "refresh": "thread", "stale_if_error": False}
        assert twin["k"] == 1
