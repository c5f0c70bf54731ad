"""Broadcast invalidation: what reaches whom, loss and resync, waiting for all, forks."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lapse import TTLCache
from lapse.distributed import broadcast
from lapse.distributed.broadcast import BroadcastInvalidation
from lapse.distributed.inbox import Inbox
from lapse.distributed.local import LocalBroadcaster
from lapse.distributed.memory import MemoryBroadcaster
from lapse.invalidation import Invalidation
from support import SOON, run_python, wait_until

needs_sockets = pytest.mark.skipif(
    not (hasattr(socket, "AF_UNIX") and hasattr(os, "fork")), reason="no Unix sockets or no fork"
)
ITEMS = [Invalidation("key", "a"), Invalidation("key", "b")]
WAIT = 60.0


def full_cache() -> TTLCache[Any, Any]:
    cache: TTLCache[Any, Any] = TTLCache(3600, cleanup_interval=None)
    cache.set_many({"a": 1, "b": 1, "users:1": 1, "users:2:name": 1, "orders:1": 1})
    cache.set("page", 1, tags=["news"])
    return cache


class Slow:
    """A foreign cache whose delete() waits for `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.deleted: list[Any] = []

    def delete(self, key: Any) -> bool:
        assert self.go.wait(2 * WAIT)
        self.deleted.append(key)
        return True

    def delete_pattern(self, pattern: Any) -> int:
        return 0

    def clear(self) -> None:
        self.deleted.append("all")


class FaultyEnd:
    """An end of a MemoryBroadcaster that loses what `loses` says: on the way in or out."""

    ordered = True

    def __init__(self, bus: MemoryBroadcaster):
        self.end = bus.subscribe()
        self.identity = self.end.identity
        self.loses: Callable[[str, Any], bool] = lambda way, message: False
        self.down: Exception | None = None

    def receive(self, timeout: float) -> Any:
        if self.down is not None:
            time.sleep(min(timeout, 0.01))
            raise self.down
        message = self.end.receive(timeout)
        return None if message is None or self.loses("in", message) else message

    def broadcast(self, message: Any) -> None:
        if self.down is not None:
            raise self.down
        if not self.loses("out", message):
            self.end.broadcast(message)

    def members(self) -> Any:
        return self.end.members()


class Plain:
    """A broadcaster as the reference has it: receive() waits, and takes no argument."""

    def __init__(self, others: list[Plain]):
        self.others = others
        others.append(self)
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive(self) -> Any:
        message = self.messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    def broadcast(self, message: Any) -> None:
        for each in self.others:
            each.messages.put(dict(message))


@pytest.fixture
def connect() -> Iterator[Callable[..., BroadcastInvalidation]]:
    """Makes BroadcastInvalidations over full caches, and closes them."""
    made = []

    def make(broadcaster: Any, cache: Any = None, **options: Any) -> BroadcastInvalidation:
        made.append(
            BroadcastInvalidation(full_cache() if cache is None else cache, broadcaster, **options)
        )
        return made[-1]

    yield make
    for each in made:
        if isinstance(each.cache, Slow):
            each.cache.go.set()
        each.close()


@pytest.fixture
def directory() -> Iterator[str]:
    """A folder with a short path, as sockets need."""
    path = tempfile.mkdtemp(prefix="lapse-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["memory", pytest.param("local", marks=needs_sockets)])
def bus(request: pytest.FixtureRequest, directory: str) -> Iterator[Any]:
    """A bus of each kind."""
    if request.param == "memory":
        made: Any = MemoryBroadcaster()
    else:
        made = LocalBroadcaster("bus", directory=directory, patience=WAIT)
    yield made
    made.close()


# --- What reaches whom ---


@pytest.mark.parametrize(
    ("kind", "target", "left"),
    [
        ("key", {"key": "a"}, {"b", "users:1", "users:2:name", "orders:1", "page"}),
        ("pattern", {"pattern": "users:*"}, {"a", "b", "orders:1", "page"}),
        ("table", {"table": "orders"}, {"a", "b", "users:1", "users:2:name", "page"}),
        ("tag", {"tag": "news"}, {"a", "b", "users:1", "users:2:name", "orders:1"}),
        ("all", {}, set()),
    ],
)
def test_every_cache_loses_it(kind, target, left, bus, connect):
    """Each kind goes here at once, and everywhere soon."""
    first, second, third = connect(bus), connect(bus), connect(bus)
    first.broadcast_invalidation(kind, **target)
    assert set(first.cache) == left
    assert wait_until(lambda: set(second.cache) == set(third.cache) == left)
    assert second.stats().received == 1


def test_a_batch(bus, connect):
    """A batch goes everywhere, whatever types its keys have."""
    first, second = connect(bus), connect(bus)
    keys = [b"bytes", ("cart", 7), 7, None, True, 0.5]
    second.cache.set_many(dict.fromkeys(keys, 1))
    first.broadcast([Invalidation("key", key) for key in keys], wait=True, timeout=WAIT)
    assert not set(second.cache) & set(keys)


def test_a_sender_whose_own_cache_fails(bus, connect):
    """It is told so, once the others have it in force."""

    class Down:
        def delete(self, key: Any) -> bool:
            raise OSError("down")

        def delete_pattern(self, pattern: Any) -> int:
            raise OSError("down")

    first, second = connect(bus, Down()), connect(bus)
    with pytest.raises(OSError, match="down"):
        first.broadcast_invalidation("key", key="a", wait=True, timeout=WAIT)
    assert "a" not in second.cache


def test_keys_that_json_does_not_have(bus, connect):
    """broadcast_invalidation() takes bytes and tuples, too."""
    first, second = connect(bus), connect(bus)
    second.cache[("cart", 7)] = second.cache[b"raw"] = 1
    first.broadcast_invalidation("key", key=("cart", 7), wait=True, timeout=WAIT)
    first.broadcast_invalidation("key", key=b"raw", wait=True, timeout=WAIT)
    assert not set(second.cache) & {("cart", 7), b"raw"}


def test_the_message_is_the_references():
    """It has the reference's fields, and ours beside them; extra fields travel."""
    bus = MemoryBroadcaster()
    reader, before = bus.subscribe(), time.time()
    with BroadcastInvalidation(full_cache(), bus) as news:
        news.broadcast_invalidation("key", key="a", reason="sold out")
        message = reader.receive(WAIT)
    assert before <= message.pop("timestamp") <= time.time()
    assert message == {
        "type": "invalidation", "invalidation_type": "key", "key": "a", "reason": "sold out",
        "origin": news.channel.origin.id, "sequence": 0,
    }  # fmt: skip


def test_what_the_reference_sends_is_understood(connect):
    """A message without origin and sequence is applied, and causes no resync."""
    bus = MemoryBroadcaster()
    news = connect(bus)
    for target in ({"key": "a"}, {"pattern": "users:*"}, {"table": "orders"}):
        bus.broadcast({"type": "invalidation", "invalidation_type": next(iter(target)), **target})
    assert wait_until(lambda: set(news.cache) == {"b", "page"})
    assert news.stats().resyncs == {}


def test_no_echo(connect):
    """An own message that comes back does not remove what was stored since."""
    bus = MemoryBroadcaster()
    news = connect(bus)
    news.broadcast_invalidation("key", key="a")
    news.cache["a"] = 2
    assert wait_until(lambda: news.stats().echoes >= 1)
    news.queue.flush()
    assert news.cache["a"] == 2


def test_no_loop(bus, connect):
    """What comes from the bus is applied and not sent on, however many listen."""
    members = [connect(bus) for _ in range(4)]
    members[0].broadcast_invalidation("key", key="a", wait=True, timeout=WAIT)
    members[0].broadcast(ITEMS, wait=True, timeout=WAIT)
    assert [each.stats().published > 0 for each in members] == [True, False, False, False]
    assert [each.stats().received for each in members[1:]] == [3, 3, 3]


def test_what_cannot_be_sent(connect):
    """Messages without a target, of no type and of types of ours raise, and nothing is sent."""
    bus = MemoryBroadcaster()
    news, reader = connect(bus, heartbeat=None), bus.subscribe()
    for call in (
        lambda: news.broadcast_invalidation("key"),
        lambda: news.broadcast_invalidation("pattern", pattern=7),
        lambda: news.broadcast_invalidation("key", key=object()),
        lambda: news.broadcast_invalidation("key", type="heartbeat", origin="o"),
        lambda: news.broadcast_invalidation(None),
    ):
        with pytest.raises(ValueError):  # noqa: PT011  each has words of its own
            call()
    for call in (lambda: news.broadcast(["a"]), lambda: news.broadcast([Invalidation("key", {})])):
        with pytest.raises(TypeError):
            call()
    assert reader.receive(0) is None
    assert len(news.cache) == 6


def test_a_type_of_ones_own(connect):
    """It reaches the listeners of the others, and translate() may say what it means."""
    bus, seen = MemoryBroadcaster(), []
    first = connect(bus)
    second = connect(
        bus,
        listener=lambda batch: seen.extend(each["user"] for each in batch.changes),
        translate=lambda batch: [Invalidation("key", "a")] if batch.changes else [],
    )
    first.broadcast_invalidation("user_left", user=7)
    assert wait_until(lambda: seen == [7])
    assert "a" not in second.cache
    assert len(first.cache) == 6


# --- Loss ---


def test_a_gap_is_one_resync(connect):
    """A message that is missing empties the cache once, when the next one comes."""
    bus = MemoryBroadcaster()
    first, end = connect(bus, heartbeat=None), FaultyEnd(bus)
    second = connect(end, heartbeat=None)
    end.loses = lambda way, message: message.get("key") in (2, 3)
    for number in range(6):
        first.broadcast_invalidation("key", key=number)
        assert wait_until(lambda number=number: len(end.end) == 0)
        second.receiver.queue.flush()
    assert wait_until(lambda: second.stats().messages == 4)
    assert wait_until(lambda: second.stats().resyncs == {"gap": 1})
    assert second.stats().gaps == 1
    assert wait_until(lambda: second.alerts.told == {"gap": 1, "resync": 1})
    assert len(second.cache) == 0


def test_the_loss_of_the_last_message_is_noticed(connect):
    """The next heartbeat reveals it: one resync, however many heartbeats follow."""
    bus = MemoryBroadcaster()
    first, end = connect(bus, heartbeat=0.02), FaultyEnd(bus)
    second = connect(end, heartbeat=None)
    end.loses = lambda way, message: way == "in" and message["type"] == "invalidation"
    first.broadcast_invalidation("key", key="a")
    assert wait_until(lambda: second.stats().resyncs)
    before = second.stats().messages
    assert wait_until(lambda: second.stats().messages > before + 3)
    assert second.stats().resyncs == {"gap": 1}
    assert len(second.cache) == 0


def test_second_copies_change_nothing(connect):
    """A message that is delivered twice is applied once."""
    bus = MemoryBroadcaster()
    reader, news = bus.subscribe(), connect(bus)
    connect(bus).broadcast_invalidation("key", key="a")
    message = reader.receive(WAIT)
    assert wait_until(lambda: "a" not in news.cache)
    news.cache["a"] = 2
    bus.broadcast(message)
    assert wait_until(lambda: news.stats().duplicates == 1)
    assert news.cache["a"] == 2


def test_a_member_that_falls_behind_is_resynced(connect):
    """An inbox that overflows while the cache is slow ends in a resync, not in one a message.

    A second one follows when the sender's next number shows that some are missing.
    """
    bus, slow = MemoryBroadcaster(capacity=3), Slow()
    first, second = connect(bus, heartbeat=None), connect(bus, slow, heartbeat=None)
    for number in range(10):
        first.broadcast_invalidation("key", key=number)
        assert wait_until(lambda: second.stats().messages == 1)
    slow.go.set()
    assert wait_until(lambda: slow.deleted[-1:] == [9])  # the inbox is empty
    first.broadcast_invalidation("key", key="last")
    assert wait_until(lambda: slow.deleted[-1:] == ["last"])
    assert second.stats().resyncs == {"overflow": 1, "gap": 1}


@pytest.mark.parametrize("message", [{"type": "invalidation"}, b"\xc1LP\x09", "{", b"\x00"])
def test_poison_is_a_resync(message, bus, connect):
    """What cannot be read may have been an invalidation: the cache is emptied, and goes on."""
    if isinstance(bus, LocalBroadcaster):
        sender = LocalBroadcaster("bus", directory=bus._options["directory"])
    else:
        sender = bus
    news = connect(bus)
    sender.broadcast(message)
    assert wait_until(lambda: news.stats().resyncs == {"poison": 1})
    sender.broadcast({"type": "invalidation", "invalidation_type": "key", "key": "a"})
    assert wait_until(lambda: news.stats().received == 1)
    assert len(news.cache) == 0
    sender.close()


def test_a_broadcaster_that_was_down(connect):
    """What was to be sent is sent later; what was missed is a resync."""
    bus = MemoryBroadcaster()
    first, end = connect(bus), FaultyEnd(bus)
    second = connect(end, heartbeat=0.02)
    end.down = OSError("down")
    second.broadcast_invalidation("key", key="a")
    assert second.stats().unsent == 1
    assert wait_until(lambda: second.alerts.told["dead"] == 1)
    assert "a" in first.cache
    end.down = None
    assert wait_until(lambda: "a" not in first.cache)
    assert wait_until(lambda: second.stats().resyncs == {"reconnected": 1})


# --- Waiting for all ---


def test_waiting_returns_when_it_is_in_force_everywhere(bus, connect):
    """After wait=True no other cache has it any more, time after time."""
    members = [connect(bus) for _ in range(4)]
    for number in range(50):
        for each in members:
            each.cache[number] = 1
        members[number % 4].broadcast_invalidation("key", key=number, wait=True, timeout=WAIT)
        assert not any(number in each.cache for each in members)


def test_waiting_does_not_return_before(bus, connect):
    """While one cache is busy with it, the call waits for that one."""
    slow, done = Slow(), threading.Event()
    first, _, third = connect(bus), connect(bus), connect(bus, slow)

    def broadcast() -> None:
        first.broadcast(ITEMS, wait=True, timeout=WAIT)
        done.set()

    thread = threading.Thread(target=broadcast)
    thread.start()
    assert wait_until(lambda: third.stats().messages >= 1)
    assert not done.wait(0.05)
    slow.go.set()
    assert done.wait(WAIT)
    assert slow.deleted == ["a", "b"]
    thread.join()


def test_who_does_not_answer_in_time(bus, connect):
    """TimeoutError says how many have not confirmed; what the others have applied stays so."""
    slow = Slow()
    first, second, third = connect(bus), connect(bus), connect(bus, slow)
    with pytest.raises(TimeoutError, match=r"[12] of 2 members have not confirmed within 0\.2 s"):
        first.broadcast_invalidation("key", key="a", wait=True, timeout=0.2)
    assert "a" not in first.cache
    assert wait_until(lambda: "a" not in second.cache)
    slow.go.set()
    first.broadcast_invalidation("key", key="b", wait=True, timeout=WAIT)
    assert slow.deleted == ["a", "b"]
    assert third.stats().resyncs == {}


def test_a_complaint_tells_the_missing_from_the_members():
    """So many of so many, and who they are."""
    said = broadcast._complaint(frozenset("b"), frozenset("ab"), 1, 0.2)
    assert said == "1 of 2 members have not confirmed within 0.2 s: b"


def test_who_leaves_is_not_waited_for(bus, connect):
    """A member that is closed while others wait for it does not hold them up."""
    slow, done = Slow(), threading.Event()
    first, second = connect(bus), connect(bus, slow)

    def broadcast() -> None:
        first.broadcast_invalidation("key", key="a", wait=True, timeout=WAIT)
        done.set()

    thread = threading.Thread(target=broadcast)
    thread.start()
    assert wait_until(lambda: second.stats().messages >= 1)
    assert not done.wait(0.05)
    second.channel.close()
    assert done.wait(WAIT / 2)
    thread.join()


def test_nobody_to_wait_for(bus, connect):
    """Alone on the bus, or with nothing to send, waiting ends at once."""
    first = connect(bus)
    first.broadcast_invalidation("key", key="a", wait=True, timeout=0.0)
    connect(bus, start=False)
    first.broadcast([], wait=True, timeout=0.0)


def test_a_batch_of_ten_thousand_keys_is_waited_for(bus, connect):
    """It goes in as many messages as the bus needs, and all of it is in force."""
    first, second = connect(bus), connect(bus)
    keys = [f"key:{n}:{n * 7919 % 10007}" for n in range(10_000)]
    for each in (first, second):
        each.cache.set_many(dict.fromkeys(keys, 1))
    first.broadcast([Invalidation("key", key) for key in keys], wait=True, timeout=WAIT)
    assert len(first.cache) == len(second.cache) == 6
    assert second.stats().resyncs == {}


@pytest.mark.parametrize("way", ["in", "out"])
@pytest.mark.parametrize("what", ["heartbeat", "ack", "invalidation"])
def test_what_is_lost_on_the_way_is_asked_for_again(what, way, connect):
    """A lost question or answer is repeated; a lost invalidation is resynced before the answer."""
    bus, lost = MemoryBroadcaster(), []
    first, end = FaultyEnd(bus), FaultyEnd(bus)
    first_news, second = connect(first, heartbeat=None), connect(end, heartbeat=None)

    def loses(to: str, message: Any) -> bool:
        if to == way and message["type"] == what and len(lost) < 1:
            lost.append(message)
            return True
        return False

    end.loses = loses if (what, way) != ("ack", "in") else end.loses
    first.loses = loses if (what, way) == ("ack", "in") or way == "out" else first.loses
    first_news.broadcast_invalidation("key", key="a", wait=True, timeout=WAIT)
    assert "a" not in second.cache
    assert len(lost) == 1
    assert second.stats().resyncs == ({"gap": 1} if what == "invalidation" else {})


def test_waiting_while_the_broadcaster_is_down(connect):
    """It ends by TimeoutError, or when the broadcaster is up again and all have confirmed."""
    bus = MemoryBroadcaster()
    end, second = FaultyEnd(bus), connect(bus)
    first = connect(end)
    end.down = OSError("down")
    with pytest.raises(TimeoutError, match="broadcaster is down"):
        first.broadcast_invalidation("key", key="a", wait=True, timeout=0.1)
    threading.Timer(0.1, lambda: setattr(end, "down", None)).start()
    first.broadcast_invalidation("key", key="b", wait=True, timeout=WAIT)
    assert not {"a", "b"} & set(second.cache)


def test_where_waiting_makes_no_sense(connect):
    """It is refused within the receiver's callbacks, before the start, where nobody is known."""
    bus, found = MemoryBroadcaster(), []
    first, held = connect(bus), connect(bus, start=False)

    def wait_for_myself(batch: Any) -> None:
        with pytest.raises(RuntimeError, match="callback"):
            second.broadcast_invalidation("key", key="b", wait=True, timeout=WAIT)
        found.append(len(second.cache))

    held.close()
    second = connect(bus, listener=wait_for_myself)
    first.broadcast_invalidation("key", key="a", wait=True, timeout=WAIT)
    assert wait_until(lambda: found == [5])
    with pytest.raises(RuntimeError, match="does not receive"):
        connect(bus, start=False).broadcast(ITEMS, wait=True, timeout=WAIT)
    plain = connect(Plain([]))
    with pytest.raises(ValueError, match="heartbeat="):
        plain.broadcast(ITEMS, wait=True, timeout=WAIT)
    assert len(plain.cache) == 6


def test_many_that_wait_for_each_other(bus, connect):
    """Threads of several members that all broadcast and wait at once do not block each other."""
    members = [connect(bus) for _ in range(3)]
    errors = []

    def work(news: BroadcastInvalidation, thread: int) -> None:
        try:
            for number in range(10):
                news.broadcast_invalidation("key", key=(thread, number), wait=True, timeout=WAIT)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(each, n)) for each in members for n in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    assert [each.stats().received for each in members] == [60, 60, 60]
    assert [each.stats().resyncs for each in members] == [{}, {}, {}]


# --- Broadcasters of others ---


def test_a_broadcaster_as_the_reference_has_it(connect):
    """receive() without arguments, which waits: all arrives, and closing takes no time."""
    others: list[Plain] = []
    first, second = connect(Plain(others)), connect(Plain(others))
    first.broadcast_invalidation("key", key="a")
    assert wait_until(lambda: "a" not in second.cache)
    assert wait_until(lambda: first.stats().echoes >= 1)
    began = time.monotonic()
    second.close()
    assert time.monotonic() - began < SOON
    assert all(message["type"] == "invalidation" for message in drained(others))


def drained(others: list[Plain]) -> list[Any]:
    found = []
    for each in others:
        while not each.messages.empty():
            found.append(each.messages.get())
    return found


def test_a_thread_of_such_a_broadcaster_that_dies(connect, monkeypatch):
    """Another one takes its place, and the cache is resynced."""
    others: list[Plain] = []
    news, other = connect(Plain(others)), Plain(others)
    put, short = Inbox.put, [MemoryError(), MemoryError()]

    def fail(inbox: Any, message: Any, size: int = 0) -> bool:
        if short:
            raise short.pop()
        return put(inbox, message, size)

    monkeypatch.setattr(Inbox, "put", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    other.broadcast({"type": "invalidation", "invalidation_type": "key", "key": "a"})
    assert wait_until(lambda: news.stats().resyncs == {"restarted": 1})
    news.cache["b"] = 1
    other.broadcast({"type": "invalidation", "invalidation_type": "key", "key": "b"})
    assert wait_until(lambda: "b" not in news.cache)


def test_a_broadcaster_that_answers_at_once(connect):
    """receive() that does not wait, and answers None, is asked again and again."""
    messages: list[Any] = []

    class Polled:
        def receive(self) -> Any:
            return messages.pop() if messages else None

        def broadcast(self, message: Any) -> None:
            messages.append(message)

    news = connect(Polled())
    messages.append({"type": "invalidation", "invalidation_type": "key", "key": "a"})
    assert wait_until(lambda: "a" not in news.cache)


def test_a_foreign_broadcaster_that_raises(connect):
    """What receive() raises is told of, and resynced; the thread goes on."""
    plain = Plain([])
    news = connect(plain)
    plain.messages.put(OSError("gone"))
    assert wait_until(lambda: news.stats().resyncs == {"reconnected": 1})
    assert news.alerts.told["dead"] == 1
    plain.broadcast({"type": "invalidation", "invalidation_type": "key", "key": "a"})
    assert wait_until(lambda: news.stats().received == 1)


def test_members_that_are_known_by_their_heartbeats(connect, monkeypatch):
    """Without members(), whoever was heard of within the window is waited for."""
    monkeypatch.setattr(broadcast, "WINDOW", 1000)
    others: list[Plain] = []
    slow = Slow()
    first, second = (connect(Plain(others), heartbeat=0.02) for _ in range(2))
    third = connect(Plain(others), slow, heartbeat=0.02)
    assert wait_until(lambda: len(first.members()) == 2)
    with pytest.raises(TimeoutError, match=r"[12] of 2 members"):
        first.broadcast_invalidation("key", key="a", wait=True, timeout=0.3)
    assert wait_until(lambda: "a" not in second.cache)
    slow.go.set()
    first.broadcast_invalidation("key", key="b", wait=True, timeout=WAIT)
    assert slow.deleted == ["a", "b"]
    assert first.members() == {second.channel.origin.id, third.channel.origin.id}


def test_a_member_that_is_not_heard_of_any_more(connect):
    """Without members(), who is silent for three heartbeats has left, also while others wait."""
    others: list[Plain] = []
    first, second = (connect(Plain(others), heartbeat=0.05) for _ in range(2))
    assert wait_until(lambda: first.members() == {second.channel.origin.id})
    second.close()
    first.broadcast_invalidation("key", key="a", wait=True, timeout=WAIT)
    assert wait_until(lambda: first.members() == frozenset())


def test_who_has_just_come_waits_for_those_who_were_there(connect, monkeypatch):
    """A member that has not heard of anybody yet listens first, for one and a half heartbeats."""
    monkeypatch.setattr(broadcast, "WINDOW", 1000)

    paused: list[float] = []

    class Time:  # a pause lasts until the other one was heard of
        time, monotonic = time.time, time.monotonic

        @staticmethod
        def sleep(seconds: float) -> None:
            paused.append(seconds)
            assert wait_until(news.members)

    monkeypatch.setattr(broadcast, "time", Time)
    others: list[Plain] = []
    there = connect(Plain(others), Slow(), heartbeat=0.1)
    assert wait_until(lambda: there.stats().echoes >= 1)
    news = connect(Plain(others), heartbeat=1000)
    with pytest.raises(TimeoutError, match="1 of 1"):
        news.broadcast_invalidation("key", key="a", wait=True, timeout=2)
    assert paused[0] > 0


def test_liveness_where_nothing_comes_back(connect, directory):
    """A bus that does not bring own messages back cannot be watched by them."""
    bus = LocalBroadcaster("bus", directory=directory)
    with pytest.raises(ValueError, match="own messages"):
        connect(bus, liveness=1.0)
    bus.close()


# --- The end, and forks ---


def test_closing(bus, connect):
    """A closed one receives nothing, sends nothing, and is no member; the bus stays."""
    first, second = connect(bus), connect(bus)
    began = time.monotonic()
    second.close()
    assert time.monotonic() - began < SOON
    assert first.members() == frozenset()
    with pytest.raises(RuntimeError, match="closed"):
        second.broadcast_invalidation("key", key="a")
    first.broadcast_invalidation("key", key="a", wait=True, timeout=WAIT)
    assert "a" in second.cache
    assert not bus.closed
    assert repr(second) == "BroadcastInvalidation('broadcast', closed)"


def test_held_until_started(bus, connect):
    """With start=False nothing is received before start_message_listening(), nor lost."""
    first, second = connect(bus), connect(bus, start=False)
    first.broadcast_invalidation("key", key="a")
    assert not second.receiver.running
    assert "a" in second.cache
    second.start_message_listening()
    assert wait_until(lambda: "a" not in second.cache)


@needs_sockets
def test_the_end_of_the_interpreter(directory):
    """A process that ends without close() says nothing, and leaves nothing behind."""
    code = f"""
from lapse import TTLCache
from lapse.distributed.broadcast import BroadcastInvalidation
from lapse.distributed.local import LocalBroadcaster
bus = LocalBroadcaster("bus", directory={directory!r})
news = [BroadcastInvalidation(TTLCache(60), bus) for _ in range(3)]
news[0].broadcast_invalidation("key", key="a", wait=True, timeout={WAIT})
"""
    ended = run_python(code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert os.listdir(next(Path(directory).iterdir())) == []


@needs_sockets
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_another_member(directory, connect):
    """It has an origin of its own and an empty cache, hears the others, and is waited for."""
    with LocalBroadcaster("bus", directory=directory) as bus:
        first, second = connect(bus), connect(bus)
        first.broadcast_invalidation("key", key="before", wait=True, timeout=WAIT)
        parents = first.members()
        assert not first._confirmations.missing(parents, 0)
        assert wait_until(lambda: nothing_waits(first) and nothing_waits(second))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            signal.alarm(100)
            try:
                code = 14
                if first._confirmations.missing(parents, 0) == parents:
                    code = in_the_child(first, second, writing)
            finally:
                os._exit(code)
        os.close(writing)
        assert os.read(reading, 1) == b"r"
        assert len(second.members()) == 2
        assert set(first.cache) == set(full_cache())
        second.broadcast_invalidation("key", key="mine", wait=True, timeout=WAIT)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert wait_until(lambda: "b" not in first.cache and "b" not in second.cache)
        assert first.stats().resyncs == second.stats().resyncs == {}
        os.close(reading)


def nothing_waits(member: Any) -> bool:
    """Is nothing in its inbox or its reader's hands? A child would resync once more for that."""
    return member._end.stats().waiting == 0 and not member._end._inbox._reading


def in_the_child(first: Any, second: Any, writing: int) -> int:
    """0 if all is as it should be."""
    origins = {first.channel.origin.id, second.channel.origin.id}
    if len(origins) != 2 or not all(f"/{os.getpid()}/" in each for each in origins):
        return 10
    if not wait_until(
        lambda: all(b.stats().resyncs.get("fork") == 1 for b in (first, second)), WAIT
    ):
        return 11
    if len(first.cache) or len(second.cache):
        return 12
    first.cache["mine"] = second.cache["mine"] = 1
    second.close()
    os.write(writing, b"r")
    if not wait_until(lambda: "mine" not in first.cache, WAIT):
        return 13
    first.broadcast_invalidation("key", key="b", wait=True, timeout=WAIT)
    first.close()
    return 0


@needs_sockets
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_member_that_is_killed_or_stopped(number, directory, connect):
    """Who is killed while others wait is not waited for; who is stopped is a TimeoutError."""
    with LocalBroadcaster("bus", directory=directory) as bus:
        child = os.fork()
        if child == 0:
            try:
                slow = Slow()
                news = BroadcastInvalidation(slow, bus)
                slow.go.wait(60)
            finally:
                os._exit(0)
        news = connect(bus)
        assert wait_until(lambda: len(news.members()) == 1)
        try:
            if number == signal.SIGKILL:
                threading.Timer(0.2, lambda: os.kill(child, number)).start()
                news.broadcast_invalidation("key", key="a", wait=True, timeout=WAIT)
                assert news.members() == frozenset()
            else:
                os.kill(child, number)
                os.waitpid(child, os.WUNTRACED)
                with pytest.raises(TimeoutError, match="1 of 1"):
                    news.broadcast_invalidation("key", key="a", wait=True, timeout=0.3)
            assert "a" not in news.cache
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
