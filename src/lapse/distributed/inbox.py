"""What has come and is not read yet: a bounded queue that says so when it had to drop something.

    put() ──► | message | message | mark | message | ──► get()
                                     ^ MessagesLost is raised, once, at the place of the loss

1. What is put while there is no room is dropped, and leaves one mark, however many are dropped.
2. A reader meets the mark where the messages are missing: after what came before it.
3. No more than `capacity` messages of `room` bytes together are held, and the marks between them.

Any thread may put and get. One lock, held for a few additions; nobody waits under it. It is
re-entrant, because a finalizer that runs in their midst may close the inbox.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import Any

from lapse.invalidation.source import MessagesLost

__all__ = ["Inbox"]

_END = object()  # the last item of a closed inbox: each reader that meets it puts it back


class Inbox:
    """A bounded queue of messages between who receives them and who reads them.

    Args:
        capacity: messages that may wait.
        room: bytes that may wait, as far as put() is told of them; None = any number.

    Raises ValueError for a capacity below 1.
    """

    def __init__(self, capacity: int, room: int | None = None) -> None:
        if not capacity >= 1:
            raise ValueError(f"capacity must be at least 1, not {capacity!r}")
        self._capacity = capacity
        self._room = room
        self.closed = False
        #: Messages that were taken in.
        self.accepted = 0
        #: Messages that were dropped because there was no room for them.
        self.dropped = 0
        self._renew()

    def _renew(self) -> None:
        self._short = threading.RLock()
        self._waiting: queue.SimpleQueue[tuple[Any, int]] = queue.SimpleQueue()
        self._count = self._size = 0  # messages and bytes that wait
        self._last_mark: MessagesLost | None = None  # if nothing waits behind it
        self._reading = False  # is a message in a reader's hands?

    def put(self, message: Any, size: int = 0) -> bool:
        """Add a message of `size` bytes; False, and a mark, if there is no room. Never waits."""
        with self._short:
            if self.closed:
                return False
            if self._is_full(size):
                self.dropped += 1
                self._mark("overflow")
                return False
            self._waiting.put((message, size))  # first: there may be no memory for it
            self._count += 1
            self._size += size
            self.accepted += 1
            self._last_mark = None
            return True

    def lose(self, reason: str) -> None:
        """Mark that messages are missing after those that have been put."""
        with self._short:
            self._mark(reason)

    def get(self, timeout: float | None = None) -> Any:
        """The next message; None if none comes within `timeout` seconds (None: any time).

        Raises MessagesLost where messages are missing, with the reason ("overflow", "reconnected",
        "fork"), and RuntimeError once the inbox is closed.
        """
        self._reading = False
        seconds = None if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        try:
            message, size = self._waiting.get(timeout=seconds)
        except queue.Empty:
            return None
        if message is _END:
            self._waiting.put((_END, 0))
            raise RuntimeError("the inbox is closed")
        with self._short:
            self._reading = True
            if not isinstance(message, MessagesLost):
                self._count -= 1
                self._size -= size
                return message
            if message is self._last_mark:
                self._last_mark = None
        raise message

    def close(self) -> None:
        """Refuse what comes from now on, forget what waits, and wake who reads. Idempotent."""
        with self._short:
            self.closed = True
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put((_END, 0))

    def after_fork(self) -> None:
        """In a forked child: a free lock, and a mark for what was here or in a reader's hands.

        The readers of the parent have no part in the child, so what one of them had taken and not
        yet come back for would be missing here.
        """
        lost = self._count > 0 or self._last_mark is not None or self._reading
        self._renew()
        if self.closed:
            self._waiting.put((_END, 0))
        elif lost:
            self._mark("fork")

    def _is_full(self, size: int) -> bool:
        if self._count >= self._capacity:
            return True
        return self._room is not None and self._size + size > self._room

    def _mark(self, reason: str) -> None:
        if self._last_mark is None:
            self._last_mark = MessagesLost(reason)
            self._waiting.put((self._last_mark, 0))

    def __len__(self) -> int:
        return self._count
