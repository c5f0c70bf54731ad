"""Nothing is lost where a finalizer or a signal handler comes in the midst of lapse's own code."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from interrupts import each_interruption, interrupt
from lapse import TTLCache
from lapse._core import Pattern
from lapse.flight_board import DROPPED, Flight, LoadCycleError, board
from lapse.invalidation import Invalidation, OptimizedInvalidation
from lapse.loading.lazy import LazyInvalidation
from lapse.loading.lazy_marks import ALL, KEY, PATTERN, TAG, Mark, Marks

# --- The queue ---


class Sink:
    """A cache that keeps account of what is deleted; 0 stands for everything."""

    def __init__(self) -> None:
        self.deleted: Counter[Any] = Counter()

    def delete(self, key: Any) -> bool:
        self.deleted[key] += 1
        return True

    def delete_pattern(self, pattern: str) -> int:
        self.deleted[pattern.removesuffix(":*")] += 1
        return 1

    def clear(self) -> None:
        self.deleted[0] += 1


def over(queue: Any, name: str, count: int = 3) -> None:
    """Queue more tables than there is room for."""
    for n in range(count):
        queue.invalidate_table(f"{name}{n}")


def overfull(waiting: int) -> OptimizedInvalidation:
    """A queue without a thread, with room for two items, that got so many."""
    queue = OptimizedInvalidation(
        Sink(), batch_size=2, capacity=2, overflow="table", overflow_wait=0, start=False
    )
    over(queue, "before", waiting)
    return queue


QUEUE: dict[str, Callable[[Any], Any]] = {
    "overflow": lambda q: over(q, "own"),
    "flush": lambda q: q.flush(),
    "a turn of the thread": lambda q: q._turn(),
    "apply": lambda q: q.apply([Invalidation("table", f"own{n}") for n in range(3)]),
}
HANDLERS: dict[str, Callable[[Any], Any]] = {
    "one item": lambda q: q.invalidate_table("late0"),
    "overflow": lambda q: over(q, "late"),
    "flush": lambda q: q.flush(),
    "apply": lambda q: q.apply([Invalidation("table", "late0")]),
}


@pytest.mark.parametrize("waiting", [0, 2, 3, 7])
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("call", QUEUE)
def test_a_queue_loses_nothing(call, handler, waiting):
    """Everything is applied, by itself or by what covers it, and counted once."""
    expected = [f"before{n}" for n in range(waiting)]
    expected += [f"own{n}" for n in range(3) if call in ("overflow", "apply")]
    expected += [f"late{n}" for n in range({"overflow": 3, "flush": 0}.get(handler, 1))]
    for queue in each_interruption(lambda: overfull(waiting), QUEUE[call], HANDLERS[handler]):
        queue.flush()
        stats = queue.stats()
        assert (stats.enqueued, stats.applied) == (len(expected), len(expected))
        gone = queue.cache.deleted
        assert gone[0] or all(gone[name] for name in expected)
        queue.close()


@pytest.mark.parametrize("waiting", [0, 3, 7])
@pytest.mark.parametrize("call", QUEUE)
def test_a_queue_outlives_what_a_handler_raises(call, waiting):
    """What had been queued before is applied, and all is counted once."""
    for queue in each_interruption(lambda: overfull(waiting), QUEUE[call], interrupt):
        queue.flush()
        gone = queue.cache.deleted
        assert gone[0] or all(gone[f"before{n}"] for n in range(waiting))
        assert queue.stats().depth == 0
        queue.close()


# --- Lazy marks ---

MOST = 6
ADDING: dict[str, tuple[Callable[[Marks], Any], tuple[Any, tuple[str, ...]]]] = {
    KEY: (lambda marks: marks.add_key("t:k"), ("t:k", ())),
    PATTERN: (lambda marks: marks.add(PATTERN, "p*", Pattern("p*")), ("pq", ())),
    TAG: (lambda marks: marks.add(TAG, "tag", "tag"), ("tagged", ("tag",))),
    ALL: (lambda marks: marks.add(ALL), ("any", ())),
}
ASKING: dict[str, Callable[[Marks], Any]] = {
    "cover": lambda marks: marks.cover("nothing", (), 0),
    "retire": lambda marks: marks.retire(newest_of(KEY, marks)),
    "oldest": lambda marks: marks.oldest(),
    "figures": lambda marks: marks.figures(),
}


def newest_of(kind: str, marks: Marks) -> Mark:
    return next(reversed(marks._live[kind].values()))


def marked(count: int) -> Marks:
    """With so many marks of every kind but ALL."""
    marks = Marks(MOST)
    for n in range(count):
        marks.add_key(f"t:{n}")
        marks.add(PATTERN, f"old{n}*", Pattern(f"old{n}*"))
    return marks


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("late", ADDING)
@pytest.mark.parametrize("call", [*ADDING, *ASKING])
def test_no_mark_is_lost(call, late, count):
    """Whatever was marked after a number was read is covered, and so is what the handler marks."""
    calls = ASKING | {kind: adding for kind, (adding, _) in ADDING.items()}
    expected = [ADDING[kind][1] for kind in {call, late} if kind in ADDING]
    for marks in each_interruption(lambda: marked(count), calls[call], ADDING[late][0]):
        since = 2 * count
        assert all(marks.cover(key, tags, since) for key, tags in expected)
        assert marks.newest == marks._last
        assert 0 < marks.count <= MOST
        assert marks.count == sum(map(len, marks._live.values()))
        assert marks.tagged == bool(marks._live[TAG])
        for live in marks._live.values():
            numbers = [mark.number for mark in live.values()]
            assert numbers == sorted(numbers)


@pytest.mark.parametrize("kind", ADDING)
def test_a_mark_that_is_made_again(kind):
    """While it is retired, or gives way to a coarser one."""
    add, (key, tags) = ADDING[kind]
    calls = [adding for adding, _ in ADDING.values()]
    for call in (lambda marks: marks.retire(newest_of(kind, marks)), *calls):

        def prepare() -> Marks:
            marks = marked(2)
            add(marks)
            return marks

        for marks in each_interruption(prepare, call, add):
            assert marks.cover(key, tags, 5)


def test_a_mark_behind_a_coarser_one_stays():
    """What a handler marks after another mark of its own is newer than the one it interrupts."""

    def two(marks: Marks) -> None:
        marks.add(PATTERN, "p*", Pattern("p*"))
        marks.since = marks.newest  # type: ignore[attr-defined]
        marks.add(TAG, "tag", "tag")

    class Noted(Marks):
        since = 0

    for marks in each_interruption(lambda: Noted(MOST), ADDING[ALL][0], two):
        assert marks.cover("tagged", ("tag",), marks.since)


class Rows:
    """A source that has one value for every key."""

    def __init__(self) -> None:
        self.value = "old"

    def fetch(self, key: Any) -> Any:
        return self.value


LAZY: dict[str, Callable[[LazyInvalidation], Any]] = {
    KEY: lambda lazy: lazy.mark_for_invalidation("k"),
    PATTERN: lambda lazy: lazy.mark_pattern_for_invalidation("k*"),
    TAG: lambda lazy: lazy.mark_tag_for_invalidation("tag"),
    ALL: lambda lazy: lazy.mark_all_for_invalidation(),
}


def filled(mark: Callable[[LazyInvalidation], Any] = id) -> LazyInvalidation:
    """With old values in the cache, and `mark` done after the source has changed."""
    lazy = LazyInvalidation(TTLCache(60, cleanup_interval=None), Rows(), start=False)
    lazy.get("k", tags=("tag",))
    lazy.get(-1)
    lazy.get(-2)
    lazy.data_source.value = "new"
    mark(lazy)
    return lazy


@pytest.mark.parametrize("handler", LAZY)
@pytest.mark.parametrize("mark", LAZY)
def test_what_is_marked_is_loaded_anew(mark, handler):
    """Whatever takes the place of the mark while it is looked for."""
    got: list[Any] = []
    for _ in each_interruption(
        lambda: filled(LAZY[mark]), lambda lazy: got.append(lazy.get("k")), LAZY[handler]
    ):
        assert got.pop() == "new"


def test_keys_of_one_hash_are_marked_at_once():
    """The one that a handler marks in the midst of the other is not forgotten."""
    for lazy in each_interruption(
        filled,
        lambda lazy: lazy.mark_for_invalidation(-1),
        lambda lazy: lazy.mark_for_invalidation(-2),
    ):
        lazy.reclaim()
        assert [lazy.get(key) for key in (-1, -2)] == ["new", "new"]


# --- Loads ---

LOADS: dict[str, Callable[[Any], Any]] = {
    "load": lambda c: c.get_or_load("k", c.rows.get),
    "load many": lambda c: c.load_many("kl", lambda keys: {key: c.rows[key] for key in keys}),
    "load another": lambda c: c.get_or_load("l", c.rows.get),
}


def change(cache: Any) -> None:
    """Write the source, then invalidate."""
    cache.rows["k"] = "new"
    cache.delete("k")


def load_in_vain(cache: Any, call: str) -> None:
    """What the interrupted thread is loading is not to be had before it goes on."""
    with suppress(LoadCycleError):
        LOADS[call](cache)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "change": change,
    "change and load": lambda c: (change(c), load_in_vain(c, "load")),
    "collect": lambda c: gc.collect(),
    **{call: partial(load_in_vain, call=call) for call in LOADS},
}


class Cached(TTLCache):
    """A cache with the rows of its source."""

    def __init__(self) -> None:
        super().__init__(60)
        self.rows = {"k": "old", "l": "other"}


@pytest.mark.parametrize("handler", CHANGES)
@pytest.mark.parametrize("call", ["load", "load many"])
def test_no_load_brings_back_what_has_changed(call, handler):
    """Nor is a load left on the board."""
    for cache in each_interruption(Cached, LOADS[call], CHANGES[handler]):
        assert cache.get("k", cache.rows["k"]) == cache.rows["k"]
        assert not board.running
        assert not board.blocked
        assert not board.lock._is_owned()  # type: ignore[attr-defined]
        cache.close()


def test_a_flight_ends_twice_at_once():
    """The task's end may be interrupted by that of its event loop; other flights stay."""
    cache = TTLCache(60)

    def prepare() -> list[Flight]:
        board.running.clear()
        flights = [Flight(cache, key, frozenset()) for key in (-1, -2)]  # of one hash
        assert [board.offer(flight) for flight in flights] == flights
        return flights

    def settle(flights: list[Flight]) -> None:
        board.settle(flights[0], DROPPED)

    for first, second in each_interruption(prepare, settle, settle):
        assert first.settled
        assert board.running == {second.place: (second,)}
        board.settle(second, DROPPED)
        assert not board.running

    def settle_last(flights: list[Flight]) -> None:
        board.settle(flights[1], DROPPED)

    for _ in each_interruption(prepare, settle, settle_last):
        assert not board.running
    board.running.clear()
