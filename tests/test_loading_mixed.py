"""Loads that threads, event loops and processes share, or must not."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import weakref
from typing import Any

import pytest

import lapse
from lapse.flight_board import board
from lapse.flight_gates import ThreadGate
from loads import (
    PATIENCE,
    Call,
    Counting,
    Held,
    HeldTask,
    entered,
    everything_lands,
    nothing_under_way,
    run,
    settle_down,
    start,
    wait_for_waiters,
    waiting,
)
from support import run_python, wait_until

_ = pytest.fixture(autouse=True)(everything_lands)


# --- Threads and loops ---


def test_a_thread_joins_a_task(cache):
    """A thread gets what another thread's event loop loads; an exception too."""
    for error in (None, ValueError("no")):
        load = HeldTask(error)
        leader = Call(run, cache.aget_or_load("k", load))
        assert load.entered.wait(PATIENCE)
        joiner = Call(cache.get_or_load, "k", Counting())
        wait_for_waiters(cache, "k", 2)
        load.release()
        assert leader.error() is joiner.error() is error
        if error is None:
            assert leader.result() == joiner.result() == ("k", 1)
        cache.clear()


def test_tasks_join_a_thread(cache):
    """Tasks of several loops get what a thread loads."""
    load = Held()
    leader = Call(cache.get_or_load, "k", load)
    assert load.entered.wait(PATIENCE)

    async def two():
        return await asyncio.gather(*(cache.aget_or_load("k", Counting()) for _ in range(2)))

    loops = [Call(run, two()) for _ in range(3)]
    wait_for_waiters(cache, "k", 6)
    load.go.set()
    assert [call.result() for call in loops] == [[("k", 1)] * 2] * 3
    assert leader.result() == ("k", 1)


def test_the_caller_is_gone_but_a_thread_waits(cache):
    """The task that began a load is cancelled; the load goes on for a thread."""
    load = HeldTask()
    joiners = []

    async def main():
        task = start(cache.aget_or_load("k", load))
        await entered(load)
        joiners.append(Call(cache.get_or_load, "k", Counting()))
        await asyncio.to_thread(wait_for_waiters, cache, "k", 2)
        task.cancel()
        await settle_down()
        load.release()
        return await asyncio.to_thread(joiners[0].result)

    assert run(main()) == ("k", 1)
    assert load.keys == ["k"]


def test_the_last_thread_cancels_the_task(cache, monkeypatch):
    """The last one who waits for a task may be a thread: the task is cancelled in its loop."""
    load = HeldTask()
    gives_up = threading.Event()  # when the time of the thread is over
    monkeypatch.setattr(ThreadGate, "wait", lambda gate, deadline: gives_up.wait(PATIENCE))

    async def main():
        task = start(cache.aget_or_load("k", load))
        await entered(load)
        call = Call(cache.get_or_load, "k", Counting(), timeout=1)
        await asyncio.to_thread(wait_for_waiters, cache, "k", 2)
        task.cancel()
        await asyncio.to_thread(wait_for_waiters, cache, "k", 1)
        gives_up.set()

        def outcome():  # nothing but the cancellation wakes this loop
            return call.error(), load.was_cancelled.wait(PATIENCE)

        error, cancelled = await asyncio.to_thread(outcome)
        assert isinstance(error, TimeoutError)
        assert cancelled

    run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_hands_over(cache):
    """A loop is closed with a load under way: a thread that waits begins anew."""
    load = HeldTask()
    loop: Any = asyncio.new_event_loop()
    task = loop.create_task(cache.aget_or_load("k", load))
    loop.run_until_complete(entered(load))
    joiner = Call(cache.get_or_load, "k", Counting())
    wait_for_waiters(cache, "k", 2)
    loop.close()
    assert joiner.result() == ("k", 1)
    del task


def test_leaving_asyncio_run_hands_over(cache):
    """asyncio.run() cancels what is left; a thread that waits for it begins anew."""
    load = HeldTask()
    joiners = []

    async def main():
        task = start(cache.aget_or_load("k", load))
        await entered(load)
        joiners.append(Call(cache.get_or_load, "k", Counting()))
        await asyncio.to_thread(wait_for_waiters, cache, "k", 2)
        return task

    asyncio.run(main())
    assert joiners[0].result() == ("k", 1)


# --- The process ---


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_wait(cache):
    """A child loads for itself what a thread of its parent was loading."""
    load = Held()
    leader = Call(cache.get_or_load, "k", load)
    assert load.entered.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        try:
            fresh = cache.get_or_load("k", Counting()) == ("k", 1)
            os._exit(0 if fresh and nothing_under_way() else 1)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    load.go.set()
    assert leader.result() == ("k", 1)


def test_importing_and_loading_needs_no_asyncio():
    """asyncio is imported when a coroutine loads, not before."""
    code = (
        "import sys, lapse; lapse.TTLCache().get_or_load('k', str);"
        "sys.exit('asyncio' in sys.modules)"
    )
    assert run_python(code).returncode == 0


def test_a_cache_is_freed_at_once(make):
    """A cache that has loaded is no part of a cycle."""
    cache = make()
    cache.get_or_load("k", Counting())
    ref = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert ref() is None
    finally:
        gc.enable()


def test_a_load_in_the_midst_of_a_section(cache):
    """What interrupts this thread while it holds the board's lock must not wait: it loads alone."""
    slow, nested = Held(), Counting()
    leader = Call(cache.get_or_load, "slow", slow)
    assert slow.entered.wait(PATIENCE)

    class Interrupted(dict):
        def get(self, place, default=None):
            if board.lock._is_owned() and not nested.keys:
                cache.get_or_load("slow", nested)
            return super().get(place, default)

    board.running = Interrupted(board.running)
    other = Call(cache.get_or_load, "other", Counting())
    assert wait_until(lambda: nested.keys or waiting(cache, "slow"))
    slow.go.set()
    assert other.result() == ("other", 1)
    assert leader.result() == ("slow", 1)
    assert nested.keys == ["slow"]


def test_finalizers_that_load():
    """A finalizer that loads in the midst of a load, wherever it strikes, hangs nobody."""
    cache = lapse.TTLCache(cleanup_interval=None)
    thresholds = gc.get_threshold()

    class Loads:
        def __init__(self):
            self.me = self

        def __del__(self):
            cache.get_or_load("inner", str)
            cache.delete("inner")

    def load(key):
        Loads()
        return key

    def work(n):
        for turn in range(150):
            cache.get_or_load(turn, load)
            cache.delete(turn)

    gc.set_threshold(1)
    try:
        for call in [Call(work, n) for n in range(4)]:
            call.result()
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
