"""BroadcastInvalidation: one cache of many, all of which hear of what any of them invalidates.

    broadcast_invalidation() ──► own cache, now
                             ──► the broadcaster ──► every other cache
    the broadcaster ──► Channel ──► Receiver ──► own cache
                    ◄── "ack", once in force     (wait=True)

1. A broadcaster applies first and sends then: its own cache is true when the call returns.
2. What comes from the bus is applied and never sent on; own messages that come back are dropped by
   their origin.
3. With wait=True the call returns only when every live member has put in force all that this
   process had sent. Members are those that the broadcaster knows, or else those that were heard of
   lately. Who leaves meanwhile is not waited for; who does not answer in time is a TimeoutError.

A broadcaster is any object with `receive()` and `broadcast(message)`. The rest is optional:

    receive(timeout=seconds)   waits so long; without timeout it gets a thread of its own (pump.py)
    members(), identity        the names of the other live members, and its own among them
    send_to(member, message)   a message for one member
    join()                     be a member: called in a forked child before it is cleared
    loopback = False           own messages do not come back, so their absence means nothing

and subscribe(), commit(), binary, ordered, replay and delivery as lapse.invalidation.transport has
them.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

from lapse.distributed.confirmations import Confirmations
from lapse.distributed.pump import Pump
from lapse.invalidation.channel import Channel
from lapse.invalidation.envelope import fits_json
from lapse.invalidation.facade import Invalidator, OnAlert
from lapse.invalidation.limits import Limits
from lapse.invalidation.message import Invalidation, parse, spell_broadcast
from lapse.invalidation.process import watch
from lapse.invalidation.queue import raise_first
from lapse.invalidation.receiver import OnResync
from lapse.invalidation.source import Batch
from lapse.invalidation.transport import method_of, own_end, traits_of

__all__ = ["BroadcastInvalidation"]

HEARTBEAT = 1.0  # seconds
WINDOW = 3.0  # heartbeats after which a member that was not heard of has left
SETTLED = 1.5  # heartbeats within which everybody is heard of
GLANCE = 0.1  # seconds between looks at who is there
ASK_AGAIN = 0.5  # seconds until those who have not answered are asked again


class BroadcastInvalidation(Invalidator):
    """Keeps a cache true by what others broadcast, and tells the others.

    Args:
        cache: a cache of lapse, or any with `delete(key)` and `delete_pattern(pattern)`.
        message_broadcaster: any object with `receive()` and `broadcast(message)`, such as
            MemoryBroadcaster and LocalBroadcaster; broadcast.py says what else it may have. It is
            the caller's to close.
        start: receive at once; False: when start_message_listening() is called.
        on_resync: what a loss of messages does: "clear" empties the cache, "soft" lets entries be
            served for `soft_ttl` seconds more where the cache can do that, a callable gets the
            `Resync` and answers the invalidations that make it good.
        on_alert: one callable or several, called with each `Alert`.
        name: in the thread's name (`lapse-<name>`), in alerts and statistics.
        window: seconds that invalidations may gather before they are applied; 0 applies at once.
        translate: called with each `Batch`; answers the invalidations that follow from it.
        listener: called with each `Batch` that brought something, once it is applied.
        heartbeat: seconds between messages that tell the others what should have come, and who is
            there; None for none. "auto" is 1.0 on a broadcaster that says what it can do (has
            `ordered`), and none on others.
        liveness: seconds within which an own message must come back; None to trust the link.
        limits: caps of a message.

    Keep a reference to it: it ends when nobody has one, as by close(). Raises ValueError for a
    setting out of range. Any thread may call any method.

    A forked child is another member with another origin: its copy of the cache is resynced.
    """

    default_name = "broadcast"

    def __init__(
        self,
        cache: Any,
        message_broadcaster: Any,
        *,
        start: bool = True,
        on_resync: OnResync = "clear",
        soft_ttl: float = 60.0,
        on_alert: OnAlert = None,
        name: str | None = None,
        window: float = 0.0,
        translate: Callable[[Batch], Iterable[Invalidation]] | None = None,
        listener: Callable[[Batch], object] | None = None,
        heartbeat: float | Literal["auto"] | None = "auto",
        liveness: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(cache, name=name, on_alert=on_alert, window=window)
        self.message_broadcaster = message_broadcaster
        end, close = own_end(message_broadcaster)
        if liveness is not None and getattr(end, "loopback", True) is False:
            raise ValueError("liveness needs a broadcaster that brings own messages back")
        if heartbeat == "auto":
            heartbeat = HEARTBEAT if isinstance(getattr(end, "ordered", None), bool) else None
        self._end = end
        self._heartbeat = heartbeat
        self._limits = limits or Limits()
        self._members = method_of(end, "members")
        self._confirmations = Confirmations(WINDOW * (heartbeat or HEARTBEAT))
        receive, stop = _receiver(end, self.name)
        self.channel = Channel(
            receive,
            end.broadcast,
            spell=spell_broadcast,
            name=self.name,
            **traits_of(end)._replace(broadcast=True)._asdict(),
            heartbeat=heartbeat,
            liveness=liveness,
            limits=self._limits,
            meter=self.queue.wire,
            alerts=self.alerts,
            commit=method_of(end, "commit"),
            on_close=_all_of(stop, close),
            on_ack=self._confirmations.confirmed,
            on_heard=self._confirmations.heard,
            announce=heartbeat is not None and self._members is None,
            member=None if self._members is None else lambda: getattr(end, "identity", None),
            send_to=method_of(end, "send_to"),
        )
        watch(self)
        self._listen(
            self.channel, start=start, on_resync=on_resync, soft_ttl=soft_ttl,
            translate=translate, after=listener,
        )  # fmt: skip

    def start_message_listening(self) -> None:
        """Start the thread that receives, unless it runs. RuntimeError if closed."""
        self.receiver.start()

    def broadcast_invalidation(
        self, invalidation_type: str, *, wait: bool = False, timeout: float = 5.0, **kwargs: Any
    ) -> None:
        """Apply an invalidation here, and send it to the others.

        `broadcast_invalidation("key", key="user:1")` sends {"type": "invalidation",
        "invalidation_type": "key", "timestamp": now, "key": "user:1"}, with an origin and a
        sequence added. Other types are pattern (pattern=), table (table=), tag (tag=) and all.
        While the broadcaster is down it waits, and is sent later: the call does not raise for that.

        Args:
            wait: return only when every live member has it in force.
            timeout: seconds that this may take.

        Raises ValueError if the target is missing or of a type that cannot be sent, RuntimeError if
        closed, and what the own cache raises, once the others have been told; and as broadcast() if
        it waits.
        """
        message = {
            "type": "invalidation", "invalidation_type": invalidation_type,
            "timestamp": time.time(), **kwargs,
        }  # fmt: skip
        parsed = parse(message, limits=self._limits)
        if parsed.kind in ("heartbeat", "ack"):
            raise ValueError(f"{parsed.kind} is no invalidation")
        items = parsed.invalidations
        if self.channel.binary and not fits_json(items):
            self._send(items, partial(self.channel.publish, items), wait, timeout)
        else:
            self._send(items, partial(self.channel.publish_message, message), wait, timeout)

    def broadcast(
        self, invalidations: Iterable[Invalidation], *, wait: bool = False, timeout: float = 5.0
    ) -> None:
        """Apply `Invalidation`s here, and send them: in frames where the broadcaster takes bytes.

        With `wait` it returns only when every live member has them in force. Who lost a message and
        resyncs "soft" confirms as well. Raises TypeError for what is no `Invalidation` or cannot be
        sent, RuntimeError if closed; TimeoutError if some members have not confirmed within
        `timeout` seconds: what they have applied stays so, and the others get it later or resync.
        Waiting raises RuntimeError from within a callback of the receiver and before it is started,
        and ValueError where nobody knows who is there: without members() and heartbeat.
        """
        items = list(invalidations)
        self._send(items, partial(self.channel.publish, items), wait and bool(items), timeout)

    def members(self) -> frozenset[str]:
        """The other live members: their names on the broadcaster, or else their origins."""
        if self._members is None:
            return self._confirmations.present()
        found: Iterable[str] = self._members()
        return frozenset(found)

    def _send(
        self,
        items: Iterable[Invalidation],
        publish: Callable[[], object],
        wait: bool,
        timeout: float,
    ) -> None:
        """Apply here, send, and wait if asked to."""
        end = time.monotonic() + timeout
        if wait:
            self._check_waiting()
        answers = self.queue.apply(items)
        members = self._expected(end) if wait else frozenset()
        publish()
        if wait:
            self._await(members, end, timeout)
        raise_first(answers)

    # --- Waiting ---

    def _check_waiting(self) -> None:
        """Raise where nobody could be waited for."""
        if self._members is None and self._heartbeat is None:
            raise ValueError("wait=True needs a broadcaster with members(), or heartbeat=")
        if self.receiver.is_current():
            raise RuntimeError("a callback of the receiver cannot wait for what it receives")
        if not self.receiver.running:
            raise RuntimeError(f"{self.name} does not receive, so nobody could confirm")

    def _expected(self, end: float) -> frozenset[str]:
        """Who is there before something is sent.

        Where members are known by their heartbeats, this one must have listened for a while.
        """
        if self._members is None and self._heartbeat is not None:
            settling = SETTLED * self._heartbeat - self._confirmations.listened
            time.sleep(max(0.0, min(settling, end - time.monotonic())))
        return self.members()

    def _await(self, members: frozenset[str], end: float, timeout: float) -> None:
        """Return when all `members` that stay have confirmed what has been sent until now."""
        number, asked_at, missing = -1, 0.0, members
        while True:
            if number < 0 or time.monotonic() - asked_at > ASK_AGAIN:
                last, asked_at = self.channel.publish((), ack=True), time.monotonic()
                number = last if number < 0 else number
            left = max(0.0, end - time.monotonic())
            if number < 0:
                time.sleep(min(left, GLANCE))
            else:
                missing = self._confirmations.missing(missing, number, min(left, GLANCE))
                if not missing:
                    return
            if not left:
                raise TimeoutError(_complaint(missing, members, number, timeout))
            missing &= self.members()

    # --- Fork ---

    def _renew_in_child(self) -> None:
        """Be a member before the receiver clears the cache: what is sent from here on arrives."""
        self._confirmations.renew()
        join = method_of(self._end, "join")
        if join is not None and not self.closed:
            join()


def _receiver(end: Any, name: str) -> tuple[Callable[[float], Any], Callable[[], Any] | None]:
    """What receives within some seconds, and what stops that."""
    if _takes_timeout(end.receive):
        return lambda seconds: end.receive(timeout=seconds), None
    pump = Pump(end.receive, name)
    return pump.get, pump.close


def _takes_timeout(receive: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(receive).parameters
    except (TypeError, ValueError):
        return False
    return "timeout" in parameters


def _all_of(*calls: Callable[[], Any] | None) -> Callable[[], None]:
    def call() -> None:
        for each in calls:
            if each is not None:
                each()

    return call


def _complaint(
    missing: frozenset[str], members: frozenset[str], number: int, timeout: float
) -> str:
    if number < 0:
        return f"the broadcaster is down: nothing was sent within {timeout} s"
    named = ", ".join(sorted(missing)[:10])
    return (
        f"{len(missing)} of {len(members)} members have not confirmed within {timeout} s: {named}"
    )
