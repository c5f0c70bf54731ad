"""The figures of an invalidation queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lapse.invalidation.targets import Outcomes

__all__ = ["Counts", "QueueStats"]


class QueueStats(NamedTuple):
    """Counters of one queue since it was made, and its latency, throughput, memory and network."""

    #: Items accepted; each is applied sooner or later.
    enqueued: int
    #: Items whose effect is in force, by themselves or through what covers them.
    applied: int
    #: Items accepted and not applied yet.
    depth: int
    #: Batches taken off the queue, their mean size and the largest.
    batches: int
    batch_mean: float
    batch_max: int
    #: Operations that removed a live entry, and those that removed none.
    matched: int
    noops: int
    #: Patterns, tables, tags and clearings dropped because their batch named them before.
    duplicates: int
    #: Items given up for operations that cover them, and how many times that was done.
    collapsed: int
    collapses: int
    #: Operations that raised.
    errors: int
    #: Seconds from enqueued to applied, to 1/16 and a tick of the coarse clock; 0.0 if none was.
    latency_p50: float
    latency_p99: float
    latency_max: float
    #: Items applied a second, over the life of the queue.
    throughput: float
    #: Bytes of the queue itself, full or empty.
    memory: int
    #: Bytes of batches encoded and decoded, before and after compression (`queue.wire`).
    raw_out: int
    wire_out: int
    raw_in: int
    wire_in: int


@dataclass(slots=True)
class Counts:
    """Counters that change under the queue's flush lock; the last two under its short one."""

    applied: int = 0
    #: Items that apply() was called with.
    direct: int = 0
    batches: int = 0
    batched: int = 0
    batch_max: int = 0
    matched: int = 0
    noops: int = 0
    duplicates: int = 0
    errors: int = 0
    collapsed: int = 0
    collapses: int = 0

    def batch(self, size: int, operations: int) -> None:
        """A batch of `size` items, taken off the queue, was applied as so many operations."""
        self.batches += 1
        self.batched += size
        self.batch_max = max(self.batch_max, size)
        self.duplicates += size - operations

    def add(self, outcomes: Outcomes) -> None:
        """What the operations did."""
        for removed, errors in outcomes:
            if not removed:
                continue
            nothing = removed.count(0)
            self.matched += len(removed) - nothing
            self.noops += nothing - len(errors)
            self.errors += len(errors)
