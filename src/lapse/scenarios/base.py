"""What the scenarios have in common: events of a message queue, and the rules that say what goes.

    the queue ──► Channel ──► Receiver ──► events of known types ──► rules ──► OptimizedInvalidation
                                       └─► our own invalidations ───────────►        │
    apply_event(), publish_invalidation() ─────────────────────────► rules ──►     cache

Invariants
    1. One event is one batch: what its rules name goes in one call of the queue, be it a hundred
       thousand timelines.
    2. An event that comes and cannot be read, or whose rules fail, is poison: nobody knows what it
       has made outdated, so a resync follows. One that a caller gives raises there.
    3. Events that no rule is about are counted, and change nothing.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from lapse import forks
from lapse.invalidation.facade import OnAlert
from lapse.invalidation.message import Invalidation
from lapse.invalidation.queue import OptimizedInvalidation
from lapse.invalidation.receiver import OnResync
from lapse.invalidation.rules import Event, InvalidationRules
from lapse.invalidation.source import Batch
from lapse.invalidation.targets import Outcomes
from lapse.sources.message_queue import MessageQueueInvalidation

__all__ = ["EventStats", "Scenario"]


class EventStats(NamedTuple):
    """What the events of one scenario have done since it was made."""

    #: Events that have been applied.
    applied: int = 0
    #: Events that no rule is about.
    unmatched: int = 0
    #: Events that lacked a field, or whose rules or cache raised.
    failed: int = 0
    #: Keys, patterns and tags that the rules have named.
    targets: int = 0
    #: Live entries that went.
    removed: int = 0


class Scenario(MessageQueueInvalidation):
    """A cache that events of the application keep true. For subclassing.

    Args:
        cache: a cache of lapse, or any with `delete(key)` and `delete_pattern(pattern)`.
        message_queue: any object with `receive(timeout=seconds)` and `publish(message)`.
        rules: which entries each event makes outdated.
        start: receive at once; False: when start_invalidation_processing() is called.
        on_resync, soft_ttl, on_alert, name, options: as `MessageQueueInvalidation` takes them. A
            `window` is for messages that are invalidations already; events are applied at once.

    Messages such as {"type": "invalidate_key", "key": ...} are applied, too. `stats()` has the
    receiver's figures, for which events are messages of an unknown type. Any thread may call any
    method.
    """

    def __init__(
        self,
        cache: Any,
        message_queue: Any,
        rules: InvalidationRules,
        *,
        start: bool = True,
        on_resync: OnResync = "clear",
        soft_ttl: float = 60.0,
        on_alert: OnAlert = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self._events = _Events(rules)
        super().__init__(
            cache, message_queue, start=False, on_resync=on_resync, soft_ttl=soft_ttl,
            on_alert=on_alert, name=name, translate=self._events.receive, **options,
        )  # fmt: skip
        self._events.queue = self.queue
        if start:
            self.start_invalidation_processing()

    @property
    def rules(self) -> InvalidationRules:
        """Which entries each event makes outdated."""
        return self._events.rules

    def start_invalidation_processing(self) -> None:
        """Start the thread that receives, unless it runs. RuntimeError if closed."""
        self.receiver.start()

    def apply_event(self, event: Event) -> int:
        """Apply the rules to an event now, here alone; how many live entries went.

        Raises RuleError if it lacks a field, RuntimeError if closed, and what a database or the
        cache raises. Costs what the rules name.
        """
        return self._events.apply(event)

    def publish_invalidation(self, invalidation_type: str, **kwargs: Any) -> None:
        """Apply an event, or an invalidation, here, and publish it to the others.

        Raises as apply_event() does for an event, and as `MessageQueueInvalidation` does.
        """
        if invalidation_type in self.rules.types:
            self.apply_event({"type": invalidation_type, **kwargs})
        super().publish_invalidation(invalidation_type, **kwargs)

    def event_stats(self) -> EventStats:
        """Figures of the events, all of one instant."""
        return self._events.stats

    def get_stats(self) -> dict[str, Any]:
        """Every figure as a JSON-ready dict."""
        return super().get_stats() | {"events": self.event_stats()._asdict()}


class _Events:
    """Applies events, for a scenario and for its receiver, which must not hold the scenario."""

    def __init__(self, rules: InvalidationRules) -> None:
        self.rules = rules
        self.queue: OptimizedInvalidation
        self.stats = EventStats()
        self._lock = threading.RLock()  # re-entrant: a finalizer may count in its midst
        forks.watch(self)

    def _after_fork(self) -> None:
        """In a forked child no other thread holds the lock, whatever it looks like."""
        self._lock = threading.RLock()

    def receive(self, batch: Batch) -> list[Invalidation]:
        """Apply the events of a batch, all of them before the first error is raised."""
        errors: list[Exception] = []
        for event in batch.changes:
            try:
                self.apply(event)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return []

    def apply(self, event: Event) -> int:
        """Apply one event; how many live entries went."""
        if not any(rule.applies(event) for rule in self.rules):
            self._count(unmatched=1)
            return 0
        try:
            groups = self.rules.groups(event)
            removed = _removed(self.queue.apply_groups(groups))
        except Exception:
            self._count(failed=1)
            raise
        self._count(applied=1, targets=groups.size, removed=removed)
        return removed

    def _count(self, **more: int) -> None:
        with self._lock:
            grown = {name: getattr(self.stats, name) + n for name, n in more.items()}
            self.stats = self.stats._replace(**grown)


def _removed(outcomes: Outcomes) -> int:
    """How many entries went; raises what one target has raised."""
    for outcome in outcomes:
        for error in outcome.errors.values():
            raise error
    return sum(sum(outcome.removed) for outcome in outcomes)
