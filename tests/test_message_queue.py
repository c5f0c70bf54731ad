"""MessageQueueInvalidation over queues in memory and foreign ones; fork; the end."""

from __future__ import annotations

import gc
import json
import os
import queue as queues
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

import lapse
from lapse.invalidation import Invalidation
from lapse.invalidation.envelope import parse_bytes
from lapse.invalidation.source import MessagesLost
from lapse.sources.memory import MemoryQueue
from lapse.sources.message_queue import MessageQueueInvalidation
from support import PATIENCE, SOON, in_child, in_child_of_another_thread, run_python, wait_until

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


class Foreign:
    """A queue as the reference has it: receive(timeout) and publish(message), nothing else."""

    def __init__(self) -> None:
        self.coming: queues.Queue[Any] = queues.Queue()
        self.published: list[Any] = []
        self.timeouts: list[float] = []

    def receive(self, timeout: float = 1) -> Any:
        self.timeouts.append(timeout)
        try:
            return self.coming.get(timeout=timeout)
        except queues.Empty:
            return None

    def publish(self, message: Any) -> None:
        self.published.append(message)


def filled() -> Any:
    cache: Any = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many({"user:1": 1, "user:2": 2, "order:1": 3, 7: 4})
    cache.set("page", 5, tags=["red"])
    return cache


@pytest.fixture
def connect() -> Iterator[Callable[..., MessageQueueInvalidation]]:
    """Makes a MessageQueueInvalidation on a filled cache, and closes it."""
    made: list[MessageQueueInvalidation] = []

    def make(queue: Any, **options: Any) -> MessageQueueInvalidation:
        made.append(MessageQueueInvalidation(options.pop("cache", filled()), queue, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


KINDS = [
    ("invalidate_key", {"key": "user:1"}, {"user:1"}),
    ("invalidate_key", {"key": 7}, {7}),
    ("invalidate_pattern", {"pattern": "user:*"}, {"user:1", "user:2"}),
    ("invalidate_table", {"table": "user"}, {"user:1", "user:2"}),
    ("invalidate_tag", {"tag": "red"}, {"page"}),
    ("clear_all", {}, {"user:1", "user:2", "order:1", "page", 7}),
]


@pytest.mark.parametrize(("name", "fields", "gone"), KINDS)
def test_each_type_reaches_every_cache(connect, name, fields, gone):
    """The publisher's cache is true when the call returns, the others' soon after."""
    queue = MemoryQueue()
    first, second, third = connect(queue), connect(queue), connect(queue)
    left = set(first.cache) - gone
    first.publish_invalidation(name, **fields)
    assert set(first.cache) == left
    for other in (second, third):
        assert wait_until(lambda cache=other.cache: set(cache) == left)
        assert other.stats().resyncs == {}
    assert wait_until(lambda: first.stats().echoes >= 1)
    assert first.stats().received == 0


def test_a_batch(connect):
    """Several invalidations at once are applied here and elsewhere."""
    queue = MemoryQueue()
    first, second = connect(queue), connect(queue)
    first.publish([Invalidation("key", "user:1"), Invalidation("tag", "red")])
    assert set(first.cache) == {"user:2", "order:1", 7}
    assert wait_until(lambda: set(second.cache) == {"user:2", "order:1", 7})
    with pytest.raises(TypeError):
        first.publish(["user:1"])


def test_a_publisher_whose_own_cache_fails(connect):
    """It is told so, and the others have heard of it all the same."""

    class Down:
        def delete(self, key: Any) -> bool:
            raise OSError("down")

        def delete_pattern(self, pattern: Any) -> int:
            raise OSError("down")

    queue = MemoryQueue()
    first, second = connect(queue, cache=Down()), connect(queue)
    with pytest.raises(OSError, match="down"):
        first.publish_invalidation("invalidate_key", key="user:1")
    with pytest.raises(OSError, match="down"):
        first.publish([Invalidation("key", "user:2")])
    assert wait_until(lambda: set(second.cache) == {"order:1", "page", 7})


def test_the_reference_dict_is_published(connect, monkeypatch):
    """Type, timestamp and the keywords, in that order, then origin and sequence."""
    monkeypatch.setattr(time, "time", lambda: 5.0)
    queue = Foreign()
    invalidation = connect(queue)
    invalidation.publish_invalidation("invalidate_key", key="user:1", reason="price")
    invalidation.publish_invalidation("product_update", product_id=3)
    origin = invalidation.channel.origin.id
    assert [list(message.items()) for message in queue.published] == [
        [("type", "invalidate_key"), ("timestamp", 5.0), ("key", "user:1"), ("reason", "price"),
         ("origin", origin), ("sequence", 0)],
        [("type", "product_update"), ("timestamp", 5.0), ("product_id", 3),
         ("origin", origin), ("sequence", 1)],
    ]  # fmt: skip


def test_messages_of_a_foreign_queue(connect):
    """Dicts and JSON of whoever publishes them are applied; None and empty ones are nothing."""
    queue = Foreign()
    invalidation = connect(queue)
    for message in (
        None, {}, {"type": "invalidate_key", "key": "user:1", "timestamp": 5.0},
        json.dumps({"type": "invalidate_table", "table": "order"}), {"type": "user_update"},
    ):  # fmt: skip
        queue.coming.put(message)
    assert wait_until(lambda: invalidation.stats().unknown == 1)
    assert set(invalidation.cache) == {"user:2", "page", 7}
    assert invalidation.stats().resyncs == {}
    assert set(queue.timeouts) == {0.5}
    assert queue.published == []


def test_a_stand_in_that_has_every_attribute(connect):
    """A mock is taken for a queue that says nothing of itself."""
    queue = Mock()
    queue.receive.return_value = None
    invalidation = connect(queue)
    invalidation.publish_invalidation("clear_all")
    (message,) = queue.publish.call_args.args
    assert message["type"] == "clear_all"
    assert wait_until(lambda: queue.receive.call_count > 2)
    assert queue.subscribe.called is False
    assert invalidation.stats().resyncs == {}


def test_a_binary_queue_gets_bytes(connect):
    """JSON for one message that fits it, a frame for what does not, and for a batch."""
    queue: Any = Foreign()
    queue.binary = True
    invalidation = connect(queue)
    invalidation.publish_invalidation("invalidate_key", key="a", reason="x")
    invalidation.publish_invalidation("invalidate_key", key=("a", b"b"))
    invalidation.publish([Invalidation("key", n) for n in range(3)])
    assert json.loads(queue.published[0])["reason"] == "x"
    messages = [parse_bytes(data) for data in queue.published]
    assert [[i.target for i in m.invalidations] for m in messages] == [
        ["a"],
        [("a", b"b")],
        [0, 1, 2],
    ]
    assert [message.sequence for message in messages] == [0, 1, 2]
    with pytest.raises(TypeError):
        invalidation.publish_invalidation("mine", value=object())
    assert invalidation.stats().wire_out == sum(map(len, queue.published))


@pytest.mark.parametrize(
    ("name", "fields"),
    [("invalidate_key", {}), ("invalidate_key", {"key": []}), ("invalidate_tag", {"tag": 3}),
     ("heartbeat", {"origin": "o"}), ("ack", {"origin": "o", "of": ["o", 1]}), (7, {})],
)  # fmt: skip
def test_what_cannot_be_published(connect, name, fields):
    """The caller learns of it, and nothing goes out."""
    queue = Foreign()
    with pytest.raises(ValueError):  # noqa: PT011
        connect(queue).publish_invalidation(name, **fields)
    assert queue.published == []


def test_a_queue_that_is_down(connect):
    """Publishing does not raise: the own cache is true, the others hear of it later."""
    told: list[Any] = []

    class Down(Foreign):
        def publish(self, message: Any) -> None:
            if not message.get("sequence") and not told:
                raise OSError("down")
            super().publish(message)

    queue = Down()
    invalidation = connect(queue, on_alert=lambda alert: told.append(alert.kind))
    invalidation.publish_invalidation("invalidate_key", key="user:1")
    assert "user:1" not in invalidation.cache
    assert told == ["publish_failed"]
    assert wait_until(lambda: len(queue.published) == 1)
    assert invalidation.get_stats()["alerts"] == {"publish_failed": 1}


def test_own_messages_are_handed_on(connect):
    """Messages of a type of one's own reach `translate` and `listener`."""
    heard: list[Any] = []
    queue = Foreign()
    invalidation = connect(
        queue,
        translate=lambda batch: [Invalidation("key", m["key"]) for m in batch.changes],
        listener=heard.append,
    )
    queue.coming.put({"type": "user_update", "key": "user:1"})
    assert wait_until(lambda: heard)
    assert "user:1" not in invalidation.cache


def test_start_and_close(connect):
    """The thread starts at once or when asked, and ends with close()."""
    queue = Foreign()
    held = connect(queue, start=False, name="held")
    assert "held" in repr(held)
    assert queue.timeouts == []
    held.start_message_processing()
    held.start_message_processing()
    assert wait_until(lambda: queue.timeouts)
    (thread,) = [each for each in threading.enumerate() if each.name == "lapse-held"]
    with held:
        began = time.monotonic()
    assert time.monotonic() - began < SOON
    assert wait_until(lambda: not thread.is_alive())
    held.close()
    assert "closed" in repr(held)
    with pytest.raises(RuntimeError):
        held.publish_invalidation("clear_all")
    with pytest.raises(RuntimeError):
        held.start_message_processing()
    with pytest.raises(RuntimeError), held:
        pass


def test_the_settings_are_checked():
    """A window below zero and an unknown policy are refused."""
    for options in ({"window": -1.0}, {"on_resync": "other"}):
        with pytest.raises(ValueError, match="must"):
            MessageQueueInvalidation(filled(), MemoryQueue(), **options)


def test_statistics_are_ready_for_json(connect):
    """All figures in one dict."""
    stats = connect(MemoryQueue(), name="shop").get_stats()
    assert json.loads(json.dumps(stats)) == stats
    assert (stats["name"], stats["class"]) == ("shop", "MessageQueueInvalidation")
    assert stats["queue"]["depth"] == 0


def test_dropped(connect):
    """One that nobody refers to any more lets its thread end, and gives its mailbox back."""
    queue = MemoryQueue()
    invalidation = MessageQueueInvalidation(filled(), queue, name="dropped")
    ref = weakref.ref(invalidation)
    del invalidation
    gc.collect()
    names = lambda: [each.name for each in threading.enumerate()]  # noqa: E731
    assert wait_until(lambda: ref() is None and "lapse-dropped" not in names())
    assert wait_until(lambda: not len(queue._boxes))


# --- The queue in memory ---


def test_each_thread_gets_every_message():
    """A thread that receives by itself has a mailbox of its own."""
    queue, ready, got = MemoryQueue(), threading.Barrier(3), []

    def work() -> None:
        queue.receive(timeout=0)
        ready.wait()
        got.append([queue.receive(timeout=PATIENCE), queue.receive(timeout=PATIENCE)])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for each in threads:
        each.start()
    ready.wait()
    for n in range(2):
        queue.publish({"n": n})
    for each in threads:
        each.join()
    assert got == [[{"n": 0}, {"n": 1}]] * 2


def test_what_came_early_waits_for_the_first():
    """What is published before anybody subscribes goes to the first subscriber."""
    queue = MemoryQueue(capacity=2)
    for n in range(2):
        queue.publish(n)
    first, second = queue.subscribe(), queue.subscribe()
    assert [first.receive(0), first.receive(0), first.receive(0)] == [0, 1, None]
    assert second.receive(0) is None
    queue.close()
    assert first.receive(None) is None
    for refused in (queue.subscribe, lambda: queue.publish(1)):
        with pytest.raises(RuntimeError):
            refused()
    with pytest.raises(ValueError, match="capacity"):
        MemoryQueue(0)


def test_an_overflow_is_told():
    """A mailbox that overflows says so once, and goes on with what came since."""
    queue = MemoryQueue(capacity=2)
    for n in range(3):
        queue.publish(n)
    box = queue.subscribe()
    with pytest.raises(MessagesLost):
        box.receive(0)
    for n in range(3, 8):
        queue.publish(n)
    with pytest.raises(MessagesLost, match="overflow"):
        box.receive(0)
    assert [box.receive(0), box.receive(0), box.receive(0)] == [6, 7, None]
    assert len(box) == 0


def test_an_overflow_empties_the_cache(connect):
    """A mailbox that has overflown is a resync, and another when the numbers show it."""
    queue, stuck, go_on = MemoryQueue(capacity=3), threading.Event(), threading.Event()

    def listener(batch: Any) -> None:
        stuck.set()
        assert go_on.wait(60)

    slow, fast = connect(queue, listener=listener), connect(queue)
    fast.publish_invalidation("invalidate_key", key="x")
    assert stuck.wait(PATIENCE)
    for n in range(10):
        fast.publish_invalidation("invalidate_key", key=-n)
    assert len(slow.cache) == 5
    go_on.set()
    assert wait_until(lambda: slow.stats().messages > 1)
    assert len(slow.cache) == 0
    assert wait_until(lambda: slow.stats().resyncs == {"overflow": 1, "gap": 1})


def test_a_mapping_is_copied():
    """What the publisher does to its dict later does not change the message."""
    queue, message = MemoryQueue(), {"n": 1}
    box = queue.subscribe()
    queue.publish(message)
    message["n"] = 2
    assert box.receive(0) == {"n": 1}


def test_the_loss_of_the_last_message_is_noticed(connect):
    """A heartbeat says what should have come."""
    queue = MemoryQueue()
    first, second = connect(queue, heartbeat=0.01), connect(queue)
    assert wait_until(lambda: first.receiver.running)
    box = second.channel._receive.args[0]
    put, dropped = box._put, []

    def drop(message: Any, capacity: int) -> None:
        if message.get("type") == "invalidate_key" and not dropped:
            dropped.append(message)
        else:
            put(message, capacity)

    box._put = drop
    first.publish_invalidation("invalidate_key", key="user:1")
    assert wait_until(lambda: second.stats().resyncs == {"gap": 1})
    assert len(second.cache) == 0


# --- Fork, exit ---


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("locked", [False, True])
def test_a_forked_child_goes_on_by_itself(connect, locked):
    """It has another origin, a thread and locks of its own, and is resynced; the parent is not."""
    queue = MemoryQueue()
    first, second = connect(queue, name="forked"), connect(queue)
    origin = first.channel.origin.id
    first.publish_invalidation("invalidate_key", key="user:1")

    def work() -> None:
        assert wait_until(lambda: first.stats().resyncs == second.stats().resyncs == {"fork": 1})
        assert first.channel.origin.id != origin
        assert len(first.cache) == 0
        assert len([t for t in threading.enumerate() if t.name == "lapse-forked"]) == 1
        second.cache["user:2"] = 1
        first.publish_invalidation("invalidate_key", key="user:2")
        assert wait_until(lambda: "user:2" not in second.cache)
        first.close()

    if locked:  # as by a thread in the midst of something
        with queue._changed, first.channel._outbox._lock, first.receiver._short:
            assert in_child_of_another_thread(work) == 0
    else:
        assert in_child(work) == 0
    assert first.channel.origin.id == origin
    assert len(first.cache) == 4
    first.publish_invalidation("invalidate_key", key="user:2")
    assert wait_until(lambda: "user:2" not in second.cache)
    assert second.stats().resyncs == {}


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_leaves_what_is_held_or_closed(connect):
    """What was not started stays so in the child, what was closed stays closed."""
    held, closed = connect(MemoryQueue(), start=False), connect(MemoryQueue())
    closed.close()

    def work() -> None:
        assert not held.receiver.running
        assert not closed.receiver.running
        assert closed.receiver.closed
        held.start_message_processing()
        assert wait_until(lambda: held.receiver.running)

    assert in_child(work) == 0


def test_the_end_of_the_interpreter():
    """Nothing hangs and nothing is printed; what waits to be published is tried once more."""
    done = run_python(
        """
import lapse, sys
from lapse.sources.message_queue import MessageQueueInvalidation
from lapse.sources.memory import MemoryQueue

class Down(MemoryQueue):
    subscribe = None
    down = True
    def publish(self, message):
        if self.down:
            raise OSError("down")
        print(message["key"])

queue = Down()
kept = MessageQueueInvalidation(lapse.TTLCache(60), queue, on_alert=lambda alert: None)
kept.publish_invalidation("invalidate_key", key="user:1")
queue.down = False
"""
    )
    assert (done.returncode, done.stdout) == (0, "user:1\n")
    assert "Traceback" not in done.stderr
