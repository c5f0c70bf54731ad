"""A bus within one process: many caches, each of which hears of all invalidations.

    broadcast(message) ──►  fan-out  ──►  mailbox of subscriber 1  ──►  receive()
                                     ──►  mailbox of subscriber 2  ──►  receive()

1. Every subscriber gets every message that is sent after it has subscribed, its own ones too, in
   one order for all.
2. A subscriber that falls behind loses what its mailbox holds, and its receive() says so, once.

Any thread may call any method. Nothing waits but receive().
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lapse.forks import alive
from lapse.invalidation.fanout import Fanout, Mailbox
from lapse.invalidation.process import watch
from lapse.invalidation.source import MessagesLost

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MemoryBroadcaster", "MemorySubscription", "MessagesLost"]


class MemoryBroadcaster:
    """A bus within one process: each subscriber gets every message.

        bus = MemoryBroadcaster()
        first = BroadcastInvalidation(cache_1, bus)
        second = BroadcastInvalidation(cache_2, bus)

    Each of the two has an end of its own; so has each thread that calls `receive()` itself. What is
    broadcast before anybody subscribes waits for the first who does.

    Args:
        capacity: messages that wait for each subscriber at most. One that falls behind by more
            loses them, and its receive() raises MessagesLost.

    Raises ValueError for a capacity below 1. A forked child has a copy of the bus and of its ends,
    which is no longer connected with the parent's.
    """

    def __init__(self, *, capacity: int = 65_536) -> None:
        self._fanout = Fanout(capacity)
        self._numbers = itertools.count(1)
        self._ends: weakref.WeakValueDictionary[str, MemorySubscription]
        self._ends = weakref.WeakValueDictionary()
        self._renew_in_child()
        watch(self)

    def subscribe(self) -> MemorySubscription:
        """An end of its own: gets every message from now on. RuntimeError if closed."""
        with self._joining:
            identity = f"{os.getpid()}-{next(self._numbers)}"
            end = MemorySubscription(self, self._fanout.subscribe(), identity)
            self._ends[identity] = end
            return end

    def receive(self, timeout: float | None = None) -> Any:
        """The next message for the calling thread, which subscribes by its first call.

        None if none comes within `timeout` seconds (None: any time), or the bus is closed. Raises
        MessagesLost, once, if messages were dropped because too many waited.
        """
        return self._fanout.receive(timeout)

    def broadcast(self, message: Mapping[str, Any] | bytes | str) -> None:
        """Hand a message, of a mapping a copy, to every subscriber. RuntimeError if closed.

        Whoever receives it shares it with the other subscribers, and must not change it.
        """
        self._fanout.publish(message)

    def members(self) -> frozenset[str]:
        """The identities of the ends that subscribe() has made and that are open."""
        with self._joining:
            return frozenset(end.identity for end in alive(self._ends) if not end.closed)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._fanout.closed

    def close(self) -> None:
        """Refuse further messages, and wake up whoever waits for one. Idempotent."""
        self._fanout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _renew_in_child(self) -> None:
        self._joining = threading.RLock()  # re-entrant: a finalizer may subscribe in its midst


class MemorySubscription:
    """One subscriber's end of a MemoryBroadcaster, made by its subscribe().

    It leaves the bus by close(), by `with`, or when nobody refers to it any more.
    """

    #: What BroadcastInvalidation asks a transport: broadcast.py says what each means.
    binary = False
    ordered = True
    replay = False

    def __init__(self, bus: MemoryBroadcaster, mailbox: Mailbox, identity: str) -> None:
        self._bus = bus
        self._mailbox = mailbox
        #: The name of this end among the members of its bus.
        self.identity = identity

    def receive(self, timeout: float | None = None) -> Any:
        """The next message; as MemoryBroadcaster.receive()."""
        return self._mailbox.receive(timeout)

    def broadcast(self, message: Mapping[str, Any] | bytes | str) -> None:
        """Hand a message to every subscriber, this one included. RuntimeError if closed."""
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed")
        self._mailbox.publish(message)

    def members(self) -> frozenset[str]:
        """The identities of the other ends of the bus that are open."""
        return self._bus.members() - {self.identity}

    @property
    def closed(self) -> bool:
        """Whether this end, or its bus, is closed."""
        return self._mailbox.closed or self._bus.closed

    def close(self) -> None:
        """Leave the bus, and wake up whoever waits in receive(). Idempotent."""
        self._mailbox.close()

    def __len__(self) -> int:
        """Messages that wait."""
        return len(self._mailbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
