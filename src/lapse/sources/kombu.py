"""Messages to every process over whatever kombu speaks: Redis and Valkey, RabbitMQ, memory, files.

    publish(message) ──► producer link ──► exchange `name` ──► a queue a process ──► consumer link
                                             (fanout)                                └► receive()

1. Receiving and publishing have a connection and a lock each: neither waits for the other.
2. A link that fails is closed, and the call that met it raises; the next call makes another.
3. receive() returns for the first time over a new link once its queue is bound, not before. So a
   caller who takes an error for a loss, and the next return for the end of it, misses nothing.
4. A forked child uses none of its parent's links, and says nothing over them.
5. Who closes waits for nobody: a call at work drops its link as it ends.

kombu_links.py has the links. Any thread may call anything; no caller's code runs under the locks.
"""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from lapse.invalidation.envelope import to_json
from lapse.invalidation.message import MessageError
from lapse.invalidation.process import watch
from lapse.invalidation.source import Delivery, MessagesLost
from lapse.sources.kombu_links import BINARY, JSON, Consumer, Producer
from lapse.sources.kombu_settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KombuQueue", "KombuTransport"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # no pattern and no path to any transport
_SLICE = 0.25  # seconds between looks at whether it was closed meanwhile
_IN_ORDER = ("amqp", "memory", "redis")


class KombuTransport:
    """An exchange of a broker that hands every message to every process; `url` names the broker.

    Args:
        url: such as "redis://host:6379/0" (Valkey too), "amqp://user:word@host//", "memory://" (the
            threads of this process). rediss:// and amqps:// check certificates and host names.
        name: of the exchange: up to 100 ASCII letters, digits, `_`, `.`, `-`. Who shares broker and
            name hears each other.
        timeout: seconds that each step of connecting, and a publish, may take until the link counts
            as dead.
        max_size: bytes of a message. What the transport reads before is the broker's to limit.
        tls: what kombu takes as `ssl`: {"ssl_ca_certs": path} with rediss, {"ca_certs": path} with
            amqps.
        transport_options: what kombu's transport takes besides.

    Connects when it is first used. Raises ValueError for a transport without fanout, a URL that
    kombu does not know, a name or a number out of range; ImportError where kombu, or the client
    library that its transport needs, is not installed.

    Safe to use from many threads, and on both sides of a fork. It belongs in a `with` block, or is
    closed.
    """

    #: May a message be bytes?
    binary = True
    #: Does what one sender publishes come in its order?
    ordered: bool
    #: Does what was sent while a link was down come when it is up again?
    replay = False
    #: What is sent while a link is down is lost.
    delivery: Delivery = "at-most-once"

    def __init__(
        self,
        url: str,
        *,
        name: str = "lapse",
        timeout: float = 1.0,
        max_size: int = 1 << 20,
        tls: Mapping[str, Any] | None = None,
        transport_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"name must be 1 to 100 of A-Z a-z 0-9 _ . -, not {name!r:.200}")
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        if not max_size >= 1:
            raise ValueError(f"max_size must be at least 1 byte, not {max_size!r}")
        self.name = name
        self._max_size = max_size
        self._settings = Settings(url, name, timeout, tls or {}, transport_options or {})
        self.ordered = self._settings.driver in _IN_ORDER
        self._inherited: list[Consumer | Producer | None] = []
        self._begin()
        watch(self)

    def _begin(self) -> None:
        self._receiving = threading.Lock()
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._consumer: Consumer | None = None
        self._producer: Producer | None = None
        self._missed: Exception | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} on {self._settings.driver}>"

    def subscribe(self) -> Self:
        """Another one of the same exchange, with links of its own; the caller's to close.

        It gets whatever is published after this call. If the broker does not answer, the first
        receive() raises what this would have. RuntimeError after close().
        """
        self._raise_if_closed()
        other = copy.copy(self)
        other._inherited = []
        other._begin()
        watch(other)
        try:
            other.receive(0)
        except Exception as error:
            other._missed = error
        return other

    def receive(self, timeout: float = 1) -> bytes | Mapping[str, Any] | None:
        """The next message; None if none comes within `timeout` seconds, or if it is closed.

        The first call, and the first after an error, connects, and returns None as soon as whatever
        is published is sure to come in. Raises what the transport raises once the link is dead:
        what was published until the next return may be lost. MessageError and MessagesLost are
        about messages, and leave the link as it is. RuntimeError after close().
        """
        end = time.monotonic() + timeout
        try:
            with self._receiving:
                self._raise_if_closed()
                return self._received(end)
        finally:
            self._finish_if_closed()

    def send(self, message: bytes | bytearray | memoryview | Mapping[str, Any]) -> None:
        """Hand a message to the broker; it is with it once this returns.

        Raises ValueError for one that is larger than `max_size`, TypeError or ValueError for one
        that is neither bytes nor JSON; what the transport raises if the link is dead or slow: the
        message may have gone out all the same. RuntimeError after close().
        """
        if isinstance(message, Mapping):
            body, content_type = to_json(message), JSON
        else:
            body, content_type = bytes(memoryview(message)), BINARY
        if len(body) > self._max_size:
            raise ValueError(f"a message of {len(body)} bytes; the limit is {self._max_size}")
        try:
            with self._sending:
                self._raise_if_closed()
                self._send(body, content_type)
        finally:
            self._finish_if_closed()

    def close(self) -> None:
        """End a receive() that waits, and drop the links. Idempotent.

        Waits for nobody: a call that is at work ends within half a second, or once connecting has
        failed, and drops its link then.
        """
        self._closed.set()
        self._finish_if_closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _received(self, end: float) -> bytes | Mapping[str, Any] | None:
        try:
            if self._consumer is None:
                self._consumer = self._new_consumer()
                return None
            return self._next(self._consumer, end)
        except (MessageError, MessagesLost):
            raise
        except BaseException:
            self._drop_consumer()
            raise

    def _next(self, link: Consumer, end: float) -> bytes | Mapping[str, Any] | None:
        while not self._closed.is_set():
            left = end - time.monotonic()
            message = link.next(max(0.0, min(left, _SLICE)))
            if message is not None:
                return message
            if left <= 0:
                break
        return None

    def _send(self, body: bytes, content_type: str) -> None:
        try:
            if self._producer is None:
                self._forget_inherited()
                self._producer = Producer(self._settings)
            self._producer.send(body, content_type)
        except BaseException:
            self._drop_producer()
            raise

    def _new_consumer(self) -> Consumer:
        error, self._missed = self._missed, None
        if error is not None:
            raise error
        self._forget_inherited()
        return Consumer(self._settings, self._max_size)

    def _drop_consumer(self) -> None:
        link, self._consumer = self._consumer, None
        if link is not None:
            link.close()

    def _drop_producer(self) -> None:
        link, self._producer = self._producer, None
        if link is not None:
            link.close()

    def _finish_if_closed(self) -> None:
        """Drop the links that nobody is at work with; whoever is comes here afterwards."""
        if not self._closed.is_set():
            return
        for lock, drop in (
            (self._receiving, self._drop_consumer),
            (self._sending, self._drop_producer),
        ):
            if lock.acquire(blocking=False):
                try:
                    drop()
                finally:
                    lock.release()

    def _raise_if_closed(self) -> None:
        if self._closed.is_set():
            raise RuntimeError("the queue is closed")

    def _renew_in_child(self) -> None:
        """After a fork: other locks, and links of its own when it needs them.

        The inherited ones are kept, so that nothing closes the parent's connections.
        """
        closed = self._closed.is_set()
        self._inherited += [self._consumer, self._producer]
        self._begin()
        if closed:
            self._closed.set()

    def _forget_inherited(self) -> None:
        """Within a process there is no connection to spoil, but a queue that nobody would empty."""
        while self._inherited and self._settings.driver == "memory":
            link = self._inherited.pop()
            if link is not None:
                link.close()


class KombuQueue(KombuTransport):
    """A message queue for `MessageQueueInvalidation`: receive(timeout=1) and publish(message)."""

    #: Every process gets every message.
    broadcast: Literal[True] = True

    def publish(self, message: bytes | bytearray | memoryview | Mapping[str, Any]) -> None:
        """As `send()`."""
        self.send(message)
