"""The two links of a kombu transport: one to publish on, one that what is published comes in by.

    Producer.send() ──► exchange, a fanout ──► a queue of each consumer ──► Consumer.next()

1. A link has a connection of its own and serves one thread at a time: its owner holds a lock.
2. A link that has raised is broken, unless it raised MessagesLost or MessageError: its owner closes
   it and makes another.
3. Once a Consumer is made its queue is bound: nothing that is published from then on passes it by.
4. Bodies come as they were sent: kombu neither decompresses nor decodes them.
5. What waits is bounded. What comes while there is no room is lost, and next() says so.

Used by kombu.py only. kombu has no types: its objects are Any here.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from lapse.invalidation.message import MessageError
from lapse.invalidation.source import MessagesLost
from lapse.sources.kombu_settings import BACKLOG, Settings

__all__ = ["BINARY", "JSON", "Consumer", "Producer"]

BINARY, JSON = "application/octet-stream", "application/json"

UNANSWERED = 2  # questions after which a server counts as dead

#: Of the transport within this process: all of its links share one routing table, without a lock.
_in_process = threading.Lock()


class _Link:
    """A connection and a channel. Raises whatever the transport raises where it is dead."""

    def __init__(self, settings: Settings, *, idle: bool) -> None:
        self._settings = settings
        self._wire: Any = None
        self._connection = settings.connection(idle=idle)
        try:
            self._connection.ensure_connection(
                max_retries=max(0, len(self._connection.alt) - 1),  # each host of the URL once
                interval_start=0,
                interval_step=0,
                interval_max=0,
                reraise_as_library_errors=False,
            )
            self._wire = self._connection.connection
            self._channel = self._connection.channel()
            with self._shared:
                self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection, without a word that a dead broker would have to answer."""
        with contextlib.suppress(Exception), self._shared:
            self._leave()
        with contextlib.suppress(Exception):
            if self._settings.driver == "amqp":
                self._wire.collect()
        with contextlib.suppress(Exception):
            self._connection.release()

    @property
    def _shared(self) -> contextlib.AbstractContextManager[object]:
        """What is to be held while the transport is used."""
        return _in_process if self._settings.driver == "memory" else contextlib.nullcontext()

    def _open(self) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        """Take back what the transport would keep of this link."""


class Producer(_Link):
    """The link that messages go out by."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, idle=False)

    def send(self, body: bytes, content_type: str) -> None:
        """Hand a message over. What it raises says nothing of whether the message went out."""
        with self._shared:
            self._producer.publish(
                body,
                content_type=content_type,
                content_encoding="utf-8" if content_type == JSON else "binary",
                confirm_timeout=self._settings.timeout,
            )

    def _open(self) -> None:
        self._producer = self._connection.Producer(self._channel, self._settings.exchange())
        self._producer.declare()
        if self._settings.driver == "redis":
            # For each message kombu makes a new client, which takes longer than to send it.
            with self._channel.conn_or_acquire() as client:
                self._channel.conn_or_acquire = lambda _=None: contextlib.nullcontext(client)


class Consumer(_Link):
    """The link that messages come in by."""

    def __init__(self, settings: Settings, max_size: int) -> None:
        self._max_size = max_size
        self._waiting: deque[Any] = deque()
        self._lost = False
        self._probe_at = 0.0
        super().__init__(settings, idle=True)

    def next(self, timeout: float) -> bytes | Mapping[str, Any] | None:
        """The next message; None if none comes within `timeout` seconds.

        Raises MessagesLost where messages are missing, MessageError for one that is not accepted.
        """
        if not self._waiting:
            if self._lost:
                self._lost = False
                raise MessagesLost(f"more than {BACKLOG} messages waited")
            self._wait(timeout)
        return _content(self._waiting.popleft(), self._max_size) if self._waiting else None

    def _open(self) -> None:
        self._channel.Message = _as_sent(self._channel.Message)
        self._queue = self._settings.queue()(self._channel)
        consumer = self._connection.Consumer(
            [self._queue], channel=self._channel, no_ack=True, on_message=self._take
        )
        consumer.consume()
        if self._settings.driver == "redis":
            # The first wait sends the subscription, and the server's answer to it ends the wait.
            self._connection.drain_events(timeout=self._settings.timeout)

    def _leave(self) -> None:
        if self._settings.driver not in ("amqp", "redis"):  # which forget a queue by themselves
            self._queue.delete()
            self._queue.unbind_from(self._queue.exchange)  # which delete() forgets in memory

    def _take(self, message: Any) -> None:
        if len(self._waiting) < BACKLOG:
            self._waiting.append(message)
        else:
            self._lost = True

    def _wait(self, timeout: float) -> None:
        if not self._connection.connected:
            raise ConnectionError("the connection is gone")  # kombu would go on with an empty one
        self._connection.heartbeat_check()
        if self._settings.driver == "redis":
            self._probe()
        with contextlib.suppress(TimeoutError):
            self._connection.drain_events(timeout=timeout)

    def _probe(self) -> None:
        """Ask a silent server for a sign of life, which kombu does only in an event loop."""
        now = time.monotonic()
        if now < self._probe_at:
            return
        self._probe_at = now + self._settings.sign_of_life
        subscription = self._channel.subclient
        if subscription.health_check_response_counter >= UNANSWERED:
            raise ConnectionError("the server does not answer any more")
        subscription.check_health()


def _content(message: Any, max_size: int) -> bytes | Mapping[str, Any]:
    body = message.body
    body = body.encode() if isinstance(body, str) else bytes(body or b"")
    if len(body) > max_size:
        raise MessageError(f"a message of {len(body)} bytes; the limit is {max_size}")
    if message.headers.get("compression"):
        raise MessageError("a message compressed by kombu")
    if message.content_type == BINARY:
        return body
    if message.content_type != JSON:
        raise MessageError(f"a message of the type {str(message.content_type)[:100]!r}")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise MessageError(f"a message that is no JSON: {fault}") from fault
    if not isinstance(content, dict):
        raise MessageError("a message is an object")
    return content


def _as_sent(kind: Any) -> Any:
    """The same class of message, but one that leaves its body alone.

    kombu inflates a body as the message is made, without a cap, where a header asks for it; but not
    that of a message that already has an error.
    """

    class AsSent(kind):  # type: ignore[misc]
        errors: Any = ("this body is read as it is",)

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.errors = []

    return AsSent


def _renew_locks() -> None:
    """In a forked child: locks that threads may have held which it does not have.

    kombu has one for each cached property of a class, which all objects of the class share, and
    does not renew it.
    """
    global _in_process
    _in_process = threading.Lock()
    for name, module in list(sys.modules.items()):
        if name.startswith("kombu."):
            for kind in list(vars(module).values()):
                for each in vars(kind).values() if isinstance(kind, type) else ():
                    if type(each).__name__ == "cached_property" and hasattr(each, "lock"):
                        each.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
