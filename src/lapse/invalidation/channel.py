"""A source of invalidations over any transport of messages, and the way out over the same one.

    transport ──► receive ──► read ──► echo? duplicate? gap? ──► Batch | Resync ──► the receiver
              ◄── send ◄── outbox ◄── publish()
                              └── heartbeats, acknowledgements, retries

A transport is two callables: one waits for a message, one sends one. The channel believes neither:

Invariants
    1. Own messages, known by their origin, and second copies change nothing.
    2. What may hide an invalidation that was lost ends in a Resync: a gap in an origin's numbers,
       an unknown incarnation that does not begin at 0, poison, MessagesLost, a link that was dead
       and cannot replay, own messages that do not come back. A Resync vouches for nothing that is
       lost after it: numbers that are missing then are a gap of their own.
    3. A message of an unknown type is well: it is counted, and handed on as a change.
    4. An item is "committed", towards the transport and to who asked for an acknowledgement, only
       when the receiver says that it is in force.
    5. One thread iterates; publish(), close() and the figures are for any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from lapse.invalidation.alerts import Alert, AlertKind, Alerts
from lapse.invalidation.envelope import read, to_json
from lapse.invalidation.limits import Account, Limits
from lapse.invalidation.message import Invalidation, Message, MessageError, check, sender_of
from lapse.invalidation.metrics import WireMeter
from lapse.invalidation.origin import Ledger, Origin
from lapse.invalidation.outbox import Outbox
from lapse.invalidation.process import watch
from lapse.invalidation.source import Batch, Delivery, MessagesLost, Resync, SourceCounts

__all__ = ["Channel", "Poison"]

log = logging.getLogger("lapse.invalidation")

KEPT_POISON = 32
POISON_LENGTH = 4096  # bytes of each
FIRST_PAUSE = 0.1  # seconds before a dead link is tried again
SHORTEST_NAP, LONGEST_NAP = 0.001, 0.05  # seconds, where receive() does not wait by itself


class Poison(NamedTuple):
    """A message that could not be read."""

    #: The message; of bytes and str the beginning.
    raw: Any
    error: Exception


class Channel:
    """Invalidations from and to a transport that carries messages.

    Args:
        receive: called with the seconds to wait; answers a mapping, bytes or str, or None if there
            was nothing. It may raise: then the link is dead, and tried again. MessagesLost says
            that it is well but has lost something, MessageError that it refuses a message.
        send: called with a message, a dict; with bytes if `binary`.
        name: in alerts and in the log.
        ordered, replay, broadcast, delivery: as `Source` has them.
        heartbeat: seconds between the heartbeats of a channel that has published; None for none.
        liveness: seconds until own messages must have come back on a broadcast transport, or the
            link counts as half open; None to trust it. Heartbeats then begin at once.
        spell: makes the dict of an invalidation and a time; message.py has two.
        binary: send a batch as one frame of wire.py instead.
        limits: caps of what is received and sent.
        meter: counts bytes.
        alerts: told of what goes wrong.
        clock, wall: monotonic and Unix seconds.
        wait: seconds that receive() may wait; close() takes about as long.
        commit: called when everything that receive() has answered is in force.
        on_ack: called with who acknowledges, and the number: with its name where the transport has
            members, else with its origin.
        on_heard: called with the origin of whatever comes from another one.
        announce: begin with heartbeats at once, so that others hear that this one is there.
        member: the name of this end, where the transport has members.
        send_to: called with the name of a member and a message for that one alone.
        on_close: called by close(), after the last send: it closes a transport that is the
            channel's own.
        most_unsent: messages that may wait for a dead link before they become one that clears.
    """

    def __init__(
        self,
        receive: Callable[[float], Any],
        send: Callable[[Any], object],
        *,
        spell: Callable[[Invalidation, float], dict[str, Any]],
        name: str = "channel",
        ordered: bool = True,
        replay: bool = False,
        broadcast: bool = True,
        delivery: Delivery = "at-most-once",
        heartbeat: float | None = 1.0,
        liveness: float | None = None,
        binary: bool = False,
        limits: Limits | None = None,
        meter: WireMeter | None = None,
        alerts: Alerts | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        wait: float = 0.5,
        commit: Callable[[], object] | None = None,
        on_ack: Callable[[str, int], object] | None = None,
        on_heard: Callable[[str], object] | None = None,
        announce: bool = False,
        member: Callable[[], str | None] | None = None,
        send_to: Callable[[str, Any], object] | None = None,
        on_close: Callable[[], object] | None = None,
        most_unsent: int = 10_000,
    ) -> None:
        self.name = name
        self.ordered = ordered
        self.replay = replay
        self.broadcast = broadcast
        self.binary = binary
        self.delivery: Delivery = delivery
        self.limits = limits or Limits()
        self.meter = meter or WireMeter()
        self.alerts = alerts or Alerts()
        self.origin = Origin()
        self.counts = SourceCounts()
        #: The last messages that could not be read.
        self.poison: deque[Poison] = deque(maxlen=KEPT_POISON)
        #: Monotonic seconds at which the last message came; None before the first.
        self.last_message_at: float | None = None
        self._receive = receive
        self._commit = commit
        self._on_ack = on_ack
        self._on_heard = on_heard
        self._on_close = on_close
        self._liveness = liveness if broadcast else None
        self._clock = clock
        self._wait = wait if heartbeat is None else min(wait, heartbeat)
        self._ledger = Ledger(ordered=ordered, clock=clock)
        self._outbox = Outbox(
            send, origin=self.origin, name=name, spell=spell, binary=binary, limits=self.limits,
            meter=self.meter, alerts=self.alerts, heartbeat=heartbeat, most=most_unsent,
            clock=clock, wall=wall, always=announce or self._liveness is not None,
            member=member, send_to=send_to,
        )  # fmt: skip
        self._closed = threading.Event()
        self._dead = False
        self._half_open = False
        self._nap = SHORTEST_NAP
        watch(self)

    # --- Out ---

    def publish(self, invalidations: Iterable[Invalidation], *, ack: bool = False) -> int:
        """Number them and send them, here and now; the number of the last message.

        -1 if the link is dead: then they wait, and are sent when it is up. `ack` asks every
        receiver to acknowledge the number once all is in force there. Raises RuntimeError if
        closed, and before anything is sent TypeError or ValueError for what no message can hold.
        """
        items = list(invalidations)
        for item in items:
            if not isinstance(item, Invalidation):
                raise TypeError(f"publish() takes Invalidations, not {type(item).__name__}")
            check(item, Account(self.limits))
        return self._outbox.put(items, ack=ack)

    def publish_message(self, message: Mapping[str, Any]) -> int:
        """The same for a message as it is; "origin" and "sequence" are added."""
        if self.binary:
            to_json(message)  # raises what it raises before the message has a number
        return self._outbox.put([message])

    @property
    def published(self) -> int:
        """Messages sent, heartbeats aside."""
        return self._outbox.published

    @property
    def publish_failures(self) -> int:
        """Sends that raised."""
        return self._outbox.failures

    @property
    def unsent(self) -> int:
        """Messages that wait to be sent."""
        return self._outbox.unsent

    # --- In ---

    def __iter__(self) -> Iterator[Batch | Resync]:
        """Yield what comes; an empty batch when nothing has within `wait` seconds. Never raises."""
        while not self._closed.is_set():
            self._outbox.pump()
            self._outbox.beat()
            yield from self._look_after()
            began = self._clock()
            try:
                raw = self._receive(self._wait)
            except MessagesLost as lost:
                yield Resync(str(lost) or "lost")
                continue
            except MessageError as error:
                self.counts.messages += 1
                yield self._poisoned(None, error)
                continue
            except Exception as error:
                yield from self._down(error)
                continue
            if self._dead:
                yield from self._up()
            if raw:
                self._nap = SHORTEST_NAP
                yield from self._taken(raw)
            else:
                yield Batch()
                self._rest(self._clock() - began)

    def close(self) -> None:
        """End the iteration, and try once more to send what waits. Idempotent, from any thread."""
        if not self._closed.is_set():
            self._closed.set()
            self._outbox.close()
            if self._on_close is not None:
                self._on_close()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed.is_set()

    # --- The link ---

    def _down(self, error: Exception) -> Iterator[Batch]:
        """The link is dead: tell so once, and wait a little."""
        if self._closed.is_set():
            return
        if not self._dead:
            self._tell("dead", "receiving failed", error)
        self._dead = True
        yield Batch()
        self._closed.wait(min(FIRST_PAUSE, self._wait))

    def _up(self) -> Iterator[Resync]:
        """The link is there again: what waits to be sent need not wait for its time."""
        self._dead = False
        self._outbox.hurry()
        if not self.replay:
            yield Resync("reconnected")

    def _look_after(self) -> Iterator[Resync]:
        """What time brings to light: messages that were not just late, a link that is half open."""
        for _ in range(self._ledger.overdue()):
            yield self._gap("messages are missing")
        since = self._outbox.unanswered_since
        if self._liveness is None or since is None or self._half_open:
            return
        if self._clock() - since > self._liveness:
            self._half_open = True
            self._tell("dead", f"own messages have not come back for {self._liveness} s")
            yield Resync("half-open")

    def _answered(self) -> Iterator[Resync]:
        """An own message has come back."""
        self._outbox.unanswered_since = None
        if self._half_open:
            self._half_open = False
            if not self.replay:
                yield Resync("reconnected")

    def _rest(self, waited: float) -> None:
        """Nap if receive() has not waited itself."""
        if waited < SHORTEST_NAP:
            self._closed.wait(min(self._nap, self._wait))
            self._nap = min(2 * self._nap, LONGEST_NAP)

    # --- A message ---

    def _taken(self, raw: Any) -> Iterator[Batch | Resync]:
        """What a message means."""
        self.counts.messages += 1
        self.last_message_at = self._clock()
        try:
            message = read(raw, limits=self.limits, meter=self.meter)
        except Exception as error:
            yield self._poisoned(raw, error)
            return
        if message.origin == self.origin.id:
            self.counts.echoes += 1
            yield from self._answered()
        elif message.kind == "ack":
            self._heard(message)
            self._acknowledged(message)
        else:
            self._heard(message)
            verdict = self._verdict(message)
            if verdict == "gap":
                yield self._gap(f"messages of {message.origin} are missing")
            if verdict != "duplicate":
                yield self._batch(message)
                return
            self.counts.duplicates += 1
        yield Batch(commit=self._commit_of(message))

    def _verdict(self, message: Message) -> str:
        origin, sequence = message.origin, message.sequence
        if origin is not None and message.kind == "heartbeat":
            return "gap" if self._ledger.reach(origin, sequence) else "new"
        if origin is None or sequence is None:
            return "new"
        return self._ledger.see(origin, sequence)

    def _batch(self, message: Message) -> Batch:
        changes: tuple[Mapping[str, Any], ...] = ()
        if message.content is not None:
            self.counts.unknown += 1
            changes = (message.content,)
        return Batch(message.invalidations, changes, self._commit_of(message))

    def _gap(self, reason: str) -> Resync:
        self.counts.gaps += 1
        self._tell("gap", reason)
        return Resync("gap")

    def _poisoned(self, raw: Any, error: Exception) -> Resync:
        """Keep it for inspection. Its number, if it can be told, is not missing as well."""
        self.counts.poison += 1
        kept = raw[:POISON_LENGTH] if isinstance(raw, (bytes, bytearray, memoryview, str)) else raw
        self.poison.append(Poison(kept, error))
        if isinstance(raw, Mapping) and isinstance(error, MessageError):
            origin, sequence = sender_of(raw, limits=self.limits)
            if origin is not None and sequence is not None and origin != self.origin.id:
                self._ledger.see(origin, sequence)
        self._tell("poison", "a message cannot be read", error)
        return Resync("poison", self._commit)

    def _commit_of(self, message: Message) -> Callable[[], object] | None:
        """What is to be done when the message is in force."""
        origin, sequence = message.origin, message.sequence
        if not message.ack or origin is None or sequence is None or self._ledger.lacks(origin):
            return self._commit
        return partial(self._acknowledge, origin, sequence, message.member)

    def _acknowledge(self, origin: str, sequence: int, member: str | None) -> None:
        if origin != self.origin.id:
            self._outbox.acknowledge(origin, sequence, member)
        if self._commit is not None:
            self._commit()

    def _acknowledged(self, message: Message) -> None:
        if self._on_ack is None or message.of is None or message.origin is None:
            return
        if message.of[0] == self.origin.id:
            self._call(self._on_ack, message.member or message.origin, message.of[1])

    def _heard(self, message: Message) -> None:
        if self._on_heard is not None and message.origin is not None:
            self._call(self._on_heard, message.origin)

    def _call(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:
            log.exception("%s: a callback failed", self.name)

    def _tell(self, kind: AlertKind, reason: str, error: Exception | None = None) -> None:
        self.alerts.tell(Alert(kind, self.name, reason, error))

    # --- Fork ---

    def _renew_in_child(self) -> None:
        """In a forked child: another incarnation, with locks of its own."""
        closed = self._closed.is_set()
        self._closed = threading.Event()
        if closed:
            self._closed.set()
        self.origin.renew()
        self._outbox._renew()
        self._dead = self._half_open = False
