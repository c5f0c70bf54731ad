"""What the classes that receive invalidations have in common: a cache, a queue, a receiver, alerts.

    Invalidator ──► Receiver (a thread) ──► Source
        └──► OptimizedInvalidation ──► cache

A class of its own makes its source in its constructor and hands it to `_listen()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from lapse.invalidation.alerts import Alert, Alerts
from lapse.invalidation.message import Invalidation
from lapse.invalidation.queue import OptimizedInvalidation
from lapse.invalidation.receiver import OnResync, Receiver
from lapse.invalidation.receiver_stats import ReceiverStats
from lapse.invalidation.source import Batch, Source

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Invalidator", "OnAlert"]

OnAlert = Callable[[Alert], object] | Iterable[Callable[[Alert], object]] | None


class Invalidator:
    """A cache that is kept true by a source of invalidations. For subclassing.

    Args:
        cache: a cache of lapse, or any object that `OptimizedInvalidation` takes.
        name: in the thread's name, in alerts and statistics.
        on_alert: one callable or several, called with each `Alert`.
        window: seconds that invalidations may gather before they are applied; 0 applies at once.

    Any thread may call any method. It ends by close(), or when nobody refers to it any more.
    """

    #: The name where none is given.
    default_name = "invalidator"

    def __init__(
        self,
        cache: Any,
        *,
        name: str | None = None,
        on_alert: OnAlert = None,
        window: float = 0.0,
    ) -> None:
        if not window >= 0:
            raise ValueError(f"window must not be negative, but is {window!r}")
        self.cache = cache
        self.name = name or self.default_name
        self.alerts = Alerts(on_alert)
        #: Applies everything.
        self.queue = OptimizedInvalidation(
            cache, batch_timeout=window or 1.0, start=window > 0, name=self.name
        )
        self._window = window
        self.receiver: Receiver

    def _listen(
        self,
        source: Source,
        *,
        start: bool = True,
        on_resync: OnResync = "clear",
        soft_ttl: float = 60.0,
        translate: Callable[[Batch], Iterable[Invalidation]] | None = None,
        after: Callable[[Batch], object] | None = None,
    ) -> None:
        """Receive from `source`, in a thread of its own once started; `Receiver` has the rest."""
        self.receiver = Receiver(
            source, self.queue, name=self.name, on_resync=on_resync, soft_ttl=soft_ttl,
            alerts=self.alerts, translate=translate, after=after, window=self._window,
        )  # fmt: skip
        if start:
            self.receiver.start()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self.queue.closed

    def close(self) -> None:
        """End the thread, apply what waits, and refuse the rest. Idempotent; within a second."""
        try:
            self.receiver.close()
        finally:
            self.queue.close()

    def stats(self) -> ReceiverStats:
        """Figures of nearly one instant; `queue.stats()` has those of the queue."""
        return self.receiver.stats()

    def get_stats(self) -> dict[str, Any]:
        """The same as a JSON-ready dict, with the queue's, the alerts', the name and the class."""
        return self.stats()._asdict() | {
            "queue": self.queue.get_stats(),
            "alerts": dict(self.alerts.told),
            "name": self.name,
            "class": type(self).__name__,
        }

    def __enter__(self) -> Self:
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "running" if self.receiver.running else "held"
        return f"{type(self).__name__}({self.name!r}, {state})"
