"""A receiver: applying, resync policies, callbacks, errors, and the life of its thread."""

from __future__ import annotations

import gc
import queue as queues
import threading
import time
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import lapse
from lapse.distributed import endpoint
from lapse.invalidation import Invalidation, OptimizedInvalidation
from lapse.invalidation import queue as batches
from lapse.invalidation import receiver as receivers
from lapse.invalidation.alerts import Alert, Alerts
from lapse.invalidation.receiver import Receiver
from lapse.invalidation.source import Batch, Resync, SourceCounts
from lapse.loading import lazy_walker
from support import PATIENCE, SOON, no_thread, no_thread_to_be_had, wait_until

HOUR = 3600.0


class Feed:
    """A source that yields what is put into it, and raises the exceptions among that."""

    delivery = "at-most-once"
    ordered = broadcast = True
    replay = False

    def __init__(self, *events: Any):
        self.waiting: queues.SimpleQueue[Any] = queues.SimpleQueue()
        self.iterations = 0
        self.closed = False
        for event in events:
            self.waiting.put(event)

    def __iter__(self) -> Iterator[Batch | Resync]:
        self.iterations += 1
        while not self.closed:
            try:
                event = self.waiting.get(timeout=0.05)
            except queues.Empty:
                yield Batch()
                continue
            if isinstance(event, Exception):
                raise event
            if event is not None:
                yield event

    def close(self) -> None:
        self.closed = True
        self.waiting.put(None)


class Foreign:
    """A foreign cache that notes what is done to it, and can soften if `soft`."""

    def __init__(self, soft: bool = False):
        self.done: list[Any] = []
        self.failing: list[Exception] = []
        if soft:
            self.soft_clear = lambda ttl: self._do("soft", ttl)

    def delete(self, key: Any) -> bool:
        return self._do("delete", key)

    def delete_pattern(self, pattern: str) -> int:
        return self._do("pattern", pattern)

    def clear(self) -> None:
        self._do("clear")

    def _do(self, *what: Any) -> bool:
        if self.failing:
            raise self.failing.pop()
        self.done.append(what)
        return True


def key(target: Any, commit: Any = None, **fields: Any) -> Batch:
    return Batch((Invalidation("key", target, **fields),), (), commit)


@pytest.fixture
def receive() -> Iterator[Any]:
    """Makes receivers on a foreign cache, started, and closes them."""
    made: list[Receiver] = []

    def make(source: Any, cache: Any = None, **options: Any) -> Receiver:
        window = options.get("window", 0.0)
        queue = OptimizedInvalidation(
            cache if cache is not None else Foreign(),
            batch_timeout=window or HOUR,
            start=window > 0,
        )
        receiver = Receiver(source, queue, **{"name": "test", **options})
        made.append(receiver)
        receiver.start()
        return receiver

    yield make
    for each in made:
        each.close()
        each.queue.close()


def settled(receiver: Receiver) -> Any:
    """What was done to the cache, when all that was fed so far is dealt with."""
    done = threading.Event()
    receiver.source.waiting.put(Batch(commit=done.set))
    assert done.wait(PATIENCE)
    return receiver.queue.cache.done


# --- Applying ---


def test_what_comes_is_applied_and_committed(receive):
    """Batches are applied in order, and committed when they are in force."""
    committed: list[int] = []
    receiver = receive(Feed())
    cache = receiver.queue.cache
    receiver.source.waiting.put(key(1, lambda: committed.append(len(cache.done))))
    receiver.source.waiting.put(key(2, lambda: committed.append(len(cache.done))))
    assert settled(receiver) == [("delete", 1), ("delete", 2)]
    assert committed == [1, 2]
    stats = receiver.stats()
    assert (stats.received, stats.applied, stats.removed, stats.errors) == (2, 2, 2, 0)


def test_a_window_gathers_but_a_commit_waits(receive):
    """With a window items wait in the queue, unless their batch wants to be committed."""
    receiver = receive(Feed(key(1), Batch((Invalidation("all"),))), window=HOUR)
    assert wait_until(lambda: receiver.queue.stats().enqueued == 2)
    assert receiver.queue.cache.done == []
    receiver.source.waiting.put(key(2, lambda: None))
    assert settled(receiver) == [("clear",)]
    assert receiver.queue.stats().depth == 0


def test_what_follows_from_a_batch(receive):
    """Rows that have changed are translated, and are applied with the rest."""
    rows = ({"table": "users", "id": 7},)
    receiver = receive(
        Feed(Batch((), rows), Batch()),
        translate=lambda batch: [Invalidation("key", f"user:{row['id']}") for row in batch.changes],
    )
    assert settled(receiver) == [("delete", "user:7")]


def test_listeners_hear_what_is_in_force(receive):
    """The callback gets each batch that brought something, after it was applied."""
    heard: list[Any] = []
    receiver = receive(Feed(), after=lambda batch: heard.append((batch, len(cache.done))))
    cache = receiver.queue.cache
    change = Batch((), ({"table": "t"},))
    for event in (key(1), Batch(), change):
        receiver.source.waiting.put(event)
    settled(receiver)
    assert heard == [(key(1), 1), (change, 1)]


def test_latency_and_silence(receive):
    """Latency is from the sender's clock to ours; silence by our monotonic one."""
    clock = lapse.ManualClock(50.0)
    receiver = receive(Feed(), clock=clock, wall=lambda: 1000.5)
    assert receiver.stats().seconds_since_last_message is None
    receiver.source.waiting.put(key(1, sent_at=1000.0))
    receiver.source.waiting.put(key(2, sent_at=2000.0))
    settled(receiver)
    clock.advance(3.0)
    stats = receiver.stats()
    assert (stats.latency_max, stats.latency_p50) == (0.5, 0.5)
    assert stats.seconds_since_last_message == pytest.approx(3.0)


def test_the_figures_of_the_source(receive):
    """What the source counts is shown with the rest."""
    feed: Any = Feed()
    feed.counts = SourceCounts(messages=9, gaps=1, duplicates=2, echoes=3, poison=4, unknown=5)
    feed.unsent = 6
    stats = receive(feed).stats()
    assert stats[:1] + stats[5:10] == (9, 1, 2, 3, 4, 5)
    assert stats.unsent == 6


# --- Resyncs ---


@pytest.mark.parametrize(
    ("policy", "soft", "done"),
    [
        ("clear", True, [("clear",)]),
        ("soft", True, [("soft", 9.0)]),
        ("soft", False, [("clear",)]),
        (lambda resync: [Invalidation("key", resync.reason)], False, [("delete", "gap")]),
        (lambda resync: None, False, []),
        (lambda resync: 1 / 0, False, [("clear",)]),
        (lambda resync: ["gap"], False, [("clear",)]),
    ],
)
def test_policies(receive, policy, soft, done):
    """A resync does what the policy says, once; if that fails, everything goes."""
    told: list[Alert] = []
    committed: list[int] = []
    receiver = receive(
        Feed(Resync("gap", lambda: committed.append(1))), Foreign(soft), on_resync=policy,
        soft_ttl=9.0, alerts=Alerts(told.append), name="shop",
    )  # fmt: skip
    assert settled(receiver) == done
    assert committed == [1]
    assert receiver.stats().resyncs == {"gap": 1}
    assert [(alert.kind, alert.source, alert.reason) for alert in told] == [
        ("resync", "shop", "gap")
    ]


def test_a_native_cache_is_emptied(receive):
    """A cache of lapse is empty after a resync."""
    cache: Any = lapse.TTLCache(60, cleanup_interval=None)
    cache["a"] = 1
    done = threading.Event()
    receive(Feed(Resync("gap"), Batch(commit=done.set)), cache)
    assert done.wait(PATIENCE)
    assert len(cache) == 0


def test_a_native_cache_is_softened(receive):
    """After a soft resync what a cache of lapse holds is outdated, yet at hand for a while."""
    cache: Any = lapse.TTLCache(60, cleanup_interval=None)
    cache["a"] = 1
    done = threading.Event()
    receive(Feed(Resync("gap"), Batch(commit=done.set)), cache, on_resync="soft")
    assert done.wait(PATIENCE)
    assert "a" not in cache
    assert cache.get_or_load("a", lambda key: 1 / 0) == 1


def test_reasons_are_bounded(receive):
    """However many reasons a source thinks of, those beyond a number count as others."""
    receiver = receive(Feed(*[Resync(f"reason {n}") for n in range(40)]))
    settled(receiver)
    resyncs = receiver.stats().resyncs
    assert (len(resyncs), resyncs["other"], sum(resyncs.values())) == (33, 8, 40)


def test_a_resync_that_fails_stays_owed(receive, caplog):
    """A cache that cannot be cleared is cleared before anything else is applied to it."""
    cache = Foreign()
    cache.failing.append(OSError("down"))
    committed: list[str] = []
    receiver = receive(
        Feed(
            Resync("gap", lambda: committed.append("gap")), key(1, lambda: committed.append("key"))
        ),
        cache,
    )
    assert settled(receiver) == [("clear",), ("delete", 1)]
    assert committed == ["key"]
    stats = receiver.stats()
    assert (stats.errors, stats.resyncs) == (1, {"gap": 1})


def test_a_cache_that_fails_is_resynced(receive):
    """What the cache did not take is made good by a resync, and not committed."""
    cache = Foreign()
    cache.failing.append(OSError("down"))
    committed: list[int] = []
    receiver = receive(Feed(key(1, lambda: committed.append(1)), key(2)), cache)
    assert settled(receiver) == [("clear",), ("delete", 2)]
    assert committed == []
    assert (receiver.stats().errors, receiver.stats().resyncs) == (1, {"failed": 1})


def test_what_fails_behind_a_window_is_a_resync(receive):
    """Nobody is told of an item that fails in the queue later, so everything goes, once."""
    cache = Foreign()
    cache.failing.append(OSError("down"))
    receiver = receive(Feed(key(1), key(2)), cache, window=0.001)
    assert wait_until(lambda: receiver.stats().resyncs == {"failed": 1})
    assert ("clear",) in cache.done
    receiver.source.waiting.put(key(3))
    assert wait_until(lambda: ("delete", 3) in cache.done)
    settled(receiver)
    assert receiver.stats().resyncs == {"failed": 1}


def test_what_fails_behind_a_window_is_not_committed_before_its_resync(receive):
    """A batch that wants to be committed is flushed; if that fails, the resync comes first."""
    cache = Foreign()
    cache.failing.append(OSError("down"))
    committed: list[int] = []
    receiver = receive(Feed(key(1, lambda: committed.append(len(cache.done)))), cache, window=HOUR)
    assert settled(receiver) == [("clear",)]
    assert committed == [1]


def test_a_queue_without_room_is_told():
    """What gives way to something coarser behind a window is an alert, once."""
    told: list[Alert] = []
    events = [key(n) for n in range(5)]
    with OptimizedInvalidation(
        Foreign(), capacity=2, overflow_wait=0.0, batch_timeout=HOUR, start=False
    ) as queue:
        receiver = Receiver(
            Feed(*events), queue, name="test", window=HOUR, alerts=Alerts(told.append)
        )
        receiver.start()
        assert settled(receiver)[0] == ("clear",)
        settled(receiver)
        receiver.close()
        assert len(told) == queue.stats().collapses
    assert {alert.kind for alert in told} == {"full"}


@pytest.mark.parametrize("policy", ["other", None, 3])
def test_unknown_policies(policy):
    """Another policy is refused."""
    with (
        OptimizedInvalidation(Foreign(), start=False) as queue,
        pytest.raises(ValueError, match="on_"),
    ):
        Receiver(Feed(), queue, name="test", on_resync=policy)


# --- Errors ---


def test_callbacks_may_fail(receive, caplog):
    """Listeners, commits and alerts that raise are logged and counted, and nothing dies."""

    def fail(*_: Any) -> None:
        raise KeyError("mine")

    alerts = Alerts([fail, fail])
    receiver = receive(Feed(key(1, fail), Resync("gap", fail), key(2)), after=fail, alerts=alerts)
    assert settled(receiver) == [("delete", 1), ("clear",), ("delete", 2)]
    assert receiver.stats().errors == 4
    assert (alerts.errors, alerts.told) == (2, {"resync": 1})
    assert sum(record.exc_info is not None for record in caplog.records) == 6


def test_a_translation_that_fails_is_a_resync(receive):
    """What a batch means is not known then, so everything goes; it is not committed."""
    committed: list[int] = []
    failing = [KeyError("mine")]

    def translate(batch: Batch) -> list[Invalidation]:
        if failing:
            raise failing.pop()
        return []

    receiver = receive(Feed(key(1, lambda: committed.append(1)), key(2)), translate=translate)
    assert settled(receiver) == [("clear",), ("delete", 2)]
    assert committed == []
    assert receiver.stats().resyncs == {"failed": 1}


@pytest.mark.parametrize("replay", [False, True])
def test_a_source_that_raises(receive, replay):
    """It is iterated anew after a pause, with one resync unless it can replay."""
    told: list[Alert] = []
    feed: Any = Feed(key(1), OSError("down"), key(2))
    feed.replay = replay
    receiver = receive(feed, alerts=Alerts(told.append))
    expected = [("delete", 1), ("delete", 2)]
    if not replay:
        expected.insert(1, ("clear",))
    assert settled(receiver) == expected
    assert feed.iterations == 2
    assert receiver.stats().errors == 1
    assert [alert.kind for alert in told] == ["dead", "resync"][: 1 if replay else 2]


@pytest.mark.parametrize("replay", [False, True])
def test_no_memory_to_tell_what_has_failed(receive, replay, monkeypatch):
    """The thread goes on where not even the log has memory, and the resync stays owed."""
    short = [MemoryError(), MemoryError()]

    def tell(*_: Any, **__: Any) -> None:
        if short:
            raise short.pop()

    log = SimpleNamespace(exception=tell, error=tell, warning=tell)
    monkeypatch.setattr("lapse.invalidation.receiver.log", log)
    cache = Foreign()
    cache.failing.append(OSError("down"))
    feed: Any = Feed(key(1), key(2))
    feed.replay = replay
    receiver = receive(feed, cache)
    assert settled(receiver) == [("clear",), ("delete", 2)]
    assert short == []
    assert receiver.stats().resyncs == {"failed": 1}


def test_a_source_that_ends(receive, caplog):
    """The thread ends as well, and says so."""
    feed: Any = Feed()
    feed.closed = True
    receiver = receive(feed)
    assert wait_until(lambda: not receiver.running)
    assert "source has ended" in caplog.text


# --- The thread ---


def threads_of(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == f"lapse-{name}"]


def test_a_thread_is_had_later(monkeypatch):
    """A thread that was not to be had is started by the next call."""
    with OptimizedInvalidation(Foreign(), start=False) as queue:
        receiver = Receiver(Feed(), queue, name="later")
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError):
                receiver.start()
        receiver.start()
        assert receiver.running
        receiver.close()


def test_one_thread(receive):
    """It is named, a daemon, started once, and ends with close()."""
    receiver = receive(Feed(), name="one")
    receiver.start()
    (thread,) = threads_of("one")
    assert thread.daemon
    assert receiver.running
    began = time.monotonic()
    receiver.close()
    receiver.close()
    assert time.monotonic() - began < SOON
    assert wait_until(lambda: not thread.is_alive())
    assert receiver.source.closed
    with pytest.raises(RuntimeError, match="closed"):
        receiver.start()


def test_a_thread_that_is_not_to_be_had():
    """A forked child says that nothing will come; close() has nothing to wait for."""
    told: list[Alert] = []
    with OptimizedInvalidation(Foreign(), start=False) as queue:
        child = Receiver(Feed(), queue, name="child", alerts=Alerts(told.append))
        child.start()
        with no_thread_to_be_had(), pytest.raises(RuntimeError, match="new thread"):
            child._restart_in_child()
        assert [alert.kind for alert in told] == ["dead"]
        child.close()

        never = Receiver(Feed(), queue, name="never")
        with no_thread_to_be_had(), pytest.raises(RuntimeError, match="new thread"):
            never.start()
        never.close()


@pytest.mark.parametrize(
    "waits", [receivers, batches, endpoint, lazy_walker], ids=lambda m: m.__name__
)
def test_a_close_waits_less_than_a_second(waits):
    """For a thread that does not end, that is: by the wall it is as long as the machine takes."""
    assert 0 < waits.JOIN < 1


def test_close_does_not_wait_for_a_source_that_hangs(receive):
    """A source that does not end in time is left behind."""
    go_on = threading.Event()

    class Hanging(Feed):
        def __iter__(self) -> Iterator[Batch | Resync]:
            go_on.wait(60)
            yield key(1)

    receiver = receive(Hanging(), name="hanging")
    began = time.monotonic()
    receiver.close()
    assert time.monotonic() - began < SOON
    go_on.set()
    assert wait_until(lambda: not threads_of("hanging"))
    assert receiver.queue.cache.done == []


def test_a_receiver_may_be_closed_by_its_own_thread(receive):
    """A listener may close it."""
    receiver = receive(Feed(), after=lambda batch: receiver.close(), name="itself")
    receiver.source.waiting.put(key(1))
    assert wait_until(lambda: not threads_of("itself"))


def test_the_thread_holds_no_receiver(caplog):
    """A receiver that nobody refers to dies; its thread closes the source, says so, and ends."""
    feed = Feed()
    receiver = Receiver(feed, OptimizedInvalidation(Foreign(), start=False), name="dropped")
    receiver.start()
    feed.waiting.put(key(1))
    ref = weakref.ref(receiver)
    del receiver
    gc.collect()
    assert wait_until(lambda: ref() is None and not threads_of("dropped"))
    assert feed.closed
    assert "nobody refers to it" in caplog.text


def test_alerts_go_to_callables():
    """One callable or several; anything else is refused."""
    told: list[Alert] = []
    for callbacks in (told.append, [told.append], (told.append,)):
        Alerts(callbacks).tell(Alert("gap", "shop", "missing", OSError("x")))
    Alerts().tell(Alert("gap", "shop", "missing"))
    assert len(told) == 3
    for wrong in (3, [3]):
        with pytest.raises(TypeError):
            Alerts(wrong)  # type: ignore[arg-type]
