"""The sending half of a channel: numbers, sends, and what waits while the link is down.

    put ──► waiting ──► in doubt ──► the transport
            last per     numbered,
            target       one message

Invariants
    1. A message is numbered and sent under the one lock, so numbers go out in their order.
    2. A number belongs to one message for ever. A send that raises may have arrived all the same:
       that message stays in doubt and is sent again as it was, before anything else. Receivers that
       have it drop the second copy, the others miss nothing; so a retry makes no gap.
    3. What waits behind it has no number yet and is kept last per target, whatever the message that
       named it. Beyond `most` it becomes one invalidation of all: nothing is forgotten.
    4. While a message is in doubt no heartbeat claims that its number was sent.
    5. Callbacks run without the lock. The transport's send runs under it; so whoever receives does
       not wait for the lock, but for a moment: a send that hangs must not keep it from receiving.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from lapse.invalidation import wire
from lapse.invalidation.alerts import Alert, AlertKind, Alerts
from lapse.invalidation.envelope import to_json
from lapse.invalidation.limits import Limits
from lapse.invalidation.message import Invalidation, MessageError, parse
from lapse.invalidation.metrics import WireMeter
from lapse.invalidation.origin import Origin

__all__ = ["Outbox", "Parcel"]

log = logging.getLogger("lapse.invalidation")

Parcel = Invalidation | Mapping[str, Any]
Spell = Callable[[Invalidation, float], dict[str, Any]]

ALL = Invalidation("all")
FIRST_PAUSE, LAST_PAUSE = 0.1, 1.0  # seconds after a failed send
CLOSE_WAIT = 0.2  # seconds that close() waits for a send that is under way
ACK_WAIT = 0.2  # the same of an acknowledgement, which is asked for again
FRAME_ITEMS = 10_000  # invalidations of one frame
FRAME_SHARE = 4  # a frame is filled to this part of what a receiver takes, by a rough count
ITEM_BYTES = 64  # beside its target, at most, in that count


class Outbox:
    """Numbers and sends messages, and keeps what could not be sent. Any thread may call it.

    The arguments are those of the channel, which says what they mean; with `always` heartbeats
    begin before there was anything to send.
    """

    def __init__(
        self,
        send: Callable[[Any], object],
        *,
        origin: Origin,
        name: str,
        spell: Spell,
        binary: bool,
        limits: Limits,
        meter: WireMeter,
        alerts: Alerts,
        heartbeat: float | None,
        most: int,
        clock: Callable[[], float],
        wall: Callable[[], float],
        always: bool,
        member: Callable[[], str | None] | None,
        send_to: Callable[[str, Any], object] | None,
    ) -> None:
        self._send = send
        self._origin = origin
        self._name = name
        self._spell = spell
        self._binary = binary
        self._limits = limits
        self._meter = meter
        self._alerts = alerts
        self._heartbeat = heartbeat
        self._most = most
        self._clock = clock
        self._wall = wall
        self._always = always
        self._member = member
        self._send_to = send_to
        #: Messages that were sent, and sends that raised.
        self.published = self.failures = 0
        self._closed = False
        self._renew()

    def _renew(self) -> None:
        """A lock, and nothing to send: what waits at a fork is the parent's to send."""
        self._lock = threading.RLock()
        self._sending = False
        self._doubt: Any = None
        self._waiting: OrderedDict[Any, Parcel] = OrderedDict()
        self._pause = 0.0
        self._retry_at = 0.0
        self._beat_at = self._clock()
        #: Since when something that was sent has not come back; the channel resets it.
        self.unanswered_since: float | None = None

    @property
    def unsent(self) -> int:
        """Messages that wait to be sent."""
        return len(self._waiting) + (self._doubt is not None)

    def put(self, parcels: Iterable[Parcel], *, ack: bool = False) -> int:
        """Send them, or keep them; the number of the last message, -1 if one waits.

        `ack` asks every receiver to acknowledge that number. Raises RuntimeError if closed.
        """
        trouble: list[Alert] = []
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            for parcel in parcels:
                self._wait(parcel)
            self._pump(trouble)
            if len(self._waiting) > self._most:
                count = len(self._waiting)
                self._waiting = OrderedDict({(ALL.kind, ALL.target): ALL})
                trouble.append(self._alert("full", f"{count} messages became one that clears"))
            number = -1 if self.unsent else self._origin.last
            if ack and number >= 0:
                self._say(self._beat(ack=True), self._send)
        self._tell(trouble)
        return number

    def pump(self) -> None:
        """Send what waits, unless a send has failed a moment ago."""
        if not self.unsent:
            return
        trouble: list[Alert] = []
        with self._unless_sending() as free:
            if free:
                self._pump(trouble)
        self._tell(trouble)

    def hurry(self) -> None:
        """Let the next pump() try at once, whenever a send has failed."""
        self._retry_at = self._clock()

    def beat(self) -> None:
        """Send a heartbeat if one is due: the number of the last message, lest its loss pass."""
        if self._heartbeat is None or self._clock() < self._beat_at:
            return
        with self._unless_sending() as free:
            self._beat_at = self._clock() + self._heartbeat
            if free and not self.unsent and (self._always or self._origin.last >= 0):
                self._say(self._beat(), self._send)

    def acknowledge(self, origin: str, number: int, member: str | None) -> None:
        """Tell an origin that all it sent up to `number` is in force here: once, as best it goes.

        Only that origin, where it is the `member` of a transport that can do so; else everybody.
        """
        ack = self._signed({"type": "ack", "origin": self._origin.id, "of": [origin, number]})
        to = self._send_to
        send = self._send if member is None or to is None else partial(to, member)
        with self._unless_sending(ACK_WAIT) as free:
            if free:
                self._say(ack, send)

    def close(self) -> None:
        """Try once more to send what waits, and refuse the rest. Idempotent."""
        trouble: list[Alert] = []
        if not self._lock.acquire(timeout=CLOSE_WAIT):
            self._closed = True
            return
        try:
            self._retry_at = self._clock()
            if not self._closed:
                self._pump(trouble)
            self._closed = True
        finally:
            self._lock.release()
        if self.unsent:
            log.error("%s: %d messages were not sent", self._name, self.unsent)
        self._tell(trouble)

    @contextmanager
    def _unless_sending(self, seconds: float = 0.0) -> Iterator[bool]:
        """Hold the lock; False if somebody else sends, and does not end within `seconds`."""
        lock = self._lock
        free = lock.acquire(timeout=seconds)
        try:
            yield free
        finally:
            if free:
                lock.release()

    # --- Under the lock ---

    def _wait(self, parcel: Parcel) -> None:
        for each in self._meant(parcel) if self._pause else (parcel,):
            if isinstance(each, Invalidation):
                place: Any = (each.kind, each.target)
            else:
                place = object()
            self._waiting.pop(place, None)  # the last one goes to the end
            self._waiting[place] = each

    def _meant(self, parcel: Parcel) -> Iterable[Parcel]:
        """What a parcel says, so that a link that was down has little to make up for."""
        if isinstance(parcel, Invalidation):
            return (parcel,)
        try:
            return parse(parcel, limits=self._limits).invalidations or (parcel,)
        except MessageError:
            return (parcel,)

    def _pump(self, trouble: list[Alert]) -> None:
        if self._sending or (self._pause and self._clock() < self._retry_at):
            return
        self._sending = True
        try:
            self._send_waiting(trouble)
        finally:
            self._sending = False

    def _send_waiting(self, trouble: list[Alert]) -> None:
        try:
            while self._doubt is not None or self._waiting:
                if self._doubt is None:
                    self._take_up()
                self._transmit(self._doubt, self._send)
                self._doubt = None
                self.published += 1
            self._pause = 0.0
        except Exception as error:
            self._failed(error, trouble)

    def _transmit(self, payload: Any, send: Callable[[Any], object]) -> None:
        """Send, and wait for it to come back from now on, as it may do before send() returns."""
        before = self.unanswered_since
        if before is None:
            self.unanswered_since = self._clock()
        try:
            send(payload)
        except Exception:
            self.unanswered_since = before
            raise

    def _failed(self, error: Exception, trouble: list[Alert]) -> None:
        self.failures += 1
        if not self._pause:
            trouble.append(self._alert("publish_failed", "a message waits to be sent", error))
        self._pause = min(2 * self._pause, LAST_PAUSE) or FIRST_PAUSE
        self._retry_at = self._clock() + self._pause

    def _say(self, message: Mapping[str, Any], send: Callable[[Any], object]) -> None:
        try:
            self._transmit(self._as_json(message) if self._binary else message, send)
        except Exception as error:
            log.debug("%s: no %s was sent: %r", self._name, message["type"], error)

    def _beat(self, *, ack: bool = False) -> dict[str, Any]:
        message = {"type": "heartbeat", "timestamp": self._wall(), "origin": self._origin.id}
        if self._origin.last >= 0:
            message["sequence"] = self._origin.last
        return self._signed(message | {"ack": True}) if ack else message

    def _signed(self, message: dict[str, Any]) -> dict[str, Any]:
        """With the name that this end has on a transport that has members."""
        member = None if self._member is None else self._member()
        return message if member is None else message | {"member": member}

    # --- What the transport gets ---

    def _take_up(self) -> None:
        """Number the next message, and have it in doubt. It waits until then: nothing gets lost."""
        first = self._first()
        number = self._origin.next()
        taken = [parcel for _, parcel in first]
        try:
            self._doubt = self._payload(taken, number)
        except Exception as error:
            log.error("%s: cannot be sent, all goes instead: %s", self._name, error)
            self._doubt = self._payload([ALL], number)
        waiting = self._waiting
        for place, parcel in first:
            if place in waiting and waiting[place] is parcel:  # else a handler has put another
                del waiting[place]

    def _first(self) -> list[tuple[Any, Parcel]]:
        """The first message that waits: a mapping, an invalidation, or as many as fill a frame."""
        room = self._limits.input // FRAME_SHARE
        most = min(FRAME_ITEMS, self._limits.items) if self._binary else 1
        first: list[tuple[Any, Parcel]] = []
        for place, parcel in self._look(most):
            alone = not isinstance(parcel, Invalidation)
            room -= 0 if alone else ITEM_BYTES + _size(place[1])
            if first and (alone or room < 0):
                break
            first.append((place, parcel))
            if alone:
                break
        return first

    def _look(self, most: int) -> list[tuple[Any, Parcel]]:
        """The first that wait, at one instant, though a handler may put more."""
        while True:
            with suppress(RuntimeError):
                return list(islice(self._waiting.items(), most))

    def _payload(self, taken: list[Parcel], number: int) -> Any:
        first, origin, now = taken[0], self._origin.id, self._wall()
        if self._binary and isinstance(first, Invalidation):
            items = [_stamped(each, origin, number, now) for each in taken]
            return wire.encode(items, limits=self._limits, meter=self._meter)
        if isinstance(first, Invalidation):
            first = self._spell(first, now if first.sent_at is None else first.sent_at)
        message = {**first, "origin": origin, "sequence": number}
        return self._as_json(message) if self._binary else message

    def _as_json(self, message: Mapping[str, Any]) -> bytes:
        data = to_json(message)
        self._meter.sent(len(data), len(data))
        return data

    # --- Without it ---

    def _alert(self, kind: AlertKind, reason: str, error: Exception | None = None) -> Alert:
        return Alert(kind, self._name, reason, error)

    def _tell(self, trouble: list[Alert]) -> None:
        for alert in trouble:
            self._alerts.tell(alert)


def _stamped(parcel: Any, origin: str, number: int, now: float) -> Invalidation:
    sent_at = now if parcel.sent_at is None else parcel.sent_at
    item: Invalidation = replace(parcel, origin=origin, sequence=number, sent_at=sent_at)
    return item


def _size(target: Any) -> int:
    """Bytes of a target, roughly and rather too many."""
    if isinstance(target, (str, bytes)):
        return 4 * len(target)
    if isinstance(target, tuple):
        return sum(ITEM_BYTES + _size(part) for part in target)
    return ITEM_BYTES
