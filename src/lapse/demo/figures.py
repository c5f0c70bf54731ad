"""The figures of a run: counters while it goes on, and the result at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Counters", "Result", "Spread", "spread"]


class Spread(NamedTuple):
    """Quantiles of some seconds."""

    p50: float
    p99: float
    max: float


def spread(ordered: Sequence[float]) -> Spread | None:
    """The quantiles of sorted seconds; None if there are none."""
    if not ordered:
        return None
    last = len(ordered) - 1
    return Spread(ordered[last // 2], ordered[int(last * 0.99)], ordered[last])


class Counters(NamedTuple):
    """What a run has done so far."""

    seconds: float
    reads: int
    #: Reads that found an entry, from 0 to 1.
    hit_ratio: float
    #: Versions of rows that were overwritten, and those whose invalidation is in force.
    changes: int
    applied: int
    #: Reads of a value that had been outdated before they began, and those that must not be.
    stale: int
    faults: int


class Result(NamedTuple):
    """What a run has come to."""

    name: str
    seconds: float
    reads: int
    hit_ratio: float
    loads: int
    #: Versions of rows that were overwritten, and those whose invalidation was in force at the end.
    changes: int
    applied: int
    #: From just before the commit until the invalidation was in force; None without invalidations.
    lag: Spread | None
    #: Reads of a value that had been outdated before they began, and for how long.
    stale: int
    age: Spread | None
    #: Entries that were outdated at the end.
    outdated: int
    #: What must not have been: values served, entries left, changes that never got in force.
    violations: int
    #: Some of these, in words.
    examples: tuple[str, ...]

    @property
    def reads_per_second(self) -> float:
        """Of all readers together."""
        return self.reads / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {
            "reads_per_second": self.reads_per_second,
            "lag": self.lag and self.lag._asdict(),
            "age": self.age and self.age._asdict(),
            "examples": list(self.examples),
        }
