"""Memory runs out in what is built on the caches: nothing hangs, and no invalidation is lost."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lapse
from faults import Value, contents, each_failure, leaves_nothing_behind
from lapse import flight_refresh, sweeper
from lapse.flight_board import board, inside
from lapse.invalidation import Invalidation, OptimizedInvalidation, wire
from lapse.invalidation.worker import Worker
from lapse.shortage import keep_going
from support import FREE_THREADED, PATIENCE, cache_maker, wait_until

WAYS = ["native", "short", "step"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No garbage collector that runs by itself, and no log that keeps what failed."""
    for name in ("lapse.loading", "lapse.invalidation", "lapse.sweeper"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    gc.disable()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()
    board.forget()
    inside.set(None)


@pytest.fixture
def make(clock: lapse.ManualClock) -> Callable[..., Any]:
    """Makes caches of one kind: what is built on them is the same for all."""
    return cache_maker(lapse.TTLCache, clock, {})


# --- Loading ---


def load(key: str) -> Any:
    return Value(f"of {key}")


async def aload(key: str) -> Any:
    await asyncio.sleep(0)
    return Value(f"of {key}")


def fail(key: str) -> Any:
    raise OSError(key)


def nested(cache: Any) -> Callable[[str], Any]:
    return lambda key: cache.get_or_load(f"inner {key}", load)


def attempt(call: Callable[[], Any]) -> Any:
    """What it gives, or the OSError that it raises on purpose."""
    try:
        return call()
    except OSError:
        return None


LOADS: dict[str, Callable[[Any], Any]] = {
    "a miss": lambda c: c.get_or_load("k", load),
    "a hit": lambda c: c.get_or_load("there", load),
    "an expired entry": lambda c: c.get_or_load("old", load),
    "with a ttl and tags": lambda c: c.get_or_load("k", load, ttl=lambda _: 5, tags=("t",)),
    "with a timeout": lambda c: c.get_or_load("k", load, timeout=5),
    "a loader that raises": lambda c: attempt(lambda: c.get_or_load("k", fail)),
    "a reload that raises": lambda c: attempt(lambda: c.get_or_load("old", fail)),
    "a load in a load": lambda c: c.get_or_load("k", nested(c)),
    "load_many": lambda c: c.load_many(
        ["k", "l", "there"], lambda keys: {k: load(k) for k in keys}
    ),
    "load_many, some": lambda c: c.load_many(["k", "l"], lambda keys: {"k": load("k")}),
    "load_many that raises": lambda c: attempt(lambda: c.load_many(["k", "l"], fail)),
    "a coroutine": lambda c: loop.run_until_complete(c.aget_or_load("k", aload)),
    "a coroutine's reload": lambda c: loop.run_until_complete(c.aget_or_load("old", aload)),
    "a coroutine that raises": lambda c: attempt(
        lambda: loop.run_until_complete(c.aget_or_load("k", fail))
    ),
    "cached": lambda c: lapse.cached(cache=c)(load)("k"),
}
loop: Any = None


@pytest.fixture
def _loop() -> Iterator[None]:
    global loop
    loop = asyncio.new_event_loop()
    yield
    loop.close()
    loop = None


def idle() -> bool:
    """Does nobody load or wait? Tasks that are under way may end first."""
    for _ in range(5 if loop else 0):
        loop.run_until_complete(asyncio.sleep(0))
    free = not board.lock._is_owned()  # type: ignore[attr-defined]
    run = inside.get()
    return free and not board.running and not board.blocked and (run is None or run.over)


@pytest.mark.usefixtures("_loop")
@pytest.mark.filterwarnings("ignore:coroutine 'a?fly|coroutine 'aload:RuntimeWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOADS)
def test_a_load_runs_out_of_memory(make, name, way):
    """A load that fails for lack of memory is over; the next one loads anew."""

    def prepare() -> Any:
        cache = make(stale_ttl=100)
        cache.set("old", Value("old"), ttl=1)
        cache.clock.advance(2)
        cache.set("there", Value("there"))
        return cache

    def work() -> None:
        for cache, _ in each_failure(way, prepare, LOADS[name]):
            assert idle()
            contents(cache)
            LOADS[name](cache)
            assert cache.get_or_load("k", load).name in ("of k", "of inner k")
            assert idle()

    # An event loop keeps what was cancelled for a while, CPython 3.13t keeps functions for ever.
    kept = "coroutine" in name or (FREE_THREADED and name == "cached")
    if kept:
        work()
    else:
        leaves_nothing_behind(work, way)


@pytest.mark.parametrize("fails", [False, True])
def test_who_waits_goes_on(make, fails):
    """A caller who waits for a load that runs out of memory is not left waiting."""
    waiting: list[threading.Thread] = []
    got: list[Any] = []

    def wait(cache: Any) -> None:
        try:
            got.append(cache.get_or_load("k", lambda _: "own", timeout=PATIENCE))
        except (MemoryError, OSError) as error:
            got.append(error)

    def slow(cache: Any) -> Any:
        waiting.append(threading.Thread(target=wait, args=(cache,)))
        waiting[-1].start()
        assert wait_until(lambda: board.blocked)
        return fail("k") if fails else "theirs"

    for _ in each_failure(
        "step", make, lambda c: attempt(lambda: c.get_or_load("k", lambda _, c=c: slow(c)))
    ):
        for thread in waiting:
            thread.join(PATIENCE)
        assert all(each in ("own", "theirs") or not isinstance(each, TimeoutError) for each in got)
        assert idle()
        waiting.clear()
        got.clear()


# --- The queue of invalidations ---


def queue_of(cache: Any, **options: Any) -> OptimizedInvalidation:
    """A queue without a thread, of a cache with entries of every kind."""
    cache.set_many({f"{table}:{n}": Value(f"{table}{n}") for table in "abcd" for n in range(3)})
    cache.set("tagged", Value("tagged"), tags=("t",))
    return OptimizedInvalidation(cache, start=False, overflow_wait=0, **options)


def put_all(q: Any) -> None:
    q.invalidate_key("a:1")
    q.invalidate_table("b")
    q.invalidate_pattern("c:*")
    q.invalidate_tag("t")


REST = {"a:0", "a:2", "d:0", "d:1", "d:2"}  # what put_all() leaves
BATCH = [Invalidation("key", "a:1"), Invalidation("table", "b"), Invalidation("tag", "t")]


def at_rest(q: Any) -> bool:
    """Is the queue empty, and no lock of it held?"""
    held = [q._flushing._is_owned(), q._short._is_owned(), q._room._is_owned(), q._consumer]
    return not (any(held) or q._applying or q._waiting())


DRAINS: dict[str, Callable[[Any], Any]] = {
    "flush": lambda q: q.flush(),
    "flush, in a listener's stead": lambda q: q._drain(),
    "a turn of the thread": lambda q: q._turn(),
    "close": lambda q: q.close(),
    "apply": lambda q: q.apply(BATCH),
    "stats": lambda q: q.get_stats(),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_covers_a_full_ring_runs_out_of_memory(make, way):
    """Nor is what stands for items that had no room lost."""

    def prepare() -> Any:
        q = queue_of(make(), capacity=2, overflow="table")
        put_all(q)
        return q

    for q, _ in each_failure(way, prepare, DRAINS["flush"]):
        q._drain()
        assert set(q.cache) <= REST
        assert at_rest(q)
        assert q.stats().depth == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DRAINS)
def test_applying_runs_out_of_memory(make, name, way):
    """What waits in a queue is applied, at the latest by the next drain."""

    def prepare() -> Any:
        q = queue_of(make(), batch_size=2)
        put_all(q)
        return q

    def work() -> None:
        for q, _ in each_failure(way, prepare, DRAINS[name]):
            q._drain()
            assert set(q.cache) == REST
            assert at_rest(q)
            contents(q.cache)

    leaves_nothing_behind(work, way)


@pytest.mark.parametrize("way", WAYS)
def test_clearing_runs_out_of_memory(make, way):
    """An invalidation of all that has failed is made up for."""

    def prepare() -> Any:
        q = queue_of(make())
        q.invalidate_all()
        return q

    for q, _ in each_failure(way, prepare, lambda q: q.flush()):
        q._drain()
        assert len(q.cache) == 0
        assert at_rest(q)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("overflow", ["all", "table", lambda batch: batch])
def test_an_overflow_runs_out_of_memory(make, overflow, way):
    """What is in a full ring goes, whether or not one more item finds a place."""

    def prepare() -> Any:
        q = queue_of(make(), capacity=2, overflow=overflow)
        q.invalidate_key("a:1")
        q.invalidate_key("b:1")
        return q

    def work() -> None:
        for q, raised in each_failure(way, prepare, lambda q: q.invalidate_key("c:1")):
            q._drain()
            assert not {"a:1", "b:1"} & set(q.cache)
            assert raised or "c:1" not in q.cache
            assert at_rest(q)

    leaves_nothing_behind(work, way)


@pytest.mark.parametrize("way", WAYS)
def test_queueing_runs_out_of_memory(make, way):
    """What is queued without an error is applied."""

    def work() -> None:
        for q, raised in each_failure(way, lambda: queue_of(make()), put_all):
            q._drain()
            assert raised or set(q.cache) == REST
            assert at_rest(q)

    leaves_nothing_behind(work, way)


# --- Threads that must not end ---


class Last:
    """A foreign cache that ends the thread of its queue when a key has been deleted."""

    queue: Any = None

    def delete(self, key: Any) -> int:
        self.queue._stopping = True
        self.queue._alarm.put(None)
        return 1

    delete_pattern = delete


def test_the_thread_of_a_queue_survives():
    """The thread that applies invalidations goes on when memory was short."""

    def prepare() -> Any:
        q = OptimizedInvalidation(Last(), batch_timeout=0.001, start=False)
        q.cache.queue = q
        q.invalidate_key("k")
        return q, Worker(weakref.ref(q), q._alarm)

    for (q, _), raised in each_failure("step", prepare, lambda made: keep_going(made[1]._run_once)):
        assert not raised
        assert q._stopping


def test_the_sweeper_survives(make):
    """The sweeping thread goes on, and forgets no cache, when memory was short."""

    class Swept:
        closed = False

        def expire(self) -> None:
            it.stop()

    def prepare() -> Any:
        nonlocal it
        it = sweeper.Sweeper()
        cache = Swept()
        it._push(weakref.ref(cache), 0.001)
        return it, cache

    it: Any = None
    for (swept, cache), raised in each_failure(
        "step", prepare, lambda both: keep_going(both[0]._run_once)
    ):
        assert not raised
        assert [each for each, _ in swept.watched()] == [cache]


def test_the_sweeper_drops_dead_caches_without_memory():
    """Whoever finds no memory to drop dead caches from the heap leaves the others in it."""

    class Swept:
        closed = False

    def prepare() -> Any:
        it, caches = sweeper.Sweeper(), [Swept() for _ in range(6)]
        for cache in caches:
            it._push(weakref.ref(cache), 1.0)
        del caches[::2]
        return it, caches

    failed = 0
    for (it, caches), raised in each_failure("step", prepare, lambda both: both[0]._compact()):
        failed += raised
        found = [cache for cache, _ in it.watched()]
        assert sorted(map(id, found)) == sorted(map(id, caches))
        assert raised or len(it._heap) == len(caches)
    assert failed


def test_a_worker_survives(make, monkeypatch):
    """A thread that reloads in the background does all its work when memory was short."""
    monkeypatch.setattr(flight_refresh, "LINGER", 0.001)

    def prepare() -> Any:
        cache, workers = make(stale_ttl=100), flight_refresh.Workers()
        cache.set("k", old := Value("old"), ttl=1)
        cache.clock.advance(2)
        workers._threads = 1  # the one of this test
        monkeypatch.setattr(workers, "_start", lambda: None)
        flight = flight_refresh.Flight(cache, "k", frozenset())
        assert board.offer(flight) is flight
        assert workers.submit(cache, flight, old, load, None)
        return workers, cache

    for (workers, _), raised in each_failure(
        "step", prepare, lambda both: keep_going(both[0]._run_once)
    ):
        assert not raised
        assert workers._threads == 0
        assert idle()


# --- The wire form ---


@pytest.mark.parametrize("form", ["binary", "json"])
def test_the_wire_form_runs_out_of_memory(form):
    """A batch is encoded, and decoded, wholly or not at all."""
    batch = [*BATCH, Invalidation("key", ("k", 2))]
    data = wire.encode(batch, form=form)
    found: list[Any] = []
    encode = lambda _: found.append(wire.encode(batch, form=form))  # noqa: E731
    for _, raised in each_failure("step", found.clear, encode):
        assert raised or found == [data]
    for _, raised in each_failure("step", found.clear, lambda _: found.append(wire.decode(data))):
        assert raised or found == [batch]
