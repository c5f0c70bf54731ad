"""The bus within one process: who gets what, in which order, and who falls behind."""

from __future__ import annotations

import gc
import threading

import pytest

from lapse.distributed.memory import MemoryBroadcaster, MessagesLost
from support import PATIENCE, wait_until


def test_every_subscriber_gets_every_message():
    """Each end gets all messages since it subscribed, its own among them, in one order."""
    bus = MemoryBroadcaster()
    first = bus.subscribe()
    bus.broadcast({"number": 0})
    second = bus.subscribe()
    for number, sender in enumerate([first, second, bus, first], 1):
        sender.broadcast({"number": number})
    assert [first.receive(0)["number"] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert [second.receive(0)["number"] for _ in range(4)] == [1, 2, 3, 4]
    assert first.receive(0) is second.receive(0) is None


def test_threads_that_send_at_once():
    """Whatever threads send at once, all ends see it in the same order, and miss nothing."""
    bus = MemoryBroadcaster()
    ends = [bus.subscribe() for _ in range(3)]
    threads = [
        threading.Thread(target=lambda n=n: [bus.broadcast({"n": (n, i)}) for i in range(500)])
        for n in range(4)
    ]
    for each in threads:
        each.start()
    found = [[end.receive(PATIENCE)["n"] for _ in range(2000)] for end in ends]
    for each in threads:
        each.join()
    assert found[0] == found[1] == found[2]
    assert [[i for n, i in found[0] if n == thread] for thread in range(4)] == [
        list(range(500))
    ] * 4


def test_a_message_is_copied_once():
    """What the sender does to its mapping later does not show; bytes and str pass as they are."""
    bus = MemoryBroadcaster()
    end, message = bus.subscribe(), {"number": 1}
    bus.broadcast(message)
    message["number"] = 2
    bus.broadcast(b"bytes")
    bus.broadcast("text")
    assert [end.receive(0) for _ in range(3)] == [{"number": 1}, b"bytes", "text"]


def test_the_bus_itself_receives():
    """A thread that receives from the bus itself has an end of its own."""
    bus = MemoryBroadcaster()
    bus.broadcast({"early": True})
    assert bus.receive() == {"early": True}
    end = bus.subscribe()
    bus.broadcast({"both": True})
    assert bus.receive() == end.receive() == {"both": True}
    assert bus.receive(0.001) is None


def test_an_end_that_falls_behind_is_told():
    """Too many messages for an end are lost to it alone; it learns so once, and goes on."""
    bus = MemoryBroadcaster(capacity=3)
    slow, quick = bus.subscribe(), bus.subscribe()
    for number in range(5):
        bus.broadcast({"number": number})
        assert quick.receive(0) == {"number": number}
    with pytest.raises(MessagesLost):
        slow.receive(0)
    bus.broadcast({"number": 5})
    found = [slow.receive(0), slow.receive(0), slow.receive(0)]
    assert {"number": 5} in found
    assert len(slow) == 0


def test_members():
    """The open ends know each other, but do not count themselves; who is gone is no member."""
    bus = MemoryBroadcaster()
    first, second, third = (bus.subscribe() for _ in range(3))
    assert bus.members() == {first.identity, second.identity, third.identity}
    assert first.members() == {second.identity, third.identity}
    second.close()
    assert first.members() == {third.identity}
    del third
    gc.collect()
    assert first.members() == frozenset()
    with bus.subscribe() as fourth:
        assert first.members() == {fourth.identity}
    assert bus.members() == {first.identity}


def test_closing_an_end():
    """A closed end gets nothing, wakes who waits, and sends nothing; the others go on."""
    bus, woken = MemoryBroadcaster(), []
    end, other = bus.subscribe(), bus.subscribe()
    waiting = threading.Thread(target=lambda: woken.append(end.receive()))
    waiting.start()
    end.close()
    end.close()
    waiting.join(PATIENCE)
    assert woken == [None]
    with pytest.raises(RuntimeError, match="closed"):
        end.broadcast({})
    bus.broadcast({})
    assert other.receive(0) == {}
    assert end.receive(0) is None


def test_closing_the_bus():
    """A closed bus closes its ends."""
    with MemoryBroadcaster() as bus:
        end = bus.subscribe()
    assert bus.closed
    assert end.closed
    assert bus.members() == frozenset()
    for call in (bus.subscribe, lambda: bus.broadcast({}), lambda: end.broadcast({})):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_an_end_that_nobody_refers_to():
    """It takes no more messages."""
    bus = MemoryBroadcaster()
    end = bus.subscribe()
    bus.broadcast({})
    del end
    gc.collect()
    assert wait_until(lambda: not bus.members())
    assert len(bus._fanout._boxes) == 0


def test_capacity():
    """A bus that could hold nothing is refused."""
    with pytest.raises(ValueError, match="capacity"):
        MemoryBroadcaster(capacity=0)
