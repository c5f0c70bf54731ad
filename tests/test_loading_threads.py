"""Many threads and tasks on few keys: as many loads as changes, and never an old value.

LAPSE_LONG=1 runs the storm of invalidations for 30 seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from typing import Any

import pytest

import lapse
from loads import PATIENCE, Call, everything_lands, nothing_under_way, run
from support import switching, wait_until

THREADS = 64
LONG = os.environ.get("LAPSE_LONG") == "1"


_ = pytest.fixture(autouse=True)(everything_lands)


_switch_often = switching(5e-5)  # there are 64, and nobody shall wait for long


class Origin:
    """A data source that counts its reads; a read may take a while."""

    def __init__(self, seconds: float = 0.0):
        self.versions: dict[Any, int] = {}
        self.reads = 0
        self._seconds = seconds
        self._lock = threading.Lock()

    def read(self, key: Any) -> int:
        with self._lock:
            self.reads += 1
        value = self.versions.get(key, 0)
        if self._seconds:
            time.sleep(self._seconds)
        return value

    async def aread(self, key: Any) -> int:
        with self._lock:
            self.reads += 1
        value = self.versions.get(key, 0)
        await asyncio.sleep(self._seconds)
        return value

    def bump(self, key: Any) -> None:
        with self._lock:
            self.versions[key] = self.versions.get(key, 0) + 1


def at_once(count: int, work: Any) -> list[Any]:
    """work(0), work(1), ... in threads that begin together."""
    barrier = threading.Barrier(count)

    def begin(n: int) -> Any:
        barrier.wait(PATIENCE)
        return work(n)

    return [call.result() for call in [Call(begin, n) for n in range(count)]]


def test_64_threads_one_load(cache):
    """64 threads on one missing key: one load, time and again."""
    for turn in range(10):
        origin = Origin()
        at_once(THREADS, lambda n: cache.get_or_load(turn, origin.read))  # noqa: B023
        assert origin.reads == 1


def test_a_thousand_tasks_one_load(cache):
    """1,000 tasks of two loops, beside threads, on one missing key: one load."""
    origin = Origin(0.001)

    async def tasks():
        return await asyncio.gather(*(cache.aget_or_load("k", origin.aread) for _ in range(500)))

    def work(n: int) -> Any:
        return run(tasks()) if n < 2 else cache.get_or_load("k", origin.read)

    at_once(8, work)
    assert origin.reads == 1


@pytest.mark.parametrize("tasks", [False, True], ids=["threads", "tasks too"])
def test_a_storm_of_invalidations(tasks):
    """One hot key, invalidated time and again under a slow loader.

    At most one load a change, and one before; nobody reads a value older than the last change that
    was over when he called.
    """
    seconds, pause = (30.0, 0.1) if LONG else (1.0, 0.02)
    cache: Any = lapse.TTLCache(cleanup_interval=None)
    origin = Origin(0.02 if LONG else 0.004)
    done = threading.Event()
    over = 0  # the last version whose invalidation has returned
    reads = [0] * THREADS

    def check(value: int, least: int, n: int) -> None:
        reads[n] += 1
        assert value >= least, "stale"

    def read(n: int) -> None:
        while not done.wait(0.0005):
            least = over
            check(cache.get_or_load("k", origin.read), least, n)

    async def aread(n: int) -> None:
        while not done.is_set():
            least = over
            check(await cache.aget_or_load("k", origin.aread), least, n)
            await asyncio.sleep(0.0005)

    async def areads(n: int) -> None:
        await asyncio.gather(*(aread(n) for _ in range(8)))

    def work(n: int) -> None:
        if tasks and n < 4:
            asyncio.run(areads(n))
        else:
            read(n)

    calls = [Call(work, n) for n in range(THREADS)]
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            origin.bump("k")
            cache.delete("k")
            over += 1
            time.sleep(pause)
        assert wait_until(lambda: sum(reads) > over)
    finally:
        done.set()
    for call in calls:
        call.result()
    assert origin.reads <= over + 1


def test_keys_come_and_go(cache):
    """Loads, batches, changes of every kind and errors on a few keys at once."""
    origin = Origin()
    keys = [f"t:{n}" for n in range(5)]
    changes = [
        lambda key: cache.delete(key), lambda key: cache.delete_pattern("t:*"),
        lambda key: cache.delete_tag("tag"), lambda key: cache.clear(),
    ]  # fmt: skip

    def fail(key: Any) -> Any:
        raise LookupError(key)

    def read_batch(keys: list[Any]) -> dict[Any, int]:
        return {key: origin.read(key) for key in keys}

    def work(n: int) -> None:
        rng = random.Random(n)
        for _ in range(150):
            key, turn = rng.choice(keys), rng.random()
            least = origin.versions.get(key, 0) if n == 0 else 0
            if turn < 0.1 and n == 0:
                origin.bump(key)
                rng.choice(changes)(key)
            elif turn < 0.2:
                some = rng.sample(keys, 3)
                with contextlib.suppress(LookupError):
                    loaded = cache.load_many(some, read_batch, tags=["tag"])
                    assert loaded.keys() == {*some}
            elif turn < 0.3:
                with contextlib.suppress(LookupError):
                    cache.get_or_load(key, fail, tags=["tag"])
            else:
                try:
                    value = cache.get_or_load(key, origin.read, tags=["tag"])
                except LookupError:
                    continue
                assert value >= least

    at_once(8, work)
    for key in keys:
        assert cache.get(key, origin.versions.get(key, 0)) == origin.versions.get(key, 0)


def test_random_rings_end(make):
    """Loaders that ask for each other at random, in threads and tasks, over two caches: all end."""
    caches = [make(), make()]
    rng = random.Random(5)
    asks = {n: rng.sample(range(8), 2) for n in range(8)}

    def load(n: int) -> int:
        for other in asks[n]:
            caches[other % 2].get_or_load(other, load)
        return n

    async def aload(n: int) -> int:
        waits = [caches[other % 2].aget_or_load(other, aload) for other in asks[n]]
        await asyncio.gather(*waits)
        return n

    def work(n: int) -> str:
        key = n % 8
        try:
            if n % 3 == 0:
                run(caches[key % 2].aget_or_load(key, aload))
            else:
                caches[key % 2].get_or_load(key, load)
        except lapse.flight.LoadCycleError:
            return "ring"
        return "value"

    for _ in range(10):
        assert "ring" in at_once(12, work)
        assert wait_until(nothing_under_way)
