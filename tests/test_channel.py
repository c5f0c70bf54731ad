"""A channel: what it makes of messages, of a link that fails, and what it sends."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from channel_support import NOW, Played, Script, key
from lapse.invalidation import Invalidation
from lapse.invalidation.channel import KEPT_POISON, Channel
from lapse.invalidation.envelope import parse_bytes
from lapse.invalidation.limits import Limits
from lapse.invalidation.message import MessageError, spell_broadcast, spell_queue
from lapse.invalidation.metrics import WireMeter
from lapse.invalidation.source import Batch, MessagesLost, Source
from lapse.invalidation.wire import encode
from support import PATIENCE

WAIT = 60.0  # seconds that another thread has for anything
ITEMS = [Invalidation("key", "a"), Invalidation("table", "t"), Invalidation("all")]


# --- In ---


def test_what_comes_is_yielded_in_order():
    """Mappings, JSON and frames become batches."""
    frame = encode([Invalidation("key", 3), Invalidation("key", 4)])
    played = Played(key(1), b'{"type":"key","key":2}', None, frame, '{"type":"tag","tag":"t"}')
    assert isinstance(played.channel, Source)
    assert played.summary() == [1, 2, 3, 4, "t"]
    assert played.channel.counts.messages == 4
    assert played.channel.meter.batches_in == 3


def test_an_empty_batch_when_nothing_comes():
    """While nothing comes the channel yields empty batches, and naps if receive() does not wait."""
    played = Played()
    events = iter(played.channel)
    assert [next(events) for _ in range(4)] == [((), (), None)] * 4
    assert played.channel._nap > 0.001
    played.script.coming.append(key(1))
    next(events)
    assert played.channel._nap == 0.001


def test_echo_is_dropped_by_origin():
    """An own message that comes back changes nothing; the same content of another one does."""
    played = Played()
    played.script.coming.extend([key(1, played.origin, 0), key(1, "other", 0)])
    assert played.summary() == [1]
    assert played.channel.counts.echoes == 1


def test_duplicates_are_dropped():
    """Second copies change nothing."""
    played = Played(key(1, "o", 0), key(2, "o", 1), key(1, "o", 0), key(2, "o", 1))
    assert played.summary() == [1, 2]
    assert played.channel.counts.duplicates == 2


@pytest.mark.parametrize(
    ("coming", "summary", "alert"),
    [
        ([key(1, "o", 0), key(3, "o", 2), key(4, "o", 3)], [1, "resync: gap", 3, 4], "gap"),
        ([key(1, "o", 7), key(2, "o", 8)], ["resync: gap", 1, 2], "gap"),
        ([key(1), {"type": "invalidate_key"}, key(2)], [1, "resync: poison", 2], "poison"),
        ([b'{"v":2,"items":[]}', key(2)], ["resync: poison", 2], "poison"),
        ([b"\xc1LP\x02\x00", key(2)], ["resync: poison", 2], "poison"),
        (
            [
                key(1, "o", 0),
                {"type": "invalidate_key", "origin": "o", "sequence": 1},
                key(2, "o", 2),
            ],
            [1, "resync: poison", 2],
            "poison",
        ),
        (
            [
                key(1, "o", 0),
                {"type": "invalidate_key", "origin": "o", "sequence": 2**63},
                {"type": "invalidate_key", "origin": "o", "sequence": -1},
                key(2, "o", 1),
            ],
            [1, "resync: poison", "resync: poison", 2],
            "poison",
        ),
        (
            [key(1, "o", 0), OSError("down"), OSError("down"), key(4, "o", 1), key(5, "o", 2)],
            [1, "resync: reconnected", 4, 5],
            "dead",
        ),
        ([OSError("down"), None, key(1)], ["resync: reconnected", 1], "dead"),
        (
            [key(1, "o", 0), MessagesLost("overflow"), key(4, "o", 1)],
            [1, "resync: overflow", 4],
            None,
        ),
        (
            [key(1, "o", 0), MessageError("a pickle"), key(2, "o", 1)],
            [1, "resync: poison", 2],
            "poison",
        ),
        (
            [
                key(1, "o", 0),
                {"type": "heartbeat", "origin": "o", "sequence": 0},
                {"type": "heartbeat", "origin": "o", "sequence": 1},
                {"type": "heartbeat", "origin": "o", "sequence": 1},
                key(3, "o", 2),
            ],
            [1, "resync: gap", 3],
            "gap",
        ),
    ],
    ids=[
        "gap", "unknown incarnation", "poison", "wire version", "frame version", "numbered poison",
        "poison with a number that is none",
        "dead link", "dead link, then nothing", "overflow", "refused", "heartbeat",
    ],
)  # fmt: skip
def test_exactly_one_resync(coming, summary, alert):
    """Whatever may have hidden a loss ends in one Resync, before what came after, and one alert."""
    played = Played(*coming)
    assert played.summary() == summary
    expected = [alert] * sum(str(each).startswith("resync") for each in summary) if alert else []
    assert [kind for kind, _ in played.alerts] == expected
    assert played.channel.counts.gaps == (alert == "gap")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [(OSError("down"), "reconnected"), (MessagesLost("overflow"), "overflow")],
)
def test_a_resync_does_not_vouch_for_what_is_lost_after_it(trouble, reason):
    """Numbers that are missing after a resync are a gap: they may have been lost behind it."""
    played = Played(key(1, "o", 0), trouble, key(4, "o", 3), key(5, "o", 4))
    assert played.summary() == [1, f"resync: {reason}", "resync: gap", 4, 5]


def test_a_transport_that_replays_needs_no_resync():
    """What was sent while the link was down comes again."""
    played = Played(key(1), OSError("down"), key(2), replay=True)
    assert played.summary() == [1, 2]


def test_an_unordered_transport():
    """What comes late is no gap; what does not come in time is, once."""
    played = Played(ordered=False)
    advance = lambda: played.clock.advance(5.0)  # noqa: E731
    late = [key(n, "o", n) for n in (0, 2, 1)]
    played.script.coming.extend([*late, advance, None, key(4, "o", 4), advance, None])
    assert played.summary() == [0, 2, 1, 4, "resync: gap"]


def test_an_unknown_type_is_a_change():
    """It is counted, handed on for who knows it, and takes part in the numbering."""
    update = {"type": "product_update", "product_id": 1}
    played = Played({**update, "origin": "o", "sequence": 0}, key(1, "o", 1), update)
    first, second, third = played.events()
    assert [dict(each)["product_id"] for each in (*first.changes, *third.changes)] == [1, 1]
    assert (len(second.invalidations), first.invalidations) == (1, ())
    assert played.channel.counts.unknown == 2


def test_poison_is_kept():
    """The last messages that could not be read stay for inspection, cut short."""
    played = Played(*[b"x" * 10_000] * (KEPT_POISON + 5))
    assert len(played.events()) == KEPT_POISON + 5
    assert len(played.channel.poison) == KEPT_POISON
    raw, error = played.channel.poison[-1]
    assert raw == b"x" * 4096
    assert "JSON" in str(error)
    assert played.channel.counts.poison == KEPT_POISON + 5


def test_limits_of_what_is_received():
    """What passes the limits is poison."""
    played = Played(key("x" * 11), limits=Limits(key_length=10))
    assert played.summary() == ["resync: poison"]


def test_commit_comes_with_the_event():
    """What was received is committed by whoever applies it, echoes and poison included."""
    done: list[int] = []
    played = Played(commit=lambda: done.append(1))
    played.script.coming.extend([key(1), key(1, played.origin, 0), {"type": 3}])
    events = played.events()
    assert done == []
    for event in events:
        event.commit()
    assert len(events) == len(done) == 3


def test_a_half_open_link():
    """Own messages that do not come back in time: one resync; another one when they do again."""
    played = Played(heartbeat=1.0, liveness=3.0)
    advance = lambda by: lambda: played.clock.advance(by)  # noqa: E731
    beat = lambda: played.script.sent[-1]  # noqa: E731
    played.script.coming.extend([advance(2.0), beat, advance(2.5), advance(4.0), None, None, beat])
    played.script.coming.append(None)
    assert played.summary() == ["resync: half-open", "resync: reconnected"]
    assert played.alerts == [("dead", "channel")]


# --- Out ---


def test_publishing_dicts():
    """Each invalidation is one message as the reference spells it, with origin and sequence."""
    played = Played(spell=spell_broadcast)
    assert played.channel.publish(ITEMS) == 2
    assert played.channel.publish([Invalidation("key", "b", sent_at=5.0)]) == 3
    assert played.script.sent == [
        {**spell_broadcast(item, when), "origin": played.origin, "sequence": n}
        for n, (item, when) in enumerate(
            [*[(item, NOW) for item in ITEMS], (Invalidation("key", "b"), 5.0)]
        )
    ]


def test_publishing_frames():
    """A binary transport gets one frame for a batch, all with one number; a meter counts it."""
    meter = WireMeter()
    played = Played(binary=True, meter=meter)
    assert played.channel.publish([Invalidation("key", ("k", n)) for n in range(500)]) == 0
    assert played.channel.publish_message({"type": "clear_all"}) == 1
    frame, plain = map(parse_bytes, played.script.sent)
    assert (len(frame.invalidations), frame.origin, frame.sequence) == (500, played.origin, 0)
    assert (plain.invalidations[0].kind, plain.sequence) == ("all", 1)
    assert meter.raw_out > meter.wire_out == sum(map(len, played.script.sent))


def test_a_batch_that_is_too_large_is_parted():
    """Frames stay within what a receiver takes."""
    played = Played(binary=True, limits=Limits(input=100_000))
    played.channel.publish([Invalidation("key", f"{n}-" + "x" * 100) for n in range(1000)])
    assert len(played.script.sent) > 1
    frames = list(map(parse_bytes, played.script.sent))
    assert sum(len(each.invalidations) for each in frames) == 1000
    assert [each.sequence for each in frames] == list(range(len(frames)))


@pytest.mark.parametrize("target", [object(), [], float("nan"), "x" * 5000])
def test_what_cannot_be_sent_is_refused(target):
    """The caller learns of it before anything is numbered."""
    played = Played()
    with pytest.raises((TypeError, ValueError)):
        played.channel.publish([Invalidation("key", 1), Invalidation("key", target)])
    assert (played.channel.origin.last, played.script.sent) == (-1, [])


def test_numbers_go_out_in_their_order():
    """Numbering and sending are one step, however many threads publish."""
    played = Played()
    start = threading.Barrier(4)

    def work(n: int) -> None:
        start.wait()
        for turn in range(100):
            played.channel.publish([Invalidation("key", (n, turn))])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [message["sequence"] for message in played.script.sent] == list(range(400))


def test_heartbeats():
    """A channel that has published tells its last number now and then; others are silent."""
    played = Played(heartbeat=1.0)
    advance = lambda: played.clock.advance(1.5)  # noqa: E731
    publish = lambda: played.channel.publish([Invalidation("key", 1)]) and None  # noqa: E731
    played.script.coming.extend([advance, None, publish, None, advance, None, None])
    played.events()
    assert played.script.sent[1:] == [
        {"type": "heartbeat", "timestamp": NOW, "origin": played.origin, "sequence": 0}
    ]


# --- Out, while the link is down ---


def down(played: Played, times: int = 1) -> None:
    played.script.failing.extend([OSError("down")] * times)


def test_a_link_that_is_back_is_sent_what_waits():
    """Once receiving works again, what waits goes out at once, not when its pause is over."""
    sent: list[int] = []
    played = Played(OSError("down"), None)
    played.script.coming.append(lambda: sent.append(len(played.script.sent)))
    down(played)
    assert played.channel.publish([Invalidation("key", "a")]) == -1
    assert played.summary() == ["resync: reconnected"]
    assert (sent, played.clock()) == ([1], 100.0)


def test_a_failed_publish_is_sent_later():
    """The message in doubt goes out again as it was; then what waits, last per target."""
    played = Played()
    down(played)
    assert played.channel.publish([Invalidation("key", "a")]) == -1
    for target in ("b", "c", "b"):
        assert played.channel.publish([Invalidation("key", target)]) == -1
    assert played.script.sent == []
    assert (played.channel.unsent, played.channel.publish_failures) == (3, 1)
    assert played.alerts == [("publish_failed", "channel")]
    played.script.coming.extend([None, lambda: played.clock.advance(0.2), None])
    played.events()
    assert [(m["key"], m["sequence"]) for m in played.script.sent] == [("a", 0), ("c", 1), ("b", 2)]
    assert (played.channel.unsent, played.channel.published) == (0, 3)


def test_retries_back_off():
    """A dead link is tried ever more rarely, but once a second; one alert for all of it."""
    played = Played()
    down(played, 100)
    played.channel.publish([Invalidation("key", "a")])
    for _ in range(100):
        played.clock.advance(0.1)
        played.channel.publish([])
    assert 10 < played.channel.publish_failures < 16
    assert len(played.alerts) == 1


def test_messages_that_wait_are_one_for_each_target():
    """Behind the message in doubt, what a message names counts, not how it was put."""
    played = Played(binary=True)
    down(played)
    for target in ("a", "b", "c", "b"):
        played.channel.publish_message({"type": "invalidate_key", "key": target})
    played.channel.publish([Invalidation("key", "c")])
    played.channel.publish_message({"type": "a type of one's own"})
    assert played.channel.unsent == 4
    played.clock.advance(1.0)
    played.channel.publish([])
    first, *rest = [parse_bytes(message) for message in played.script.sent]
    assert [item.target for item in first.invalidations] == ["a"]
    assert [item.target for message in rest for item in message.invalidations] == ["b", "c"]
    assert [message.kind for message in rest] == ["invalidations", "unknown"]


def test_too_much_to_retry_becomes_a_clear():
    """Beyond the bound everything that waits becomes one message that clears; nothing is lost."""
    played = Played(most_unsent=3)
    down(played)
    played.channel.publish([Invalidation("key", n) for n in range(10)])
    assert [kind for kind, _ in played.alerts] == ["publish_failed", "full"]
    assert played.channel.unsent == 2
    played.clock.advance(1.0)
    played.channel.publish([])
    assert [m["type"] for m in played.script.sent] == ["invalidate_key", "clear_all"]


def test_no_heartbeat_claims_what_is_in_doubt():
    """While a message waits there is no heartbeat."""
    played = Played(heartbeat=0.01)
    played.channel.publish([Invalidation("key", 1)])
    down(played)
    played.channel.publish([Invalidation("key", 2)])
    played.script.coming.extend([None, lambda: played.clock.advance(0.05), None, None])
    for _ in zip(range(4), played.channel, strict=False):
        pass
    assert [m["type"] for m in played.script.sent] == ["invalidate_key"]


def test_a_retry_makes_no_gap():
    """A receiver of what has been sent twice, and of what waited, sees every number once."""
    sender, twice = Played(), [OSError("timed out, but sent")]

    def send(message: Any) -> None:
        sender.script.sent.append(message)
        if twice:
            raise twice.pop()

    sender.channel._outbox._send = send
    for n in range(3):
        sender.channel.publish([Invalidation("key", n)])
    sender.clock.advance(1.0)
    sender.channel.publish([])
    receiver = Played(*sender.script.sent)
    assert receiver.summary() == [0, 1, 2]
    assert receiver.channel.counts.duplicates == 1


def test_close_sends_what_waits():
    """Closing tries once more, whatever the back-off; then nothing may be published."""
    played = Played()
    down(played)
    played.channel.publish([Invalidation("key", 1)])
    played.channel.close()
    played.channel.close()
    assert len(played.script.sent) == 1
    assert list(played.channel) == []
    with pytest.raises(RuntimeError, match="closed"):
        played.channel.publish([])


# --- Acknowledgements ---


@pytest.mark.parametrize("binary", [False, True])
def test_acknowledgements(binary):
    """Who asks for them learns who has everything up to a number in force, once it is."""
    acks: list[tuple[str, int]] = []
    sender = Played(on_ack=lambda origin, number: acks.append((origin, number)), binary=binary)
    assert sender.channel.publish(ITEMS[:2], ack=True) == (0 if binary else 1)
    receiver = Played(*sender.script.sent, binary=binary)
    events = receiver.events()
    assert len(events[-1].invalidations) == 0
    assert receiver.script.sent == []
    events[-1].commit()
    sender.script.coming.extend(receiver.script.sent)
    assert sender.summary() == []
    assert acks == [(receiver.origin, 0 if binary else 1)]


def test_a_callback_of_acknowledgements_may_fail(caplog):
    """It is logged, and the channel goes on."""
    played = Played(on_ack=lambda *_: 1 / 0)
    ack = {"type": "ack", "origin": "o", "of": [played.origin, 0]}
    played.script.coming.extend([ack, {**ack, "of": ["another", 0]}, key(1)])
    assert played.summary() == [1]
    assert len(caplog.records) == 1


def test_close_wakes_a_napping_channel():
    """A channel that naps ends at once when it is closed by another thread."""
    channel = Channel(lambda _: None, lambda _: None, spell=spell_queue, wait=0.5)
    thread = threading.Thread(target=lambda: list(channel))
    thread.start()
    channel.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_send_that_hangs_keeps_nothing_from_coming():
    """While one thread cannot send, what others have sent is received; later it goes out."""
    script, sending, go = Script(), threading.Event(), threading.Event()

    def send(message: Any) -> None:
        sending.set()
        assert go.wait(6 * WAIT)
        script.publish(message)

    options: dict[str, Any] = {"spell": spell_queue, "wait": 0.001, "heartbeat": 0.001}
    channel = Channel(script.receive, send, **options)
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    publisher = threading.Thread(target=channel.publish, args=(ITEMS[:1],))
    receiver = threading.Thread(target=lambda: [found.put(e) for e in channel if e != Batch()])
    try:
        publisher.start()
        assert sending.wait(WAIT)
        receiver.start()
        script.coming.extend([key(1, "o", 0), key(2, "o", 1)])
        assert [found.get(timeout=WAIT).invalidations[0].target for _ in range(2)] == [1, 2]
    finally:
        go.set()
        publisher.join(WAIT)
        channel.close()
        receiver.join(WAIT)
    assert not receiver.is_alive()
    assert script.sent[0]["type"] == "invalidate_key"
