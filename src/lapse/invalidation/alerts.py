"""Telling people that invalidation is in trouble: one line in the log, and the callbacks given.

resync           what a source had brought was taken back: the cache was emptied, or softly so
gap, poison      messages are missing; one could not be read
full             too many messages waited to be sent, or invalidations behind a window: what
                 covers them took their place
dead             a link or a source does not answer
publish_failed   a message could not be sent; it waits
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from lapse.invalidation.counting import counting

__all__ = ["Alert", "AlertKind", "Alerts"]

AlertKind = Literal["resync", "gap", "poison", "full", "dead", "publish_failed"]

log = logging.getLogger("lapse.invalidation")


class Alert(NamedTuple):
    """What is wrong, and with which source."""

    kind: AlertKind
    #: The name of the source.
    source: str
    #: For people.
    reason: str
    #: What was raised, if anything was.
    error: BaseException | None = None


class Alerts:
    """Tells each alert to the log and to every callback.

    Threads may share one.

    Args:
        callbacks: one callable or several, each called with an `Alert`, by whichever thread has
            noticed, with no lock held; what they raise is logged and counted.
    """

    __slots__ = ("_callbacks", "errors", "told")

    def __init__(
        self,
        callbacks: Callable[[Alert], object] | Iterable[Callable[[Alert], object]] | None = None,
    ) -> None:
        if callbacks is None:
            callbacks = ()
        self._callbacks = (callbacks,) if callable(callbacks) else tuple(callbacks)
        for each in self._callbacks:
            if not callable(each):
                raise TypeError(f"an alert goes to callables, not to a {type(each).__name__}")
        #: Exceptions that callbacks have raised.
        self.errors = 0
        #: Alerts so far, by kind.
        self.told: Counter[str] = Counter()

    def tell(self, alert: Alert) -> None:
        """Tell it. Never raises an Exception."""
        with counting():
            self.told[alert.kind] += 1
        error = "" if alert.error is None else f" ({type(alert.error).__name__}: {alert.error})"
        log.warning("%s: %s: %s%s", alert.source, alert.kind, alert.reason, error)
        for each in self._callbacks:
            try:
                each(alert)
            except Exception:
                with counting():
                    self.errors += 1
                log.exception("an alert's callback failed")
