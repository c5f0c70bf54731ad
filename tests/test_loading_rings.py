"""Loads that would wait for themselves raise LoadCycleError: nobody hangs, in threads and tasks."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lapse.flight import LoadCycleError
from loads import (
    PATIENCE,
    Call,
    Counting,
    Held,
    HeldTask,
    entered,
    everything_lands,
    run,
    settle_down,
    start,
    wait_for_waiters,
    waiting,
)
from support import wait_until

_ = pytest.fixture(autouse=True)(everything_lands)


# --- Threads ---


def test_recursion_is_an_error(cache):
    """A loader that asks for its own key would wait for itself."""

    def load(key):
        return cache.get_or_load(key, load)

    with pytest.raises(LoadCycleError, match="'k'"):
        cache.get_or_load("k", load)
    assert issubclass(LoadCycleError, RuntimeError)
    assert cache.get_or_load("k", Counting()) == ("k", 1)


def test_recursion_around_a_batch(cache):
    """A batch loader that asks for one of its keys would wait for itself."""

    def load_batch(keys):
        return {"a": 1, "b": cache.get_or_load("a", str)}

    with pytest.raises(LoadCycleError):
        cache.load_many(["a", "b"], load_batch)
    assert len(cache) == 0


def test_loads_within_loads(cache):
    """A loader may load other keys."""

    def load(n):
        return 1 if n < 2 else cache.get_or_load(n - 1, load) + cache.get_or_load(n - 2, load)

    assert cache.get_or_load(30, load) == 1346269


@pytest.mark.parametrize("length", [2, 3, 7])
def test_a_ring_of_threads(make, length):
    """Threads whose loads wait for each other, across caches: one is told, and nobody hangs."""
    caches = [make() for _ in range(length)]
    barrier = threading.Barrier(length)

    def loader(n):
        def load(key):
            barrier.wait(PATIENCE)
            after = (n + 1) % length
            return caches[after].get_or_load("k", Counting())

        return load

    calls = [Call(cache.get_or_load, "k", loader(n)) for n, cache in enumerate(caches)]
    assert [type(call.error()) for call in calls] == [LoadCycleError] * length


def test_a_wait_in_line_is_no_ring(cache):
    """Loads that wait for others, which wait for nobody, all end."""
    last = Held()
    calls = [Call(cache.get_or_load, 0, last)]
    assert last.entered.wait(PATIENCE)
    for n in range(1, 5):
        before = n - 1
        calls.append(Call(cache.get_or_load, n, lambda key, b=before: cache.get_or_load(b, last)))
        wait_for_waiters(cache, before, 1)
    last.go.set()
    assert [call.result() for call in calls] == [(0, 1)] * 5


def test_a_thread_that_inherits_the_context(cache):
    """A thread of asyncio.to_thread() is part of the load that awaits it: its wait is a ring."""

    async def load(key):
        return await asyncio.to_thread(cache.get_or_load, key, Counting())

    with pytest.raises(LoadCycleError):
        run(cache.aget_or_load("k", load))


def test_a_ring_through_a_thread_of_a_task(cache):
    """A task awaits a thread, which waits for a thread, which waits for the task: a ring."""
    held = threading.Event()

    def last(key):
        held.set()
        wait_for_waiters(cache, "last", 1)
        return cache.get_or_load("first", Counting())

    def middle(key):
        return cache.get_or_load("last", Counting())

    async def first(key):
        return await asyncio.to_thread(cache.get_or_load, "middle", middle)

    call = Call(cache.get_or_load, "last", last)
    assert held.wait(PATIENCE)
    with pytest.raises(LoadCycleError):
        run(cache.aget_or_load("first", first))
    assert isinstance(call.error(), LoadCycleError)


def test_a_wait_that_was_given_up_is_no_ring(cache):
    """A loader that has waited in vain for another load does not wait for it any more."""
    slow, given_up = Held(), threading.Event()

    def impatient(key):
        with pytest.raises(TimeoutError):
            cache.get_or_load("slow", Counting(), timeout=0)
        given_up.set()
        wait_for_waiters(cache, "impatient", 1)
        return "value"

    def load_slow(key):
        slow(key)
        return cache.get_or_load("impatient", Counting())

    calls = [Call(cache.get_or_load, "slow", load_slow)]
    assert slow.entered.wait(PATIENCE)
    calls.append(Call(cache.get_or_load, "impatient", impatient))
    assert given_up.wait(PATIENCE)
    slow.go.set()
    assert [call.result() for call in calls] == ["value"] * 2


def test_waiting_for_a_task_of_the_own_thread(cache):
    """A thread that waits for a load of the event loop that it runs would wait for ever."""
    load = HeldTask()

    async def main():
        task = asyncio.ensure_future(cache.aget_or_load("k", load))
        while not load.entered.is_set():
            await asyncio.sleep(0)
        with pytest.raises(LoadCycleError):
            cache.get_or_load("k", Counting())
        load.release()
        return await task

    assert run(main()) == ("k", 1)


# --- Tasks ---


def test_a_ring_of_tasks(cache):
    """Loads that await each other: one is told, and nobody hangs."""

    def loader(after):
        async def load(key):
            await asyncio.sleep(0)
            return await cache.aget_or_load(after, loader(key))

        return load

    async def main():
        tasks = [
            start(cache.aget_or_load(a, loader(b))) for a, b in [("a", "b"), ("b", "c"), ("c", "a")]
        ]
        return await asyncio.gather(*tasks, return_exceptions=True)

    # "b" and "c" are loaded by whoever comes first: each loader waits for one that is under way
    assert {type(result) for result in run(main())} == {LoadCycleError}


def test_a_ring_through_children(cache):
    """What a load starts and awaits is part of it: gather() hides no ring."""

    async def load_a(key):
        return await asyncio.gather(cache.aget_or_load("b", load_b), asyncio.sleep(0))

    async def load_b(key):
        return await asyncio.gather(cache.aget_or_load("a", load_a), asyncio.sleep(0))

    with pytest.raises(LoadCycleError):
        run(cache.aget_or_load("a", load_a))


def test_a_ring_through_a_blocked_loop(cache):
    """A thread waits for a task, whose loop's thread waits for that thread: a ring."""
    held = HeldTask()
    blocked = threading.Event()

    def load_in_thread(key):
        blocked.set()
        assert wait_until(lambda: waiting(cache, "thread") == 1)
        return cache.get_or_load("task", Counting())

    async def main():
        task = start(cache.aget_or_load("task", held))
        await entered(held)
        call = Call(cache.get_or_load, "thread", load_in_thread)
        assert blocked.wait(PATIENCE)
        with pytest.raises(LoadCycleError):
            cache.get_or_load("thread", Counting())  # blocks this loop
        assert isinstance(call.error(), LoadCycleError)
        held.release()
        return await task

    assert run(main()) == ("task", 1)


def test_what_a_load_started_may_load(cache):
    """A task that a loader has left behind is no part of it any more when the load is over."""
    tasks = []

    async def later():
        await settle_down()
        return await cache.aget_or_load("k", Counting())

    async def load(key):
        tasks.append(start(later()))
        return "loaded"

    async def main():
        assert await cache.aget_or_load("k", load) == "loaded"
        cache.delete("k")
        return await tasks[0]

    assert run(main()) == ("k", 1)
