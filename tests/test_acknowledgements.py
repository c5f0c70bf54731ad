"""Acknowledgements: channels among members, receivers with a window, who has not confirmed."""

from __future__ import annotations

import threading

import pytest

from channel_support import Played, key
from lapse import ManualClock, TTLCache
from lapse.distributed.confirmations import MOST, Confirmations
from lapse.distributed.inbox import Inbox
from lapse.distributed.pump import Pump
from lapse.invalidation import Invalidation, OptimizedInvalidation
from lapse.invalidation.message import MessageError, parse
from lapse.invalidation.receiver import Receiver
from lapse.invalidation.source import Batch
from support import PATIENCE, wait_until

ITEM = Invalidation("key", "a")

# --- Channels ---


def test_a_question_names_the_member_that_asks():
    """The answer goes to that member alone, where that is possible, and names who answers."""
    asking = Played(member=lambda: "m-1")
    asking.channel.publish([ITEM], ack=True)
    question = asking.script.sent[-1]
    assert question["member"] == "m-1"
    alone: list = []
    answering = Played(
        *asking.script.sent, member=lambda: "m-2", send_to=lambda *args: alone.append(args)
    )
    for event in answering.events():
        if event.commit:
            event.commit()
    ack = {"type": "ack", "origin": answering.origin, "of": [asking.origin, 0], "member": "m-2"}
    assert alone == [("m-1", ack)]
    assert answering.script.sent == []


def test_an_answer_for_everybody():
    """Without send_to, or where the question names no member, everybody gets the answer."""
    for options in ({"member": lambda: None, "send_to": lambda *_: 1 / 0}, {}):
        asking = Played(**options)
        asking.channel.publish([ITEM], ack=True)
        assert "member" not in asking.script.sent[-1]
        answering = Played(*asking.script.sent, **options)
        for event in answering.events():
            if event.commit:
                event.commit()
        assert [each["type"] for each in answering.script.sent] == ["ack"]


def test_an_answer_is_known_by_its_member():
    """on_ack is told the name of the member, or the origin of one that has no name."""
    found: list = []
    played = Played(on_ack=lambda *args: found.append(args))
    ack = {"type": "ack", "origin": "o", "of": [played.origin, 4]}
    played.script.coming.extend([{**ack, "member": "m-2"}, ack])
    played.events()
    assert found == [("m-2", 4), ("o", 4)]


def test_no_answer_while_something_may_still_come():
    """On a transport without order a question that overtakes a message is not answered."""
    ask = {"type": "heartbeat", "origin": "o", "sequence": 1, "ack": True}
    played = Played(key(0, "o", 0), ask, key(1, "o", 1), ask, ordered=False)
    commits = []
    for event in played.channel:
        commits.append(event.commit is not None)
        if not played.script.coming:
            played.channel.close()
    assert commits == [False, False, False, True]


def test_others_are_heard():
    """on_heard is told of every message of another origin, and of no own one."""
    heard: list = []
    played = Played(on_heard=heard.append)
    beat = {"type": "heartbeat", "origin": "b"}
    ack = {"type": "ack", "origin": "c", "of": ["x", 0]}
    played.script.coming.extend([key(1, "a", 0), beat, ack, key(2, played.origin, 0), key(3)])
    played.events()
    assert heard == ["a", "b", "c"]


def test_a_callback_that_fails_is_logged(caplog):
    """What on_heard raises does not stop the channel."""
    played = Played(key(1, "o", 0), on_heard=lambda _: 1 / 0)
    assert played.summary() == [1]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("announce", "count"), [(True, 1), (False, 0)])
def test_announcing(announce, count):
    """With `announce` the first heartbeat goes out before anything was published."""
    played = Played(None, announce=announce, heartbeat=1.0)
    played.events()
    assert [each["type"] for each in played.script.sent] == ["heartbeat"] * count


@pytest.mark.parametrize("member", [7, b"m", "m" * 257, ["m"]])
@pytest.mark.parametrize("of", [None, ["o", 1]])
def test_a_name_that_is_none(member, of):
    """A member's name that is no short str is poison."""
    message = {"type": "ack" if of else "heartbeat", "origin": "o", "of": of}
    assert parse({**message, "member": "m"}).member == "m"
    assert parse(message).member is None
    with pytest.raises(MessageError):
        parse({**message, "member": member})


# --- Receivers ---


def test_what_waits_in_a_window_is_applied_before_the_answer():
    """A batch that brings nothing but a question puts in force what came before it."""
    cache: TTLCache = TTLCache(60, cleanup_interval=None)
    cache["a"], seen = 1, []
    batches = [Batch([ITEM]), Batch(commit=lambda: seen.append("a" in cache))]

    class Feed:
        ordered = broadcast = True
        replay = False
        delivery = "at-most-once"

        def __iter__(self):
            yield from batches

        def close(self):
            pass

    receiver = Receiver(Feed(), OptimizedInvalidation(cache, start=False), name="r", window=3600.0)
    receiver.start()
    assert wait_until(lambda: seen == [False])
    receiver.close()


def test_a_receiver_knows_its_thread():
    """is_current() is true in the thread's callbacks only."""
    found = []

    class Feed:
        ordered = broadcast = True
        replay = False
        delivery = "at-most-once"

        def __iter__(self):
            yield Batch(commit=lambda: found.append(receiver.is_current()))

        def close(self):
            pass

    cache: TTLCache = TTLCache(60, cleanup_interval=None)
    receiver = Receiver(Feed(), OptimizedInvalidation(cache, start=False), name="r")
    receiver.start()
    assert wait_until(lambda: found == [True])
    assert not receiver.is_current()
    receiver.close()


# --- Who is missing ---


def test_confirming():
    """A confirmation of a number is one of those below it; an older one takes nothing back."""
    noted = Confirmations(3.0)
    noted.confirmed("a", 5)
    noted.confirmed("a", 4)
    noted.confirmed("b", 4)
    assert noted.missing(["a", "b", "c"], 5) == {"b", "c"}
    assert noted.missing(["a", "b"], 4) == noted.missing([], 9) == frozenset()
    noted.renew()
    assert noted.missing(["a"], 0) == {"a"}


def test_waiting_for_confirmations():
    """Who waits goes on at the last confirmation, or when the time is over."""
    noted, found = Confirmations(3.0), []
    thread = threading.Thread(target=lambda: found.append(noted.missing(["a", "b"], 7, 60)))
    thread.start()
    noted.confirmed("b", 7)
    noted.confirmed("a", 9)
    thread.join(PATIENCE)
    assert found == [frozenset()]
    assert noted.missing(["a", "c"], 7, 0.001) == {"c"}


def test_presence():
    """A member counts for as long as the window after it was last heard of."""
    clock = ManualClock(100.0)
    noted = Confirmations(3.0, clock)
    noted.heard("a")
    clock.advance(2)
    noted.heard("b")
    assert noted.present() == {"a", "b"}
    clock.advance(2)
    assert (noted.present(), noted.listened) == ({"b"}, 4.0)
    noted.renew()
    assert (noted.present(), noted.listened) == (frozenset(), 0.0)


def test_what_is_noted_is_bounded():
    """However many members come, the oldest are forgotten."""
    noted = Confirmations(3.0)
    for number in range(MOST + 10):
        noted.heard(str(number))
        noted.confirmed(str(number), 1)
    assert len(noted.present()) == MOST
    assert noted.missing(["5", "20"], 1) == {"5"}


# --- The pump ---


def test_a_pump_hands_on_what_comes_and_what_is_raised():
    """Messages and exceptions come out of get() in their order; nothing is None."""
    coming = [{"n": 1}, OSError("down"), None, {"n": 2}]
    go = threading.Event()

    def receive():
        go.wait(PATIENCE)
        if not coming:
            return None
        step = coming.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    pump = Pump(receive, "test")
    assert pump.get(0.01) is None
    go.set()
    assert pump.get(20) == {"n": 1}
    with pytest.raises(OSError, match="down"):
        pump.get(20)
    assert pump.get(20) == {"n": 2}
    thread = pump._thread
    pump.close()
    assert wait_until(lambda: not thread.is_alive())
    with pytest.raises(RuntimeError, match="closed"):
        pump.get(0)


def test_a_pump_in_a_forked_child():
    """It has a thread of its own again, and says that it may have lost something."""
    pump = Pump(lambda: threading.Event().wait(0.01), "test")
    pump.get(0.001)
    first = pump._thread
    pump._renew_in_child()
    assert pump._thread is None
    pump.get(0.001)
    assert pump._thread is not first
    pump.close()
    pump._renew_in_child()
    assert isinstance(pump._inbox, Inbox)
    with pytest.raises(RuntimeError, match="closed"):
        pump.get(0)
