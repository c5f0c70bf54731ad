"""The invalidation queue with one thread and time by hand: what is applied, and in what order."""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

import lapse
from lapse._queue import LATE, NativeQueue
from lapse.invalidation import Applied, Invalidation, OptimizedInvalidation
from lapse.invalidation.targets import Groups
from support import Key, wait_until


class Duck:
    """A foreign cache that notes what it is asked, and raises what it is told to."""

    def __init__(self, **failing: BaseException):
        self.asked: list[tuple[Any, ...]] = []
        self.failing = failing

    def note(self, *call: Any) -> bool:
        self.asked.append(call)
        if str(call[-1]) in self.failing:
            raise self.failing[str(call[-1])]
        return True

    def delete(self, key: Any) -> bool:
        return self.note("key", key)

    def delete_pattern(self, pattern: Any) -> int:
        return self.note("pattern", pattern)

    def delete_tag(self, tag: str) -> int:
        return self.note("tag", tag)

    def clear(self) -> None:
        self.note("all")


@pytest.fixture
def cache() -> Any:
    """A native cache with eight entries, of two tables and with tags."""
    made: Any = lapse.TTLCache(cleanup_interval=None)
    for n in range(4):
        made.set(f"user:{n}", n, tags=["even"] if n % 2 == 0 else ())
        made.set(f"order:{n}", n, tags=["even"] if n % 2 == 0 else ())
    return made


@pytest.fixture
def queued(clock: lapse.ManualClock) -> Any:
    """Makes queues without a thread, on the manual clock; they are closed in the end."""
    made: list[OptimizedInvalidation] = []

    def make(cache: Any, batch_size: int = 100, batch_timeout: float = 1.0, **options: Any) -> Any:
        options = {"start": False, "clock": clock, "overflow_wait": 0, **options}
        made.append(OptimizedInvalidation(cache, batch_size, batch_timeout, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


# --- What is applied ---


@pytest.mark.parametrize(
    ("ask", "left"),
    [
        (lambda q: q.invalidate_key("user:1"), 7),
        (lambda q: q.invalidate_key(key="user:1"), 7),
        (lambda q: q.invalidate_key("user:9"), 8),
        (lambda q: q.invalidate_pattern("user:[12]"), 6),
        (lambda q: q.invalidate_pattern(pattern="*:1"), 6),
        (lambda q: q.invalidate_pattern(b"*"), 8),
        (lambda q: q.invalidate_table("user"), 4),
        (lambda q: q.invalidate_table("us*"), 8),
        (lambda q: q.invalidate_table(b"user"), 8),
        (lambda q: q.invalidate_tag("even"), 4),
        (lambda q: q.invalidate_all(), 0),
    ],
)
def test_each_kind(cache, queued, ask, left):
    """Nothing goes before the flush; then what the invalidation names goes, and nothing else."""
    queue = queued(cache)
    ask(queue)
    assert len(cache) == 8
    queue.flush()
    assert len(cache) == left
    stats = queue.stats()
    assert (stats.enqueued, stats.applied, stats.depth, stats.batches) == (1, 1, 0, 1)
    assert (stats.matched, stats.noops) == ((0, 1) if left == 8 else (1, 0))


def test_a_flush_of_nothing(cache, queued):
    """An empty queue has nothing to apply."""
    queue = queued(cache)
    queue.flush()
    assert queue.stats().batches == 0
    assert queue.apply([]) == []
    assert len(cache) == 8


def test_against_a_model():
    """Random invalidations of every kind leave what a plain dict would be left with."""
    rng = random.Random(5)
    for _ in range(60):
        cache: Any = lapse.TTLCache(cleanup_interval=None)
        keys = [f"t{rng.randrange(4)}:{n}" for n in range(60)]
        tags = {key: rng.sample(["a", "b", "c"], rng.randrange(3)) for key in keys}
        for key in keys:
            cache.set(key, key, tags=tags[key])
        queue = OptimizedInvalidation(cache, rng.choice([1, 3, 50]), start=False)
        gone: set[str] = set()
        for _ in range(rng.randrange(30)):
            kind = rng.choice(["key", "key", "key", "pattern", "table", "tag"])
            if kind == "key":
                key = rng.choice(keys)
                queue.invalidate_key(key)
                gone.add(key)
            elif kind == "pattern":
                digit = rng.randrange(60)
                queue.invalidate_pattern(f"*:{digit}")
                gone |= {key for key in keys if key.endswith(f":{digit}")}
            elif kind == "table":
                table = f"t{rng.randrange(8)}"
                queue.invalidate_table(table)
                gone |= {key for key in keys if key.startswith(f"{table}:")}
            else:
                tag = rng.choice(["a", "b", "c", "d"])
                queue.invalidate_tag(tag)
                gone |= {key for key in keys if tag in tags[key]}
        queue.close()
        assert set(cache) == set(keys) - gone
        assert queue.stats().enqueued == queue.stats().applied


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda q: q.invalidate_key([]), TypeError),
        (lambda q: q.invalidate_key(key={}), TypeError),
        (lambda q: q.invalidate_pattern(5), TypeError),
        (lambda q: q.invalidate_pattern(None), TypeError),
        (lambda q: q.invalidate_pattern("x" * 1025), ValueError),
        (lambda q: q.invalidate_pattern(b"x" * 1025), ValueError),
        (lambda q: q.invalidate_table(("user",)), TypeError),
        (lambda q: q.invalidate_table("*" * 512), ValueError),
        (lambda q: q.invalidate_tag(b"even"), TypeError),
        (lambda q: q.invalidate_key(), TypeError),
        (lambda q: q.invalidate_key("a", "b"), TypeError),
        (lambda q: q.invalidate_all("a"), TypeError),
    ],
)
def test_producers_are_told_at_once(cache, queued, ask, error):
    """What could never be applied is refused by the call itself."""
    queue = queued(cache)
    with pytest.raises(error):
        ask(queue)
    assert queue.stats().enqueued == 0


def test_the_longest_pattern_and_table(cache, queued):
    """1,024 units of a pattern are applied, and 511 of a table even if each must be escaped."""
    cache["*" * 511 + ":1"] = cache["x" * 1024] = 1
    queue = queued(cache)
    queue.invalidate_table("*" * 511)
    queue.invalidate_pattern("x" * 1024)
    queue.flush()
    assert (len(cache), queue.stats().errors) == (8, 0)


def test_a_hash_that_raises(cache, queued):
    """The exception of a key's own hash reaches the producer."""

    class Odd:
        def __hash__(self) -> int:
            raise OSError("no hash")

    with pytest.raises(OSError, match="no hash"):
        queued(cache).invalidate_key(Odd())


def test_text_of_a_subclass(cache, queued):
    """A pattern, table or tag of a subclass counts by its text, whatever else the subclass does."""

    class Text(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise OSError("not to be called")

    class Data(bytes):
        __slots__ = ()

        def __hash__(self) -> int:
            raise OSError("not to be called")

    queue = queued(cache)
    cache[b"raw:1"] = 1
    queue.invalidate_pattern(Text("user:1"))
    queue.invalidate_pattern(Data(b"raw:*"))
    queue.invalidate_table(Text("order"))
    queue.invalidate_tag(Text("even"))
    queue.flush()
    assert set(cache) == {"user:3"}


# --- When ---


def test_due_by_time(cache, queued, clock):
    """The thread's turn sleeps until the oldest item has waited long enough, then applies."""
    queue = queued(cache, batch_size=100, batch_timeout=2.0)
    assert queue._turn() is None
    queue.invalidate_key("user:1")
    assert queue._turn() == pytest.approx(2.0)
    clock.advance(1.5)
    queue.invalidate_key("user:2")
    assert queue._turn() == pytest.approx(0.5)
    assert len(cache) == 8
    clock.advance(0.5)
    assert queue._turn() is None
    assert len(cache) == 6


def test_due_by_size(cache, queued):
    """As soon as a batch waits it is due, whatever the time."""
    queue = queued(cache, batch_size=3)
    for n in range(3):
        assert len(cache) == 8
        queue.invalidate_key(f"user:{n}")
        assert (queue._turn() is None) == (n == 2)
    assert len(cache) == 5


def test_a_full_ring_is_a_full_batch(cache, queued):
    """A batch larger than the ring is due when the ring is full."""
    queue = queued(cache, batch_size=100, capacity=4)
    for n in range(4):
        queue.invalidate_key(f"user:{n}")
    assert queue._turn() is None
    assert (len(cache), queue.stats().batches) == (4, 1)


def test_the_alarm_is_raised_once(cache, queued):
    """Producers wake the thread with the first item, and with the one that fills a batch."""
    queue = queued(cache, batch_size=4)

    def alarms() -> int:
        count = queue._alarm.qsize()
        while queue._alarm.qsize():
            queue._alarm.get_nowait()
        return count

    queue._turn()
    for n in range(3):
        queue.invalidate_key(n)
    assert alarms() == 1
    queue._turn()
    for n in range(9):
        queue.invalidate_key(n)
        assert alarms() == (n == 0), n


def test_batches_are_of_batch_size(cache, queued):
    """A flush applies everything, in batches of at most `batch_size`."""
    queue = queued(cache, batch_size=3)
    for n in range(7):
        queue.invalidate_key(n)
    queue.flush()
    stats = queue.stats()
    assert (stats.batches, stats.batch_max, stats.batch_mean) == (3, 3, pytest.approx(7 / 3))


def test_a_clock_that_fails(cache, queued):
    """What the clock raises reaches the producer, and the item is not queued."""
    broken = False

    def clock() -> float:
        if broken:
            raise OSError("no time")
        return float("nan") if broken is None else 5.0

    queue = queued(cache, clock=clock)
    broken = True
    with pytest.raises(OSError, match="no time"):
        queue.invalidate_key("user:1")
    broken = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="NaN"):
        queue.invalidate_key("user:1")
    broken = False
    assert queue.stats().enqueued == 0


# --- In what order ---


def test_strongest_first(queued):
    """Tables and patterns go before tags, tags before keys, whatever the order of the calls."""
    duck = Duck()
    queue = queued(duck)
    queue.invalidate_key("k")
    queue.invalidate_tag("t")
    queue.invalidate_pattern("p*")
    queue.invalidate_table("u")
    queue.flush()
    assert duck.asked == [("pattern", "u:*"), ("pattern", "p*"), ("tag", "t"), ("key", "k")]


def test_all_covers_its_batch(queued):
    """Of a batch that holds `all`, that alone is applied."""
    duck = Duck()
    queue = queued(duck, batch_size=5)
    for n in range(3):
        queue.invalidate_key(n)
    queue.invalidate_all()
    queue.invalidate_tag("t")
    queue.invalidate_key("later")
    queue.flush()
    assert duck.asked == [("all",), ("key", "later")]


def test_an_entry_goes_once(cache, queued):
    """Of a pattern, a tag and a key that name one entry, the strongest removes it."""
    queue = queued(cache)
    named = [
        Invalidation("key", "user:2"),
        Invalidation("tag", "even"),
        Invalidation("pattern", "user:*"),
    ]
    assert [each.removed for each in queue.apply(named)] == [0, 2, 4]


def test_duplicates_are_dropped(queued):
    """Equal patterns, tables, tags, clearings and keys of one batch are applied once."""
    duck = Duck()
    queue = queued(duck)
    for _ in range(3):
        queue.invalidate_key("k")
        queue.invalidate_pattern("p*")
        queue.invalidate_pattern(b"p*")
        queue.invalidate_table("u")
        queue.invalidate_tag("t")
    queue.flush()
    assert len(duck.asked) == len(set(duck.asked)) == 5
    assert queue.stats().duplicates == 8
    queue.invalidate_tag("t")
    queue.flush()
    assert len(duck.asked) == 6


# --- Failures ---


def test_a_failing_item_never_loses_the_rest(queued, caplog):
    """What one item raises is logged and counted, and the others of its batch are applied."""
    duck = Duck(k1=OSError("k1"), **{"p1*": OSError("p1"), "u1:*": OSError("u1"), "t1": OSError()})
    queue = queued(duck)
    for n in range(3):
        queue.invalidate_key(f"k{n}")
        queue.invalidate_pattern(f"p{n}*")
        queue.invalidate_table(f"u{n}")
        queue.invalidate_tag(f"t{n}")
    queue.flush()
    assert len(duck.asked) == 12
    stats = queue.stats()
    assert (stats.errors, stats.matched, stats.noops, stats.applied) == (4, 8, 0, 12)
    messages = sorted(record.getMessage() for record in caplog.records)
    assert messages == [
        "invalidating key 'k1' failed", "invalidating pattern 'p1*' failed",
        "invalidating table 'u1' failed", "invalidating tag 't1' failed",
    ]  # fmt: skip
    assert all(record.exc_info for record in caplog.records)


def test_a_clearing_that_fails(queued):
    """If clearing raises, what else the batch named is still applied."""
    duck = Duck(all=OSError("no"))
    queue = queued(duck)
    queue.invalidate_key("k")
    queue.invalidate_all()
    queue.flush()
    assert duck.asked == [("all",), ("key", "k")]


class Angry(Key):
    """A key that can be neither compared nor shown."""

    def __init__(self, name: str):
        super().__init__(name, hook=self.refuse)

    def refuse(self) -> None:
        raise OSError("no comparison")

    def __repr__(self) -> str:
        raise OSError("no repr")


def test_a_comparison_that_raises(cache, queued, caplog):
    """A key whose comparison raises, and whose repr does, too, is one error among others."""
    cache[Key("x")] = cache[Key("z")] = 1
    queue = queued(cache)
    for key in (Key("x"), Angry("y"), "user:1"):
        queue.invalidate_key(key)
    queue.flush()
    assert Key("z") in cache
    assert Key("x") not in cache
    assert "user:1" not in cache
    assert queue.stats().errors == 1
    assert [record.getMessage() for record in caplog.records] == ["invalidating key a Angry failed"]


def test_a_foreign_cache_is_asked_about_keys_that_cannot_be_compared(queued):
    """Looking for duplicates never keeps a key from its cache."""
    duck = Duck()
    duck.note = lambda *call: duck.asked.append(call) or True  # type: ignore[func-returns-value,method-assign]
    queue = queued(duck)
    keys = [Key("x"), Angry("y"), "user:1", Key("x")]
    for key in keys:
        queue.invalidate_key(key)
    queue.flush()
    assert [id(key) for _, key in duck.asked] == [id(key) for key in keys[:3]]


def test_an_interrupt_loses_nothing(queued):
    """Ctrl-C in the midst of a batch: the next flush applies it all; each item counts once."""
    duck = Duck(k1=KeyboardInterrupt())
    queue = queued(duck, batch_size=2)
    for n in range(4):
        queue.invalidate_key(f"k{n}")
    with pytest.raises(KeyboardInterrupt):
        queue.flush()
    assert queue.stats().depth == 4
    duck.failing.clear()
    queue.flush()
    assert {key for _, key in duck.asked} == {"k0", "k1", "k2", "k3"}
    assert (queue.stats().applied, queue.stats().depth) == (4, 0)


def test_an_interrupt_of_apply(queued):
    """What apply() was interrupted at is applied by the next flush."""
    duck = Duck(k1=KeyboardInterrupt())
    queue = queued(duck)
    with pytest.raises(KeyboardInterrupt):
        queue.apply([Invalidation("key", "k1"), Invalidation("key", "k2")])
    duck.failing.clear()
    queue.flush()
    assert ("key", "k2") in duck.asked
    assert queue.stats().depth == 0


# --- apply() ---


def test_apply_answers_in_order(cache, queued):
    """Each invalidation has its answer: what it removed, or what it raised."""
    queue = queued(cache)
    batch = [
        Invalidation("key", "user:1"),
        Invalidation("key", "user:1"),
        Invalidation("key", ["unhashable"]),
        Invalidation("tag", "even"),
        Invalidation("table", "order"),
        Invalidation("pattern", "none*"),
        Invalidation("table", "order"),
        Invalidation("key", "order:1"),
    ]
    answers = queue.apply(iter(batch))
    assert [each.invalidation for each in answers] == batch
    assert [each.removed for each in answers] == [1, 0, 0, 2, 4, 0, 0, 0]
    errors = [each.error for each in answers]
    assert [error is not None for error in errors] == [n == 2 for n in range(8)]
    assert isinstance(errors[2], TypeError)
    assert set(cache) == {"user:3"}


def test_a_pattern_that_no_cache_takes(cache, queued):
    """It is found out among the others, which are applied."""
    batch = [
        Invalidation("table", "order"),
        Invalidation("pattern", "x" * 2000),
        Invalidation("pattern", "user:*"),
    ]
    answers = queued(cache).apply(batch)
    assert [each.removed for each in answers] == [4, 0, 4]
    assert [type(each.error) for each in answers] == [type(None), ValueError, type(None)]


def test_apply_of_all(cache, queued):
    """`all` has removed everything, and the others of its batch nothing."""
    batch = [Invalidation("key", "user:1"), Invalidation("all"), Invalidation("tag", "even")]
    assert queued(cache).apply(batch) == [
        Applied(batch[0], 0, None), Applied(batch[1], 8, None), Applied(batch[2], 0, None),
    ]  # fmt: skip


def test_apply_stands_behind_what_is_queued(cache, queued):
    """What was queued before is applied first, and counts for itself."""
    queue = queued(cache)
    queue.invalidate_key("user:1")
    assert queue.apply([Invalidation("key", "user:1")])[0].removed == 0
    stats = queue.stats()
    assert (stats.enqueued, stats.applied, stats.batches, stats.depth) == (2, 2, 1, 0)


def test_apply_takes_invalidations_only(cache, queued):
    """Anything else is a TypeError, and nothing of the batch is applied."""
    queue = queued(cache)
    with pytest.raises(TypeError, match="not str"):
        queue.apply([Invalidation("all"), "user:1"])
    assert len(cache) == 8


def test_apply_reports_what_a_foreign_cache_raises(queued):
    """An answer holds the exception of its own call."""
    error = OSError("k1")
    queue = queued(Duck(k1=error))
    answers = queue.apply([Invalidation("key", "k1"), Invalidation("key", "k2")])
    assert [(each.removed, each.error) for each in answers] == [(0, error), (1, None)]


def test_apply_groups(cache, queued):
    """Targets by kind are applied as apply() does it; the answer is by kind, too."""
    queue = queued(cache)
    queue.invalidate_key("user:1")
    patterns = ["user:[12]", "none*", "user:[12]"]
    done = queue.apply_groups(Groups([], ["order"], patterns, ["even"], ["user:3", ["unhashable"]]))
    assert [list(outcome.removed) for outcome in done] == [[], [4], [1, 0, 0], [1], [1, 0]]
    assert [list(outcome.errors) for outcome in done] == [[], [], [], [], [1]]
    assert not cache
    stats = queue.stats()
    assert (stats.enqueued, stats.applied, stats.errors, stats.depth) == (8, 8, 1, 0)
    queue.close()
    with pytest.raises(RuntimeError):
        queue.apply_groups(Groups([], [], [], [], ["x"]))


# --- A full ring ---


def fill(queue: Any) -> None:
    """Items of table `user` until the ring is full."""
    for n in range(queue.capacity):
        queue.invalidate_key(f"user:{n}")
    assert queue.stats().collapses == 0


def test_overflow_all(cache, queued):
    """By default a full queue gives way to a clearing."""
    queue = queued(cache, capacity=4)
    fill(queue)
    queue.invalidate_key("one more")
    stats = queue.stats()
    assert (stats.collapses, stats.collapsed, stats.enqueued, stats.depth) == (1, 5, 5, 5)
    queue.invalidate_key("another")
    queue.flush()
    stats = queue.stats()
    assert (len(cache), stats.applied, stats.depth, stats.batches) == (0, 6, 0, 1)


@pytest.mark.parametrize(
    ("ask", "left"),
    [
        (lambda q: q.invalidate_key("user:77"), {f"order:{n}" for n in range(4)}),
        (lambda q: q.invalidate_pattern("user:*7"), {f"order:{n}" for n in range(4)}),
        (lambda q: q.invalidate_pattern(r"user:\*"), {f"order:{n}" for n in range(4)}),
        (lambda q: q.invalidate_table("user"), {f"order:{n}" for n in range(4)}),
        (lambda q: q.invalidate_tag("even"), {"order:1", "order:3"}),
        (lambda q: q.invalidate_key(b"user:1"), {f"order:{n}" for n in range(4)}),
        (lambda q: q.invalidate_key("no table"), set()),
        (lambda q: q.invalidate_key(5), set()),
        (lambda q: q.invalidate_key(None), set()),
        (lambda q: q.invalidate_key("t" * 512 + ":1"), set()),
        (lambda q: q.invalidate_pattern("us*r:1"), set()),
        (lambda q: q.invalidate_pattern(r"us\er:1"), set()),
        (lambda q: q.invalidate_pattern(b"us?r:1"), set()),
        (lambda q: q.invalidate_all(), set()),
    ],
)
def test_overflow_table(cache, queued, ask, left):
    """The policy "table" keeps other tables, unless something has none."""
    queue = queued(cache, capacity=4, overflow="table")
    fill(queue)
    ask(queue)
    queue.flush()
    assert set(cache) == left
    assert queue.stats().collapsed == queue.stats().applied == 5


def test_overflow_asks_a_callable(cache, queued):
    """A policy of the caller's sees every item in order, and what it answers is applied."""
    seen: list[Any] = []

    def policy(items: list[Invalidation]) -> list[Invalidation]:
        seen.extend(items)
        return [Invalidation("table", "user"), Invalidation("key", "order:1")]

    queue = queued(cache, capacity=4, overflow=policy)
    fill(queue)
    queue.invalidate_tag("even")
    assert seen == [
        *(Invalidation("key", f"user:{n}") for n in range(4)),
        Invalidation("tag", "even"),
    ]
    queue.flush()
    assert set(cache) == {"order:0", "order:2", "order:3"}


@pytest.mark.parametrize(
    "policy",
    [
        lambda items: [],
        lambda items: None,
        lambda items: 1 / 0,
        lambda items: ["user"],
        lambda items: [Invalidation("table", "x" * 600)],
        lambda items: (Invalidation("tag", n) for n in ("a", 5)),
    ],
)
def test_overflow_with_a_useless_policy(cache, queued, policy):
    """A policy that raises, or answers nothing that can be applied, means everything."""
    queue = queued(cache, capacity=4, overflow=policy)
    fill(queue)
    queue.invalidate_key("user:77")
    queue.flush()
    assert len(cache) == 0


def test_covering_operations_are_bounded(cache, queued):
    """When as many tables wait outside a full ring as it holds, everything goes."""
    queue = queued(cache, capacity=4, overflow="table")
    for n in range(30):
        queue.invalidate_table(f"t{n}")
    assert queue._covered.what.size == 1
    queue.flush()
    assert len(cache) == 0
    assert queue.stats().applied == 30


@pytest.mark.parametrize("overflow", ["all", "table"])
def test_overflow_never_loses(overflow):
    """Whatever the ring could not hold, nothing that was named is left after a flush."""
    rng = random.Random(7)
    for _ in range(50):
        cache: Any = lapse.TTLCache(cleanup_interval=None)
        keys = [f"t{rng.randrange(5)}:{n}" for n in range(40)]
        cache.set_many((key, 1) for key in keys)
        queue = OptimizedInvalidation(
            cache, 4, capacity=8, overflow=overflow, overflow_wait=0, start=False
        )
        named = set()
        for turn in range(rng.randrange(60)):
            key = rng.choice(keys)
            named.add(key)
            queue.invalidate_key(key)
            if turn % 20 == 19:
                queue._turn()
        queue.flush()
        assert not named & set(cache)
        stats = queue.stats()
        assert stats.enqueued == stats.applied
        assert overflow == "table" or stats.collapses == 0 or len(cache) == 0
        queue.close()


def test_overflow_in_the_midst_of_a_drain(queued):
    """A cache that queues more than fits while it is being drained neither waits nor deadlocks."""
    duck = Duck()
    queue = queued(duck, capacity=4, overflow_wait=1000.0)
    note = duck.note

    def noting(*call: Any) -> bool:
        if call == ("key", "first"):
            for n in range(9):
                queue.invalidate_key(n)
        return note(*call)

    duck.note = noting  # type: ignore[method-assign]
    queue.invalidate_key("first")
    queue.flush()
    queue.flush()
    assert ("all",) in duck.asked
    assert (queue.stats().applied, queue.stats().depth) == (10, 0)


def test_a_flush_covers_what_collapses_meanwhile(queued):
    """Items that were queued before a flush, and overflow during it, are gone when it returns."""
    duck = Duck()
    queue = queued(duck, batch_size=1, capacity=4)
    note = duck.note

    def noting(*call: Any) -> bool:
        if call == ("key", 0):
            for n in range(4, 6):
                queue.invalidate_key(n)
        return note(*call)

    duck.note = noting  # type: ignore[method-assign]
    for n in range(4):
        queue.invalidate_key(n)
    queue.flush()
    assert duck.asked == [("key", 0), ("all",)]
    assert queue.stats().depth == 0


# --- Foreign caches ---


def test_a_plain_cache(queued):
    """`delete` and `delete_pattern` are enough for keys, patterns, tables and all."""

    class Plain:
        def __init__(self) -> None:
            self.asked: list[Any] = []

        def delete(self, key: Any) -> None:
            self.asked.append(key)

        def delete_pattern(self, pattern: Any) -> None:
            self.asked.append(pattern)

    plain = Plain()
    queue = queued(plain)
    queue.invalidate_key("k")
    queue.invalidate_table("u")
    queue.flush()
    queue.invalidate_all()
    queue.flush()
    assert plain.asked == ["u:*", "k", "*"]
    queue.invalidate_tag("t")
    queue.flush()
    stats = queue.stats()
    assert (stats.errors, stats.matched, stats.noops) == (1, 0, 3)


def test_a_closed_cache_holds_nothing(cache, queued, caplog):
    """Invalidations of a cache that has been closed are no errors."""
    queue = queued(cache)
    cache.close()
    for ask in (queue.invalidate_key, queue.invalidate_pattern, queue.invalidate_tag):
        ask("x")
    queue.flush()
    queue.invalidate_all()
    queue.flush()
    assert (queue.stats().applied, queue.stats().errors, caplog.records) == (4, 0, [])


def test_the_cache_may_use_the_queue(queued):
    """What a cache queues, flushes and applies while it is being drained is done."""
    duck = Duck()
    queue = queued(duck)
    note = duck.note

    def noting(*call: Any) -> bool:
        if call == ("key", "first"):
            queue.invalidate_key("second")
            queue.flush()
            assert ("key", "second") in duck.asked
            assert queue.apply([Invalidation("key", "third")])[0].removed == 1
        return note(*call)

    duck.note = noting  # type: ignore[method-assign]
    queue.invalidate_key("first")
    queue.flush()
    assert [key for _, key in duck.asked] == ["second", "third", "first"]
    assert queue.stats().depth == 0


# --- Figures ---


def test_latency(cache, queued, clock):
    """Percentiles of the time from queued to applied, to 1/16; the largest exactly."""
    queue = queued(cache)
    for n in range(100):
        clock.advance(1.0)
        queue.invalidate_key(n)
    clock.advance(1.0)
    queue.flush()
    stats = queue.stats()
    assert 51 <= stats.latency_p50 <= 51 * 17 / 16
    assert 99 <= stats.latency_p99 <= 100
    assert stats.latency_max == pytest.approx(100)


def test_latency_of_what_collapsed(cache, queued, clock):
    """What was given up counts when what covers it is applied, at the age of the oldest."""
    queue = queued(cache, capacity=4)
    fill(queue)
    clock.advance(3.0)
    queue.invalidate_key("x")
    clock.advance(1.0)
    queue.flush()
    assert queue.stats().latency_p50 == pytest.approx(4.0)


def test_throughput_and_memory(cache, queued, clock):
    """Items a second over the life of the queue, and the bytes of the ring."""
    queue = queued(cache, capacity=1000)
    for n in range(60):
        queue.invalidate_key(n)
    queue.flush()
    clock.advance(30.0)
    stats = queue.stats()
    assert stats.throughput == pytest.approx(2.0)
    assert queue.capacity == 1024
    assert 1024 * 32 <= stats.memory <= 1024 * 32 + 10_000


def test_network(cache, queued):
    """The bytes that the queue's meter counted."""
    queue = queued(cache)
    queue.wire.sent(raw=100, wire=40)
    queue.wire.received(raw=30, wire=20)
    stats = queue.stats()
    assert (stats.raw_out, stats.wire_out, stats.raw_in, stats.wire_in) == (100, 40, 30, 20)


def test_get_stats_is_ready_for_json(cache, queued):
    """Every figure, the name and the class, from the first moment on."""
    queue = queued(cache, name="orders")
    figures = json.loads(json.dumps(queue.get_stats(), allow_nan=False))
    assert figures["name"] == "orders"
    assert figures["class"] == "OptimizedInvalidation"
    assert set(figures) == {*queue.stats()._fields, "name", "class"}


def test_repr(cache, queued):
    """It shows the name, what waits and the room."""
    queue = queued(cache, capacity=8, name="n")
    queue.invalidate_key(1)
    assert repr(queue) == "OptimizedInvalidation('n', waiting=1, capacity=8)"
    queue.close()
    assert repr(queue) == "OptimizedInvalidation(closed)"


# --- The end ---


def test_close_applies_what_is_queued(cache, queued):
    """close() drains; afterwards every call but close() and looking is a RuntimeError."""
    queue = queued(cache)
    with queue as entered:
        assert entered is queue
        queue.invalidate_table("user")
        assert len(cache) == 8
    assert len(cache) == 4
    assert queue.closed
    queue.close()
    calls: list[Callable[[], Any]] = [
        lambda: queue.invalidate_key("a"),
        lambda: queue.invalidate_key(key="a"),
        lambda: queue.invalidate_pattern("a"),
        lambda: queue.invalidate_table("a"),
        lambda: queue.invalidate_tag("a"),
        queue.invalidate_all,
        queue.flush,
        queue.start_batch_processing,
        lambda: queue.apply([]),
        queue.__enter__,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="OptimizedInvalidation is closed"):
            call()
    assert queue.stats().applied == 1


def test_an_item_that_came_late(cache, queued):
    """A producer whom close() overtook applies its item itself."""
    queue = queued(cache)
    queue.invalidate_table("user")
    queue._close()
    queue._signal(LATE)
    assert len(cache) == 4


def test_a_queue_that_is_dropped_applies_what_waits(cache):
    """A queue that nobody refers to any more does not take its items along."""
    queue = OptimizedInvalidation(cache, start=False)
    queue.invalidate_table("user")
    del queue
    gc.collect()
    assert wait_until(lambda: len(cache) == 4)


@pytest.mark.parametrize("end", ["flush", "close", "drop", "collapse"])
def test_references_are_given_up(end):
    """However an item ends, its target has the references that it had before."""
    duck: Any = lapse.TTLCache(cleanup_interval=None)
    targets = [Key(n) for n in range(40)]
    texts = ["pattern " + "x" * 40, "table " + "x" * 40, "tag " + "x" * 40]

    def references() -> list[int]:
        gc.collect()
        return [sys.getrefcount(each) for each in [*targets, *texts]]

    def turn() -> None:
        room = 8 if end == "collapse" else 64
        queue = OptimizedInvalidation(
            duck, 7, capacity=room, overflow="table", overflow_wait=0, start=False
        )
        for each in targets:
            queue.invalidate_key(each)
        queue.invalidate_pattern(texts[0])
        queue.invalidate_table(texts[1])
        queue.invalidate_tag(texts[2])
        if end == "flush":
            queue.flush()
        elif end != "drop":
            queue.close()

    turn()
    before = references()
    for _ in range(5):
        turn()
    assert wait_until(lambda: references() == before)


def test_a_native_queue_gives_up_what_nobody_took():
    """The ring itself owns what is in it."""
    target = Key("x")
    before = sys.getrefcount(target)
    native = NativeQueue()
    native._open(8, None, lambda _: None)
    native.invalidate_key(target)
    assert sys.getrefcount(target) == before + 1
    del native
    assert sys.getrefcount(target) == before


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0}, {"batch_size": -1}, {"batch_timeout": 0}, {"batch_timeout": -1},
        {"batch_timeout": float("nan")}, {"capacity": 0}, {"capacity": 1 << 40},
        {"overflow": "drop"}, {"overflow": None}, {"overflow_wait": -1},
        {"overflow_wait": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options(cache, options):
    """A number out of range, or an unknown policy, is a ValueError that names it."""
    (name,) = options
    with pytest.raises(ValueError, match=name):
        OptimizedInvalidation(cache, **options)


def test_numbers_of_items_are_whole(cache):
    """Half an item is a TypeError at once, and none in the thread."""
    for options in ({"batch_size": 2.5}, {"capacity": 2.5}):
        with pytest.raises(TypeError):
            OptimizedInvalidation(cache, **options)  # type: ignore[arg-type]


def test_endless_times(cache):
    """A batch_timeout without end is as long as a thread can wait."""
    with OptimizedInvalidation(cache, batch_timeout=float("inf"), overflow_wait=1e300) as queue:
        queue.invalidate_key("user:1")
        queue.flush()
    assert len(cache) == 7


def test_a_queue_that_was_never_made(cache):
    """Without __init__ there is nothing to use, and no crash."""
    queue: Any = OptimizedInvalidation.__new__(OptimizedInvalidation)
    calls: list[Callable[[], Any]] = [
        lambda: queue.invalidate_key("a"), queue.invalidate_all, queue.flush, queue.close,
        queue._pushed, queue._taken, queue._age, queue._close, lambda: queue._take(1, []),
        lambda: queue._arm(1), lambda: queue._after_fork(None), lambda: queue.capacity,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(RuntimeError):
            call()
    assert queue.closed


def test_a_queue_is_made_once(cache, queued):
    """The ring cannot be replaced."""
    queue = queued(cache)
    queue.invalidate_key("user:1")
    with pytest.raises(RuntimeError, match="already"):
        queue._open(8, None, None)
    queue.flush()
    assert len(cache) == 7
