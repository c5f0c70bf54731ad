"""aget_or_load(): tasks share loads, and each can be cancelled alone."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import weakref
from typing import Any

import pytest

from lapse.flight import LoadCycleError
from loads import (
    Call,
    Counting,
    HeldTask,
    entered,
    everything_lands,
    load_tasks,
    run,
    settle_down,
    start,
    wait_for_waiters,
    waiting,
)

CANCELLED = asyncio.CancelledError
_ = pytest.fixture(autouse=True)(everything_lands)


# --- One caller ---


@pytest.mark.parametrize("plain", [True, False], ids=["value", "awaitable"])
def test_a_miss_loads_and_stores(cache, plain):
    """The loader returns a value or an awaitable; it is stored, and a hit calls nothing."""
    load = Counting()

    async def load_later(key):
        await asyncio.sleep(0)
        return load(key)

    async def main():
        for _ in range(2):
            value = await cache.aget_or_load("k", load if plain else load_later, 3, tags=["t"])
            assert value == ("k", 1)

    run(main())
    assert cache["k"] == ("k", 1)
    assert cache.expires_in("k") == 3
    assert cache.tags("k") == {"t"}
    assert load.keys == ["k"]


def test_an_exception_stores_nothing(cache, caplog):
    """An exception of the loader is raised as it is, once; the next call loads anew."""

    async def main():
        with pytest.raises(KeyError, match="gone"):
            await cache.aget_or_load("k", Counting(KeyError("gone")))
        return await cache.aget_or_load("k", Counting())

    assert run(main()) == ("k", 1)
    assert caplog.records == []


def test_the_context_of_the_first_caller(cache):
    """The loader sees the context variables of the caller that began the load."""
    variable = contextvars.ContextVar("variable", default="default")

    async def load(key):
        return variable.get()

    async def main():
        variable.set("mine")
        return await cache.aget_or_load("k", load)

    assert run(main()) == "mine"


def test_recursion_is_an_error(cache):
    """A loader that awaits its own key would wait for itself."""

    async def load(key):
        return await cache.aget_or_load(key, load)

    with pytest.raises(LoadCycleError):
        run(cache.aget_or_load("k", load))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
@pytest.mark.parametrize("error", [None, ValueError("no")], ids=["value", "error"])
def test_eager_tasks(cache, error):
    """A load that ends before its task has been waited for is not repeated."""
    load = Counting(error)

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        return await cache.aget_or_load("k", load)

    if error is None:
        assert run(main()) == ("k", 1)
    else:
        with pytest.raises(ValueError, match="no"):
            run(main())
    assert load.keys == ["k"]


def test_a_failed_load_holds_nothing(cache):
    """What a loader's exception refers to dies with the exception, without the cycle collector."""

    class Witness:
        pass

    async def load(key):
        witness = Witness()
        seen.append(weakref.ref(witness))
        await asyncio.sleep(0)
        raise ValueError(key)

    async def attempt():
        try:
            await cache.aget_or_load("k", load)
        except ValueError:
            return True

    async def main():
        assert await asyncio.gather(*(attempt() for _ in range(3))) == [True] * 3
        await settle_down()
        assert [ref() for ref in seen] == [None]

    seen: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_nothing_is_left_in_the_loop(cache):
    """A load leaves no timer behind, with a timeout or without."""

    async def main():
        for timeout in (None, 60):
            await cache.aget_or_load(timeout, Counting(), timeout=timeout)
        await settle_down()
        return [timer.cancelled() for timer in asyncio.get_running_loop()._scheduled]

    assert all(asyncio.run(main()))


# --- Several callers ---


def test_tasks_share_one_load(cache):
    """A thousand tasks that miss a key at once: one load."""
    load = HeldTask()

    async def main():
        tasks = [start(cache.aget_or_load("k", load)) for _ in range(1000)]
        await entered(load)
        await settle_down()
        assert waiting(cache, "k") == 1000
        load.release()
        assert await asyncio.gather(*tasks) == [("k", 1)] * 1000

    run(main())
    assert load.keys == ["k"]


def test_an_exception_reaches_every_caller(cache):
    """The exception of a shared load is raised in all who waited."""
    error = ValueError("no")
    load = HeldTask(error)

    async def main():
        tasks = [start(cache.aget_or_load("k", load)) for _ in range(5)]
        await entered(load)
        load.release()
        assert await asyncio.gather(*tasks, return_exceptions=True) == [error] * 5

    run(main())
    assert load.keys == ["k"]
    assert "k" not in cache


def test_loads_of_other_keys_do_not_wait(cache):
    """While a load is under way, others come and go."""
    load = HeldTask()

    async def main():
        task = start(cache.aget_or_load("k", load))
        await entered(load)
        assert await cache.aget_or_load("other", Counting()) == ("other", 1)
        load.release()
        await task

    run(main())


def test_a_change_outdates_the_load(cache):
    """Who came before a change shares the old load, who comes after it a new one."""
    old, new = HeldTask(), HeldTask()

    async def main():
        early = [start(cache.aget_or_load("k", old)) for _ in range(2)]
        await entered(old)
        cache.delete("k")
        late = [start(cache.aget_or_load("k", new)) for _ in range(2)]
        await entered(new)
        old.release()
        assert await asyncio.gather(*early) == [("k", 1)] * 2
        assert "k" not in cache
        new.release()
        assert await asyncio.gather(*late) == [("k", 1)] * 2

    run(main())
    assert old.keys == new.keys == ["k"]
    assert cache["k"] == ("k", 1)


# --- Cancellation ---


def test_a_cancelled_caller_cancels_nobody(cache):
    """The first caller and a later one are cancelled; the load goes on for the third."""
    load = HeldTask()

    async def main():
        tasks = [start(cache.aget_or_load("k", load)) for _ in range(3)]
        await entered(load)
        tasks[0].cancel()
        tasks[1].cancel()
        await settle_down()
        assert tasks[0].cancelled()
        assert tasks[1].cancelled()
        load.release()
        assert await tasks[2] == ("k", 1)

    run(main())
    assert load.keys == ["k"]
    assert load.cancelled == 0


def test_the_last_caller_cancels_the_load(cache):
    """A load that nobody waits for is cancelled, and the key is free at once."""
    load = HeldTask()

    async def main():
        tasks = [start(cache.aget_or_load("k", load)) for _ in range(2)]
        await entered(load)
        for task in tasks:
            task.cancel()
        await settle_down()
        assert load.cancelled == 1
        return await cache.aget_or_load("k", Counting())

    assert run(main()) == ("k", 1)


def test_a_cancelled_load_frees_its_key(cache):
    """While a cancelled loader is still cleaning up, others load anew and do not wait for it."""
    load, cleaned = HeldTask(), asyncio.Event()

    async def cleans_up(key):
        try:
            return await load(key)
        finally:
            await cleaned.wait()

    async def main():
        task = start(cache.aget_or_load("k", cleans_up))
        await entered(load)
        task.cancel()
        await settle_down()
        assert load.cancelled == 1
        assert await cache.aget_or_load("k", Counting()) == ("k", 1)
        cleaned.set()

    run(main())


def test_cancelled_before_the_load_has_begun(cache):
    """A load whose task is cancelled before it has run leaves nothing behind."""
    load = HeldTask()

    async def main():
        first = start(cache.aget_or_load("k", load))
        await asyncio.sleep(0)
        other = start(cache.aget_or_load("k", Counting()))
        load_tasks()[0].cancel()
        with pytest.raises(CANCELLED):
            await first
        return await other

    assert run(main()) == ("k", 1)
    assert load.keys == []


def test_a_loader_that_is_cancelled_within(cache):
    """CancelledError out of the loader is the first caller's; the others load anew."""

    async def cancelled(key):
        await asyncio.sleep(0)
        raise CANCELLED

    async def main():
        first = start(cache.aget_or_load("k", cancelled))
        await asyncio.sleep(0)
        others = [start(cache.aget_or_load("k", Counting())) for _ in range(2)]
        with pytest.raises(CANCELLED):
            await first
        assert await asyncio.gather(*others) == [("k", 1)] * 2

    run(main())


def test_a_load_that_is_cancelled_from_outside(cache):
    """Threads that wait for a task which somebody cancels begin anew."""
    load = HeldTask()

    async def main():
        task = start(cache.aget_or_load("k", load))
        await entered(load)
        call = Call(cache.get_or_load, "k", Counting())
        await asyncio.to_thread(wait_for_waiters, cache, "k", 2)
        load_tasks()[0].cancel()
        with pytest.raises(CANCELLED):
            await task
        return await asyncio.to_thread(call.result)

    assert run(main()) == ("k", 1)


# --- Timeouts ---


def test_timeout(cache):
    """A timeout ends the caller's wait with TimeoutError, the first caller's too, not the load."""
    load = HeldTask()

    async def main():
        first = start(cache.aget_or_load("k", load, timeout=0.001))
        second = start(cache.aget_or_load("k", load, timeout=60))
        with pytest.raises(TimeoutError, match="'k'"):
            await first
        load.release()
        return await second

    assert run(main()) == ("k", 1)
    assert load.cancelled == 0


def test_timeout_of_the_last_caller(cache):
    """When the last one who waits gives up, the load is cancelled."""
    load = HeldTask()

    async def main():
        with pytest.raises(TimeoutError):
            await cache.aget_or_load("k", load, timeout=0.001)
        await settle_down()

    run(main())
    assert load.cancelled == 1
