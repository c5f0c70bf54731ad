"""Lazy invalidation under many threads and tasks: one load for a mark, and never an old value.

LAPSE_LONG=1 races for longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from itertools import cycle
from time import sleep
from typing import Any

import pytest

from lapse import TTLCache
from lapse.loading.lazy import LazyInvalidation
from loads import PATIENCE, Call, everything_lands, run
from support import FREE_THREADED, check, switching

THREADS = 64
LONG = os.environ.get("LAPSE_LONG") == "1"
MARKS = 60_000 if LONG else 400 if FREE_THREADED else 1_200  # in one race
READERS, MARKERS, KEYS = 3, 2, 4  # threads, threads, keys of each marker

_ = pytest.fixture(autouse=True)(everything_lands)


_switch_often = switching(2e-5)


class Source:
    """Values are versions, or always one object; others run between reading one and its return."""

    def __init__(self, fixed: Any = None) -> None:
        self.versions: dict[Any, int] = {}
        self.fixed = fixed
        self.reads = 0
        self._lock = threading.Lock()

    def fetch(self, key: Any) -> Any:
        with self._lock:
            self.reads += 1
        value = self.versions.get(key, 0)
        sleep(0)
        return (value,) if self.fixed is None else self.fixed


class AsyncSource(Source):
    """The same for coroutines."""

    async def fetch(self, key: Any) -> Any:  # type: ignore[override]
        value = super().fetch(key)
        await asyncio.sleep(0)
        return value


def at_once(count: int, work: Any) -> list[Any]:
    """work(0), work(1), ... in threads that begin together."""
    barrier = threading.Barrier(count)

    def begin(n: int) -> Any:
        barrier.wait(PATIENCE)
        return work(n)

    return [call.result() for call in [Call(begin, n) for n in range(count)]]


MARK: dict[str, Any] = {
    "key": lambda lazy, key: lazy.mark_for_invalidation(key),
    "pattern": lambda lazy, key: lazy.mark_pattern_for_invalidation(key + "*"),
    "table": lambda lazy, key: lazy.mark_table_for_invalidation(key[:-1]),
    "tag": lambda lazy, key: lazy.mark_tag_for_invalidation(key),
    "all": lambda lazy, key: lazy.mark_all_for_invalidation(),
}
SINGLE = list(MARK.values())
MARK["in turn"] = lambda lazy, key: random.choice(SINGLE)(lazy, key)


@pytest.mark.parametrize("kind", MARK)
@pytest.mark.parametrize("fixed", [None, 5], ids=["new values", "the same value"])
def test_one_load_for_a_mark(kind, fixed):
    """64 threads that come upon one marked entry make one load, and all get what it brings."""
    with TTLCache[Any, Any](None, None) as cache:
        source = Source(fixed)
        lazy = LazyInvalidation(cache, source, start=False)
        lazy.get("t:1:", tags=["t:1:"])
        for n in range(1, 6):
            source.versions["t:1:"] = n
            MARK[kind](lazy, "t:1:")
            got = at_once(THREADS, lambda _: [lazy.get("t:1:") for _ in range(3)])
            assert got == [[(n,) if fixed is None else fixed] * 3] * THREADS
            assert source.reads == n + 1
        assert lazy.stats().reloads == 5
        check(cache)


def test_one_load_for_a_mark_among_tasks():
    """The same for tasks of several event loops."""
    with TTLCache[Any, Any](None, None) as cache:
        source = AsyncSource()
        lazy = LazyInvalidation(cache, source, start=False)

        async def main() -> list[Any]:
            return await asyncio.gather(*(lazy.aget("t:1:") for _ in range(20)))

        for n in range(1, 6):
            source.versions["t:1:"] = n
            lazy.mark_for_invalidation("t:1:")
            assert at_once(4, lambda _: run(main())) == [[(n,)] * 20] * 4
            assert source.reads == n


class Race:
    """Readers and markers on one cache. Whoever has marked a key never sees an older version."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.cache: TTLCache[Any, Any] = TTLCache(None, None)
        self.source = Source()
        self.lazy = LazyInvalidation(self.cache, self.source, pause=1e-4, **options)
        self.kind = MARK[kind]
        self.keys = [[f"t{m}:{n}:" for n in range(KEYS)] for m in range(MARKERS)]
        self.floors = {key: 0 for keys in self.keys for key in keys}
        self.marking = [True] * MARKERS
        self.stale: list[Any] = []

    def play(self) -> None:
        at_once(READERS + MARKERS, self.work)
        for key in self.floors:
            self.look(key)

    def work(self, thread: int) -> None:
        if thread < READERS:
            for key in cycle(self.floors):
                self.look(key)
                if not any(self.marking):
                    return
        self.mark(thread - READERS)

    def mark(self, marker: int) -> None:
        try:
            for n, key in enumerate(cycle(self.keys[marker])):
                self.source.versions[key] = n
                self.kind(self.lazy, key)
                self.floors[key] = n
                self.look(key)
                if n % 3 == 0:
                    sleep(0)
                if n >= MARKS // MARKERS or self.stale:
                    return
        finally:
            self.marking[marker] = False

    def look(self, key: str) -> None:
        floor = self.floors[key]
        (got,) = self.lazy.get(key, tags=[key])
        if got < floor:
            self.stale.append((key, got, floor))


@pytest.mark.parametrize("kind", MARK)
@pytest.mark.parametrize(
    "options",
    [{}, {"start": False}, {"max_marks": 3}, {"max_stamps": 2}],
    ids=["walker", "no walker", "few marks", "few stamps"],
)
def test_nothing_stale_is_served(kind, options):
    """Whatever marks, while others load, the walker removes, marks merge and stamps go."""
    race = Race(kind, **options)
    race.play()
    assert race.stale == []
    stats = race.lazy.stats()
    assert stats.marked >= MARKS
    assert stats.errors == 0
    race.lazy.close()
    assert race.lazy.stats().marks == 0
    check(race.cache)


def test_the_race_is_one(monkeypatch):
    """If marks outdate no loads, somebody is served an old value."""
    monkeypatch.setattr("lapse.loading.lazy_marks.Marks.cover", lambda *_: False)
    race = Race("key", start=False)
    race.play()
    assert race.stale != []
