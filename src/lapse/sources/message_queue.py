"""MessageQueueInvalidation: a cache kept true by the messages of a queue, and news for the others.

    publish_invalidation() ──► own cache, now
                           ──► the queue ──► every other cache
    the queue ──► Channel ──► Receiver ──► own cache

A publisher applies first and publishes then, so that its own cache is true when the call returns;
what comes back of its own messages is dropped by their origin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

from lapse.invalidation.channel import Channel
from lapse.invalidation.envelope import fits_json
from lapse.invalidation.facade import Invalidator, OnAlert
from lapse.invalidation.limits import Limits
from lapse.invalidation.message import Invalidation, parse, spell_queue
from lapse.invalidation.queue import raise_first
from lapse.invalidation.receiver import OnResync
from lapse.invalidation.source import Batch
from lapse.invalidation.transport import method_of, own_end, traits_of

__all__ = ["MessageQueueInvalidation"]

HEARTBEAT = 1.0  # seconds, on a queue that is known to bring everything to everybody


class MessageQueueInvalidation(Invalidator):
    """Applies the invalidations of a message queue to a cache, and publishes others.

    Args:
        cache: a cache of lapse, or any with `delete(key)` and `delete_pattern(pattern)`.
        message_queue: any object with `receive(timeout=seconds)`, which answers a message (a dict,
            or bytes or str of JSON) or None, and `publish(message)`; transport.py has what it may
            say of itself. It is the caller's to close.
        start: receive at once; False: when start_message_processing() is called.
        on_resync: what a loss of messages does: "clear" empties the cache, "soft" lets entries be
            served for `soft_ttl` seconds more where the cache can do that, a callable gets the
            `Resync` and answers the invalidations that make it good.
        on_alert: one callable or several, called with each `Alert`.
        name: in the thread's name (`lapse-<name>`), in alerts and statistics.
        window: seconds that invalidations may gather before they are applied; 0 applies at once.
        translate: called with each `Batch`; answers the invalidations that follow from it. Messages
            of a type of your own are in its `changes`.
        listener: called with each `Batch` that brought something, once it is applied.
        heartbeat: seconds between messages that tell the others what should have come; None for
            none. "auto" is 1.0 on a queue that says that it is `broadcast`, and none on others.
        liveness: seconds within which an own message must come back; None to trust the link.
        limits: caps of a message.

    Keep a reference to it: it ends when nobody has one, as by close(). Raises ValueError for a
    setting out of range. Any thread may call any method.
    """

    default_name = "message-queue"

    def __init__(
        self,
        cache: Any,
        message_queue: Any,
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
        self.message_queue = message_queue
        end, close = own_end(message_queue)
        traits = traits_of(end)
        if heartbeat == "auto":
            heartbeat = HEARTBEAT if traits.broadcast else None
        self._limits = limits or Limits()
        self.channel = Channel(
            partial(_receive, end),
            end.publish,
            spell=spell_queue,
            name=self.name,
            **traits._asdict(),
            heartbeat=heartbeat,
            liveness=liveness,
            limits=self._limits,
            meter=self.queue.wire,
            alerts=self.alerts,
            commit=method_of(end, "commit"),
            on_close=close,
        )
        self._listen(
            self.channel, start=start, on_resync=on_resync, soft_ttl=soft_ttl,
            translate=translate, after=listener,
        )  # fmt: skip

    def start_message_processing(self) -> None:
        """Start the thread that receives, unless it runs. RuntimeError if closed."""
        self.receiver.start()

    def publish_invalidation(self, invalidation_type: str, **kwargs: Any) -> None:
        """Apply an invalidation here, and publish it to the others.

        `publish_invalidation("invalidate_key", key="user:1")` sends {"type": "invalidate_key",
        "timestamp": now, "key": "user:1"}, with an origin and a sequence added. Other types are
        invalidate_pattern (pattern=), invalidate_table (table=), invalidate_tag (tag=), clear_all;
        messages of a type of your own are published as they are. While the queue is down they wait,
        and are sent later: the call does not raise for that. Raises ValueError if the target is
        missing or of a type that cannot be sent, RuntimeError if closed; and what the cache raises,
        once it is published all the same: the others must not wait for a cache that is down.
        """
        message = {"type": invalidation_type, "timestamp": time.time(), **kwargs}
        parsed = parse(message, limits=self._limits)
        if parsed.kind in ("heartbeat", "ack"):
            raise ValueError(f"{invalidation_type} is no invalidation")
        answers = self.queue.apply(parsed.invalidations)
        if self.channel.binary and not fits_json(parsed.invalidations):
            self.channel.publish(parsed.invalidations)
        else:
            self.channel.publish_message(message)
        raise_first(answers)

    def publish(self, invalidations: Iterable[Invalidation]) -> None:
        """Apply `Invalidation`s here, and publish them: as one frame where the queue takes bytes.

        Raises as publish_invalidation() does, and TypeError for what is no `Invalidation`.
        """
        items = list(invalidations)
        answers = self.queue.apply(items)
        self.channel.publish(items)
        raise_first(answers)


def _receive(end: Any, seconds: float) -> Any:
    return end.receive(timeout=seconds)
