"""A message queue within one process: for tests, and for several caches that live side by side."""

from __future__ import annotations

from lapse.invalidation.fanout import Fanout, Mailbox

__all__ = ["Mailbox", "MemoryQueue"]


class MemoryQueue(Fanout):
    """Every subscriber gets every message, in one order.

        queue = MemoryQueue()
        first = MessageQueueInvalidation(cache_1, queue)
        second = MessageQueueInvalidation(cache_2, queue)

    Each of the two has a mailbox of its own; so has each thread that calls `receive()` itself. What
    is published before anybody subscribes waits for the first who does. A mailbox that holds
    `capacity` messages overflows: it drops them, and its owner learns that something is lost.

    Messages are dicts, copied once on the way in; treat what you receive as read-only. Any thread
    may call any method.
    """
