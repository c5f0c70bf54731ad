"""The invalidation queue's thread, many producers, the end of the interpreter, and fork."""

from __future__ import annotations

import gc
import os
import queue as queues
import random
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import lapse
from lapse.invalidation import Invalidation, OptimizedInvalidation
from lapse.invalidation.worker import Worker, await_all
from support import PATIENCE, await_child, in_child, run_python, switching, wait_until

THREADS = 4
LONG = 40 if os.environ.get("LAPSE_LONG") == "1" else 1
HOUR = 3600.0
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


_switch_often = switching(2e-6)


class Sink:
    """A foreign cache that counts what is deleted, and calls `hook` first."""

    def __init__(self, hook: Callable[[Any], Any] = lambda key: None):
        self.hook = hook
        self.deleted: Counter[Any] = Counter()
        self.cleared = 0

    def delete(self, key: Any) -> bool:
        self.hook(key)
        self.deleted[key] += 1
        return True

    def clear(self) -> None:
        self.cleared += 1


def at_once(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Runs work(0), work(1), … in threads that start together; their results."""
    start = threading.Barrier(count)

    def run(n: int) -> Any:
        start.wait()
        return work(n)

    with ThreadPoolExecutor(count) as pool:
        return [each.result(60) for each in [pool.submit(run, n) for n in range(count)]]


def threads_of(name: str) -> list[threading.Thread]:
    """The living threads of the queues of that name."""
    return [each for each in threading.enumerate() if each.name == f"lapse-invalidation-{name}"]


# --- The thread ---


def test_drained_by_size():
    """A batch that is full is applied long before its time."""
    done = threading.Event()
    sink = Sink(lambda key: key == 9 and done.set())
    with OptimizedInvalidation(sink, batch_size=10, batch_timeout=HOUR) as queue:
        for n in range(10):
            queue.invalidate_key(n)
        assert done.wait(PATIENCE)
        assert wait_until(lambda: queue.stats().applied == 10)
        assert queue.stats().batches == 1


def test_drained_by_time():
    """An item alone is applied when its time has come, and not at once."""
    applied_at: list[float] = []
    done = threading.Event()
    sink = Sink(lambda key: (applied_at.append(time.monotonic()), done.set()))
    with OptimizedInvalidation(sink, batch_size=1000, batch_timeout=0.1) as queue:
        for n in range(3):
            done.clear()
            began = time.monotonic()
            queue.invalidate_key(n)
            assert done.wait(PATIENCE)
            assert applied_at[-1] - began > 0.05  # coarse ticks


def test_an_idle_thread_sleeps():
    """While nothing waits the thread sleeps without an end, and so it does not poll."""
    slept: list[float | None] = []

    class Watched(OptimizedInvalidation):
        def _turn(self) -> float | None:
            slept.append(super()._turn())
            return slept[-1]

    with Watched(Sink(), batch_size=2, batch_timeout=HOUR) as queue:
        assert wait_until(lambda: slept == [None])
        for n in range(2):
            queue.invalidate_key(n)
        assert wait_until(lambda: queue.stats().applied == 2 and slept[-1] is None)
        assert len(slept) <= 3


def test_one_thread_a_queue():
    """It is named, a daemon, started by the constructor or on demand, and only once."""
    with OptimizedInvalidation(Sink(), name="one") as queue:
        queue.start_batch_processing()
        (thread,) = threads_of("one")
        assert thread.daemon
    assert wait_until(lambda: not threads_of("one"))
    held = OptimizedInvalidation(Sink(), name="held", batch_size=1, start=False)
    assert not threads_of("held")
    held.invalidate_key(1)
    held.start_batch_processing()
    assert wait_until(lambda: held.cache.deleted[1] == 1)
    held.close()
    assert wait_until(lambda: not threads_of("held"))


def test_close_ends_the_thread_soon():
    """Whatever the timeout; and what waited is applied."""
    queue = OptimizedInvalidation(Sink(), batch_timeout=HOUR, name="soon")
    queue.invalidate_key(1)
    (thread,) = threads_of("soon")
    began = time.monotonic()
    queue.close()
    thread.join(PATIENCE)
    assert time.monotonic() - began < PATIENCE
    assert not thread.is_alive()
    assert queue.cache.deleted == {1: 1}


def test_close_by_the_thread_itself():
    """A cache may close the queue in the midst of a batch."""
    sink = Sink(lambda key: key == "close" and queue.close())
    queue = OptimizedInvalidation(sink, batch_size=2, batch_timeout=HOUR, name="itself")
    for key in ("close", "rest"):
        queue.invalidate_key(key)
    assert wait_until(lambda: not threads_of("itself"))
    assert sink.deleted == {"close": 1, "rest": 1}


def test_the_thread_survives_errors(caplog):
    """Whatever goes wrong is logged; what was to be applied is applied later, by that thread."""
    failing = [1, 1]

    class Broken(OptimizedInvalidation):
        def _settle(self, work: Any) -> Any:
            if failing:
                raise MemoryError(failing.pop())
            return super()._settle(work)

    with Broken(Sink(), batch_size=2, batch_timeout=0.05, name="broken") as queue:
        (thread,) = threads_of("broken")
        for n in range(2):
            queue.invalidate_key(n)
        assert wait_until(lambda: queue.stats().applied == 2)
        assert queue.cache.deleted == {0: 1, 1: 1}
        assert threads_of("broken") == [thread]
    assert [record.exc_info[0] for record in caplog.records] == [MemoryError, MemoryError]


def test_the_thread_pauses_after_an_error():
    """However loudly it is woken for what has been put back, it does not try again at once."""
    slept: list[Any] = []

    class Alarm(queues.SimpleQueue[None]):
        def get(self, block: bool = True, timeout: float | None = None) -> None:
            slept.append((timeout, self.qsize()))
            owner._stopping = True

    class Owner:
        _stopping = False
        batch_timeout = 0.25

        def _turn(self) -> None:
            alarm.put(None)
            raise MemoryError

    alarm, owner = Alarm(), Owner()
    Worker(lambda: owner, alarm).run()  # type: ignore[arg-type]
    assert slept == [(0.25, 0)]


def test_the_thread_holds_no_queue():
    """A queue that nobody refers to dies, and its thread ends."""
    queue = OptimizedInvalidation(Sink(), batch_timeout=HOUR, name="dropped")
    sink, ref = queue.cache, weakref.ref(queue)
    queue.invalidate_key(1)
    del queue
    gc.collect()
    assert wait_until(lambda: ref() is None and not threads_of("dropped"))
    assert sink.deleted == {1: 1}


def test_a_subclass_that_overrides(monkeypatch):
    """A subclass of the caller's may override the native methods, and keeps the others."""

    class Loud(OptimizedInvalidation):
        def invalidate_key(self, key: Any) -> None:
            super().invalidate_key(f"loud {key}")

    with Loud(Sink(), start=False) as queue:
        queue.invalidate_key(1)
        OptimizedInvalidation.invalidate_key(queue, 2)
        queue.flush()
        assert set(queue.cache.deleted) == {"loud 1", 2}


# --- Many producers ---


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_every_item_once(batch_size):
    """Producers that outrun a small ring wait for room: each item is applied exactly once."""
    turns = 500 * LONG
    sink = Sink()
    with OptimizedInvalidation(sink, batch_size, 0.01, capacity=16, overflow_wait=HOUR) as queue:

        def work(n: int) -> None:
            for turn in range(turns):
                queue.invalidate_key((n, turn))

        at_once(work)
        queue.flush()
        assert len(sink.deleted) == THREADS * turns
        assert set(sink.deleted.values()) == {1}
        stats = queue.stats()
        assert stats.enqueued == stats.applied == THREADS * turns
        assert (stats.depth, stats.collapses, sink.cleared) == (0, 0, 0)
        assert stats.batch_max <= batch_size


def test_a_flush_is_a_barrier():
    """When flush() returns, what its thread queued before is gone, whoever applied it."""
    cache: Any = lapse.TTLCache(cleanup_interval=None)
    with OptimizedInvalidation(cache, batch_size=5, batch_timeout=0.001) as queue:

        def work(n: int) -> None:
            rng = random.Random(n)
            for turn in range(300 * LONG):
                key = f"t{n}:{turn}"
                cache.set(key, turn, tags=[key])
                kind = rng.randrange(4)
                if kind == 0:
                    queue.invalidate_key(key)
                elif kind == 1:
                    queue.invalidate_pattern(f"t{n}:{turn}")
                elif kind == 2:
                    queue.invalidate_tag(key)
                else:
                    queue.invalidate_table(f"t{n}")
                queue.flush()
                assert key not in cache

        at_once(work)
        assert queue.stats().depth == 0


def test_apply_beside_others():
    """apply() answers for its own batch while others queue, flush and apply."""
    cache: Any = lapse.TTLCache(cleanup_interval=None)
    with OptimizedInvalidation(cache, batch_size=3, batch_timeout=0.001) as queue:

        def work(n: int) -> int:
            removed = 0
            for turn in range(200 * LONG):
                cache[n, turn] = 1
                queue.invalidate_key((n, turn, "absent"))
                batch = [Invalidation("key", (n, turn)), Invalidation("key", (n, turn, "no"))]
                removed += sum(each.removed for each in queue.apply(batch))
            return removed

        assert at_once(work) == [200 * LONG] * THREADS


@pytest.mark.parametrize("overflow", ["all", "table", lambda items: items])
def test_overflow_loses_nothing(overflow):
    """Producers that never wait overflow a tiny ring again and again; nothing named survives."""
    cache: Any = lapse.TTLCache(cleanup_interval=None)
    turns = 300 * LONG
    with OptimizedInvalidation(
        cache, 4, 0.001, capacity=8, overflow=overflow, overflow_wait=0
    ) as queue:

        def work(n: int) -> None:
            for turn in range(turns):
                key = f"t{n}:{turn}"
                cache[key] = turn
                queue.invalidate_key(key)
                if turn % 50 == 49:
                    queue.flush()
                    assert not [key for key in cache if key.startswith(f"t{n}:")]

        at_once(work)
        queue.flush()
        stats = queue.stats()
        assert stats.enqueued == stats.applied == THREADS * turns
        assert len(cache) == 0


def test_a_cache_that_hangs_does_not_hold_up_producers():
    """While a batch is stuck in the cache, a full ring gives way; nothing is lost."""
    stuck, go_on = threading.Event(), threading.Event()

    def hook(key: Any) -> None:
        stuck.set()
        assert go_on.wait(60)

    sink = Sink(hook)
    with OptimizedInvalidation(sink, 2, HOUR, capacity=4, overflow_wait=0.001) as queue:
        queue.invalidate_key(0)
        queue.invalidate_key(1)
        assert stuck.wait(PATIENCE)
        for n in range(2, 20):
            queue.invalidate_key(n)
        assert queue.stats().collapses >= 1
        assert sink.cleared == 0
        go_on.set()
        queue.flush()
        assert sink.cleared >= 1
        assert queue.stats().applied == 20


def test_a_producer_gets_the_room_that_is_made():
    """A producer that waits for room goes on as soon as there is some, and nothing collapses."""
    stuck, go_on = threading.Event(), threading.Event()

    def hook(key: Any) -> None:
        stuck.set()
        assert go_on.wait(60)

    sink = Sink(hook)
    with OptimizedInvalidation(sink, 2, HOUR, capacity=2, overflow_wait=HOUR) as queue:
        for n in range(4):  # two are stuck in the cache, two fill the ring
            queue.invalidate_key(n)
            assert n != 1 or stuck.wait(PATIENCE)
        waiting = threading.Thread(target=queue.invalidate_key, args=(4,))
        waiting.start()
        go_on.set()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        queue.flush()
        assert sink.deleted == dict.fromkeys(range(5), 1)
        assert queue.stats().collapses == 0


def test_closing_beside_producers():
    """Each item is refused with a RuntimeError or applied, at whatever moment close() comes."""
    for turn in range(30 * LONG):
        sink = Sink()
        queue = OptimizedInvalidation(sink, 3, 0.001, capacity=64, overflow_wait=HOUR)

        def work(n: int, queue: Any = queue, turn: int = turn) -> int:
            accepted = 0
            if n == 0:
                while queue.stats().enqueued < 5 * (turn % 30):
                    time.sleep(0)
                queue.close()
                return 0
            try:
                while True:
                    queue.invalidate_key((n, accepted))
                    accepted += 1
            except RuntimeError:
                return accepted

        accepted = at_once(work)
        assert sink.deleted == {(n, i): 1 for n in range(THREADS) for i in range(accepted[n])}
        assert queue.stats().depth == 0


def test_a_finalizer_may_queue():
    """A finalizer may run anywhere in another call to the queue, and queue as well."""
    sink = Sink()
    with OptimizedInvalidation(sink, 5, 0.001, capacity=8, overflow_wait=0) as queue:

        class Cycle:
            def __init__(self) -> None:
                self.me = self

            def __del__(self) -> None:
                queue.invalidate_key("finalizer")

        threshold = gc.get_threshold()
        gc.set_threshold(5)
        try:
            for n in range(2000):
                Cycle()
                queue.invalidate_key(n)
                if n % 20 == 0:
                    queue.flush()
                    queue.stats()
        finally:
            gc.set_threshold(*threshold)

        def is_all_queued() -> bool:
            gc.collect()  # in vain while the queue's thread is collecting
            return queue.stats().enqueued == 4000

        assert wait_until(is_all_queued)
        queue.flush()
        assert queue.stats().depth == 0


# --- The end of the interpreter ---

BEGIN = """
import atexit, os, sys, threading, time
from lapse import TTLCache
from lapse.invalidation import Invalidation, OptimizedInvalidation
from lapse.invalidation import queue
from lapse.invalidation.worker import Worker

class Sink:
    def delete(self, key):
        print("deleted", key, flush=True)
    def clear(self):
        print("cleared", flush=True)

"""
#: As long as it takes: a thread that applies something may be kept from running.
PATIENTLY = f"{BEGIN}queue.EXIT_WAIT = {PATIENCE}\n"


def lines(child: Any) -> list[str]:
    """What a child interpreter printed, sorted; it ended well and complained about nothing."""
    assert (child.returncode, child.stderr) == (0, "")
    return sorted(child.stdout.splitlines())


@pytest.mark.parametrize("start", [True, False])
def test_exit_applies_what_is_queued(start):
    """Items that wait when the interpreter ends are applied."""
    code = f"""
q = OptimizedInvalidation(Sink(), batch_timeout=3600, start={start})
for n in range(3): q.invalidate_key(n)
"""
    assert lines(run_python(PATIENTLY + code)) == ["deleted 0", "deleted 1", "deleted 2"]


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit(0)",
        "q.start_batch_processing(); keep = q; sys.q = q",
        "q.close()",
        "del q",
        "atexit.register(q.invalidate_key, 0)",
        "threading.Thread(target=lambda: (time.sleep(0.05), q.invalidate_key(0))).start()",
    ],
)
def test_ends_of_the_interpreter(ending):
    """Whatever refers to a queue in the end, the interpreter ends cleanly, and nothing is lost."""
    code = """
q = OptimizedInvalidation(Sink(), batch_timeout=3600)
q.invalidate_key(0)
"""
    assert set(lines(run_python(PATIENTLY + code + ending))) == {"deleted 0"}


def test_exit_waits_for_a_queue_that_dies_in_its_thread():
    """The queue's own thread is the last to hold it, and applies what waits while the rest ends."""
    code = """
held, dropped, dying = threading.Event(), threading.Event(), threading.Event()
class Slow(Sink):
    def delete(self, key):
        dying.set()
        time.sleep(0.2)
        super().delete(key)
class Held(OptimizedInvalidation):
    def _turn(self):
        held.set()
        dropped.wait()
        return super()._turn()
q = Held(Slow(), batch_timeout=3600)
held.wait()
q.invalidate_key(0)
del q
dropped.set()
dying.wait()
"""
    assert lines(run_python(PATIENTLY + code)) == ["deleted 0"]


def test_exit_while_a_queue_starts_its_thread(monkeypatch):
    """A thread that another one is about to start when the interpreter ends is not waited for."""
    with OptimizedInvalidation(Sink(), start=False) as q:
        about_to_start = Worker(weakref.ref(q), q._alarm)
        monkeypatch.setattr(threading, "enumerate", lambda: [about_to_start])
        await_all(60)


def test_exit_does_not_wait_for_ever():
    """A cache that hangs holds up the end of the interpreter for a moment only, and is named."""
    code = """
stuck = threading.Event()
class Hanging(Sink):
    def delete(self, key):
        stuck.set()
        time.sleep(3600)
q = OptimizedInvalidation(Hanging(), batch_size=1)
q.invalidate_key(1)
stuck.wait()
q.invalidate_key(2)
"""
    child = run_python(BEGIN + code)
    assert child.returncode == 0
    assert "2 items are not applied" in child.stderr


# --- Fork ---


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("start", [True, False])
def test_a_child_applies_what_it_inherits(start):
    """What waits at a fork is applied in the child at once, and in the parent in its own time."""
    cache: Any = lapse.TTLCache(cleanup_interval=None)
    cache.set_many({"user:1": 1, "user:2": 2, "order:1": 3})
    with OptimizedInvalidation(cache, batch_timeout=HOUR, start=start) as queue:
        queue.invalidate_table("user")

        def work() -> None:
            assert set(cache) == {"order:1"}
            queue.invalidate_key("order:1")
            queue.flush()
            assert not len(cache)
            stats = queue.stats()
            assert (stats.enqueued, stats.applied, stats.depth) == (2, 2, 0)
            queue.close()

        assert in_child(work) == 0
        assert len(cache) == 3
        queue.flush()
        assert set(cache) == {"order:1"}


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_thread_runs_on_in_a_child():
    """The child has a thread of its own, that drains by size and by time."""
    sink = Sink()
    with OptimizedInvalidation(sink, 2, 0.01, name="forked") as queue:

        def work() -> None:
            assert len(threads_of("forked")) == 1
            queue.invalidate_key(1)
            assert wait_until(lambda: sink.deleted[1] == 1)
            queue.close()
            assert not threads_of("forked")

        assert in_child(work) == 0
        queue.invalidate_key(2)
        assert wait_until(lambda: sink.deleted[2] == 1)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_midst_of_a_batch():
    """What the parent's thread has taken and not applied is applied in the child."""
    stuck, go_on, parent = threading.Event(), threading.Event(), os.getpid()

    def hook(key: Any) -> None:
        if os.getpid() == parent:
            stuck.set()
            assert go_on.wait(60)

    sink = Sink(hook)
    with OptimizedInvalidation(sink, 3, HOUR) as queue:
        for n in range(4):
            queue.invalidate_key(n)
        assert stuck.wait(PATIENCE)

        def work() -> None:
            assert sink.deleted == dict.fromkeys(range(4), 1)
            assert (queue.stats().applied, queue.stats().depth) == (4, 0)
            queue.flush()
            queue.close()

        status = in_child(work)
        go_on.set()
        assert status == 0
        queue.flush()
        assert sink.deleted == dict.fromkeys(range(4), 1)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_an_overflow_is_covered():
    """What a policy of the caller's is busy with at a fork is applied in the child as it was."""
    stuck, go_on = threading.Event(), threading.Event()

    def policy(items: list[Invalidation]) -> list[Invalidation]:
        stuck.set()
        assert go_on.wait(60)
        return items

    sink = Sink()
    queue = OptimizedInvalidation(sink, capacity=2, overflow=policy, overflow_wait=0, start=False)
    for n in range(2):
        queue.invalidate_key(n)
    producer = threading.Thread(target=queue.invalidate_key, args=(2,))
    producer.start()
    assert stuck.wait(PATIENCE)

    def work() -> None:
        assert sink.deleted == {0: 1, 1: 1}
        queue.close()

    status = in_child(work)
    go_on.set()
    producer.join(PATIENCE)
    assert status == 0
    queue.close()
    assert sink.deleted == {0: 1, 1: 1, 2: 1}


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_cannot_apply_clears():
    """If applying what a child inherits fails, its cache is cleared instead."""
    parent = os.getpid()

    class Broken(OptimizedInvalidation):
        def _settle(self, work: Any) -> Any:
            if os.getpid() != parent:
                raise MemoryError
            return super()._settle(work)

    sink = Sink()
    queue = Broken(sink, start=False)
    queue.invalidate_key(1)

    def work() -> None:
        assert (sink.cleared, sink.deleted) == (1, {})

    assert in_child(work) == 0
    queue.close()
    assert (sink.cleared, sink.deleted) == (0, {1: 1})


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_midst_of_counting():
    """Whatever the counters say at a fork, in the child everything accepted has been applied."""
    queue = OptimizedInvalidation(Sink(), start=False)
    queue.invalidate_key(1)
    queue._counts.collapses += 1  # as if an overflow had got no further

    def work() -> None:
        assert (queue.stats().enqueued, queue.stats().depth) == (2, 0)

    assert in_child(work) == 0
    queue.close()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_by_the_cache_itself():
    """A cache that forks in the midst of a batch: the child applies the batch, then goes on."""
    statuses: list[int] = []

    def hook(key: Any) -> None:
        if key == 1 and not statuses:
            statuses.append(0)
            child = os.fork()
            if child == 0:
                return
            statuses[0] = await_child(child)

    sink = Sink(hook)
    parent = os.getpid()
    queue = OptimizedInvalidation(sink, start=False)
    for n in range(3):
        queue.invalidate_key(n)
    try:
        queue.flush()
        assert set(sink.deleted) == {0, 1, 2}
        assert (queue.stats().applied, queue.stats().depth) == (3, 0)
        queue.close()
    finally:
        if os.getpid() != parent:
            os._exit(sys.exc_info()[0] is not None)
    assert statuses == [0]


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_under_load():
    """Forks in the midst of pushes, drains and overflows: each child can use what it inherits."""
    cache: Any = lapse.TTLCache(cleanup_interval=None)
    stop = threading.Event()
    with OptimizedInvalidation(cache, 4, 0.001, capacity=16, overflow_wait=0) as queue:

        def produce() -> None:
            n = 0
            while not stop.is_set():
                queue.invalidate_key(n)
                n += 1

        def work() -> None:
            assert queue.stats().depth == 0
            cache["a"] = 1
            queue.invalidate_key("a")
            queue.flush()
            assert "a" not in cache
            queue.close()

        producers = [threading.Thread(target=produce) for _ in range(2)]
        for each in producers:
            each.start()
        try:
            assert [in_child(work) for _ in range(15)] == [0] * 15
        finally:
            stop.set()
            for each in producers:
                each.join()
