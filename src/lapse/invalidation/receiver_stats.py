"""The figures of a receiver, those of its source among them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lapse.invalidation.metrics import WireMeter
from lapse.invalidation.source import SourceCounts

__all__ = ["ReceiverCounts", "ReceiverStats", "figures"]

SAMPLES = 1024  # latencies that are remembered


class ReceiverStats(NamedTuple):
    """What one receiver and its source have done since they were made."""

    #: Messages that came, of whatever kind; 0 where the source does not count them.
    messages: int
    #: Invalidations that came, and those applied: what was translated is among these.
    received: int
    applied: int
    #: Live entries that they removed; not known of what was gathered in a window.
    removed: int
    #: Resyncs by reason.
    resyncs: dict[str, int]
    #: Holes in the numbers, second copies, own messages that came back, messages that could not be
    #: read, and messages of an unknown type.
    gaps: int
    duplicates: int
    echoes: int
    poison: int
    unknown: int
    #: Exceptions of the source, the cache and the callbacks; each is in the log.
    errors: int
    #: Messages sent, sends that failed, and messages that wait to be sent.
    published: int
    publish_failures: int
    unsent: int
    #: Seconds since anything came; None if nothing has.
    seconds_since_last_message: float | None
    #: Seconds from sent to in force by the clocks of sender and receiver, over the last batches
    #: whose time of sending is known; 0.0 if there is none.
    latency_p50: float
    latency_p99: float
    latency_max: float
    #: Bytes in and out, before and after compression.
    raw_in: int
    wire_in: int
    raw_out: int
    wire_out: int


class Samples:
    """The last so many numbers. One thread adds; any reads, as a list is copied at an instant."""

    __slots__ = ("_at", "_kept", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._at = 0
        self._kept: list[float] = []

    def append(self, number: float) -> None:
        """Keep it instead of the oldest."""
        if len(self._kept) < self._most:
            self._kept.append(number)
        else:
            self._kept[self._at] = number
            self._at = (self._at + 1) % self._most

    def sorted(self) -> list[float]:
        """The numbers that are kept, in order."""
        return sorted(self._kept)


@dataclass(slots=True)
class ReceiverCounts:
    """Counters that the receiver's thread advances."""

    received: int = 0
    applied: int = 0
    removed: int = 0
    errors: int = 0
    resyncs: Counter[str] = field(default_factory=Counter)
    latencies: Samples = field(default_factory=lambda: Samples(SAMPLES))
    #: Monotonic seconds.
    last_at: float | None = None


def figures(counts: ReceiverCounts, source: Any, wire: WireMeter, now: float) -> ReceiverStats:
    """Statistics from a receiver's counters and whatever its source can tell."""
    met = getattr(source, "counts", None) or SourceCounts()
    last_at = getattr(source, "last_message_at", None) or counts.last_at
    latencies = counts.latencies.sorted()
    return ReceiverStats(
        messages=met.messages,
        received=counts.received,
        applied=counts.applied,
        removed=counts.removed,
        resyncs=dict(counts.resyncs),
        gaps=met.gaps,
        duplicates=met.duplicates,
        echoes=met.echoes,
        poison=met.poison,
        unknown=met.unknown,
        errors=counts.errors,
        published=getattr(source, "published", 0),
        publish_failures=getattr(source, "publish_failures", 0),
        unsent=getattr(source, "unsent", 0),
        seconds_since_last_message=None if last_at is None else now - last_at,
        latency_p50=_at(latencies, 0.5),
        latency_p99=_at(latencies, 0.99),
        latency_max=_at(latencies, 1.0),
        raw_in=wire.raw_in,
        wire_in=wire.wire_in,
        raw_out=wire.raw_out,
        wire_out=wire.wire_out,
    )


def _at(latencies: list[float], share: float) -> float:
    return latencies[min(int(share * len(latencies)), len(latencies) - 1)] if latencies else 0.0
