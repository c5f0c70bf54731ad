"""Messages within one process: every subscriber gets every message, in one order.

    publish ──► mailbox ──► receive        one bounded mailbox a subscriber
            ──► mailbox ──► receive

Invariants
    1. The messages that one mailbox holds are in the order of their publishing.
    2. A mailbox that overflows drops what it holds, and its owner learns so: the next receive()
       raises MessagesLost, once.
    3. What is published while nobody subscribes waits for the first who does.
    4. No foreign code runs under the lock, which is one for the fan-out and all of its mailboxes.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

from lapse.forks import alive
from lapse.invalidation.process import watch
from lapse.invalidation.source import Delivery, MessagesLost

__all__ = ["Fanout", "Mailbox"]

GLANCE = 0.1  # seconds after which a reader looks by himself


class Fanout:
    """Copies each message into every mailbox. Any thread may call any method.

    Args:
        capacity: messages that a mailbox holds before it overflows.
    """

    binary = False
    ordered = True
    replay = False
    broadcast = True
    delivery: Delivery = "at-most-once"

    def __init__(self, capacity: int = 10_000) -> None:
        if not capacity >= 1:
            raise ValueError(f"capacity must be at least 1, not {capacity!r}")
        self._capacity = capacity
        self._boxes: weakref.WeakValueDictionary[int, Mailbox] = weakref.WeakValueDictionary()
        self._early = Mailbox()  # of the first who subscribes
        self._own = threading.local()
        self._changed = threading.Condition(threading.RLock())
        self.closed = False
        watch(self)

    def subscribe(self) -> Mailbox:
        """A mailbox that gets every message from now on, and what nobody has got yet."""
        with self._changed:
            self._check_open()
            while True:
                box, early = self._early, Mailbox()
                box._fanout = self
                self._boxes[id(box)] = box  # first: a handler may publish
                if self._early is box:  # else a handler has subscribed, and it is his
                    self._early = early
                    return box

    def publish(self, message: Any) -> None:
        """Hand a message, or a copy of a mapping, to everybody. RuntimeError if closed."""
        if isinstance(message, Mapping):
            message = dict(message)
        with self._changed:
            self._check_open()
            early = self._early  # first: a handler may subscribe, and it is his then
            for box in alive(self._boxes) or [early]:
                box._put(message, self._capacity)
            self._changed.notify_all()

    def receive(self, timeout: float | None = 1.0) -> Any:
        """The next message for the calling thread, which subscribes by its first call.

        None if there is none within `timeout` seconds. Raises MessagesLost as a mailbox does.
        """
        box: Mailbox | None = getattr(self._own, "box", None)
        if box is None:
            box = self._own.box = self.subscribe()
        return box.receive(timeout)

    def close(self) -> None:
        """Refuse further messages and wake up whoever waits for one. Idempotent."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed")

    def _renew_in_child(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._own = threading.local()


class Mailbox:
    """One subscriber's end of a fan-out, a transport by itself. Dies with its last reference."""

    binary = Fanout.binary
    ordered = Fanout.ordered
    replay = Fanout.replay
    broadcast = Fanout.broadcast
    delivery: Delivery = Fanout.delivery

    _fanout: Fanout  # once somebody has it

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._lost = False
        self.closed = False

    def publish(self, message: Any) -> None:
        """Hand a message to every subscriber, this one included."""
        self._fanout.publish(message)

    def receive(self, timeout: float | None = 1.0) -> Any:
        """The next message; None if there is none within `timeout` seconds (None: any time).

        Raises MessagesLost if some were dropped because too many waited. None once it is closed.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._fanout._changed:
            while True:
                if self._lost:
                    self._lost = False
                    raise MessagesLost("overflow")
                if self._waiting:
                    return self._waiting.popleft()
                left = None if end is None else end - time.monotonic()
                if self.closed or self._fanout.closed or (left is not None and left <= 0):
                    return None
                # A handler may have published right before: then nobody wakes this one up.
                self._fanout._changed.wait(GLANCE if left is None else min(left, GLANCE))

    def close(self) -> None:
        """Get no more messages, and wake up whoever waits for one. Idempotent."""
        with self._fanout._changed:
            self.closed = True
            self._waiting.clear()
            self._fanout._boxes.pop(id(self), None)
            self._fanout._changed.notify_all()

    def __len__(self) -> int:
        return len(self._waiting)

    def _put(self, message: Any, capacity: int) -> None:
        if len(self._waiting) >= capacity:
            self._waiting.clear()
            self._lost = True
        self._waiting.append(message)
