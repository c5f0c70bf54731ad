"""Replays a trace through bounded caches: every policy at every size, one after the other.

Every request is a read; a miss stores the key; nothing expires. A rate is that of the bare loop,
in requests a second, the stores after misses included.
"""

from __future__ import annotations

__all__ = ["Comparison", "Outcome", "Workload", "compare", "lineup", "read"]

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any, NamedTuple

from lapse.traces import Key, Trace

from .contenders import RIVALS, Contender
from .optimum import NAME, optimum
from .sizes import Size

_TURN_REQUESTS = 65_536  # between two words about the progress

_Progress = Callable[[int], None]


class Workload(NamedTuple):
    """A trace in memory; equal keys are one object."""

    trace: str
    format: str
    requests: list[Key]
    distinct_keys: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy did at one size."""

    name: str
    package: str
    version: str
    maxsize: int
    hits: int
    hit_ratio: float
    #: None for the optimum and for what only simulates a cache.
    requests_per_second: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcomes, by size and the optimum first, and what they are about."""

    trace: str
    format: str
    requests: int
    distinct_keys: int
    outcomes: tuple[Outcome, ...]
    #: The rivals that are not installed, and the packages that have them.
    absent: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON-ready types."""
        return asdict(self)


def read(trace: Trace, progress: _Progress) -> Workload:
    """Read a trace to its end; `progress` is called with the number of requests so far.

    Raises:
        TraceError: The trace turns out to be unreadable.
    """
    requests: list[Key] = []
    known: dict[Key, Key] = {}
    for chunk in trace:
        requests += [known.setdefault(key, key) for key in chunk.keys]
        progress(len(requests))
    return Workload(trace.name, trace.format, requests, len(known))


def lineup(
    workload: Workload, sizes: Sequence[Size], ours: Sequence[Contender]
) -> list[tuple[int, Contender]]:
    """What is to be compared, from small to large: the optimum, `ours`, the rivals installed."""
    yardstick = Contender(NAME, optimum(workload.requests), timed=False)
    present = [yardstick, *ours, *(rival for rival in RIVALS if rival.version)]
    bounds = sorted({size.entries(workload.distinct_keys) for size in sizes})
    return [(bound, each) for bound in bounds for each in present if bound >= each.least]


def compare(
    workload: Workload, runs: Sequence[tuple[int, Contender]], progress: _Progress
) -> Comparison:
    """Replay a workload through caches of these sizes and contenders, one after the other.

    `progress` is called with the number of requests so far, those of all replays together.
    """
    done, outcomes = 0, []
    for maxsize, contender in runs:
        run = _Run(contender, maxsize)
        for start in range(0, len(workload.requests), _TURN_REQUESTS):
            turn = workload.requests[start : start + _TURN_REQUESTS]
            run.take(turn)
            done += len(turn)
            progress(done)
        outcomes.append(run.outcome())
    return Comparison(
        trace=workload.trace,
        format=workload.format,
        requests=len(workload.requests),
        distinct_keys=workload.distinct_keys,
        outcomes=tuple(outcomes),
        absent={rival.name: rival.package for rival in RIVALS if not rival.version},
    )


class _Run:
    """One contender's replay at one size."""

    def __init__(self, contender: Contender, maxsize: int) -> None:
        self._contender = contender
        self._maxsize = maxsize
        self._replay = contender.make(maxsize)
        self._requests = self._misses = self._took_ns = 0

    def take(self, turn: list[Key]) -> None:
        """Go through the next stretch of the trace."""
        begin = perf_counter_ns()
        self._misses += self._replay(turn)
        self._took_ns += perf_counter_ns() - begin
        self._requests += len(turn)

    def outcome(self) -> Outcome:
        """The figures so far."""
        hits = self._requests - self._misses
        timed = self._contender.timed and self._took_ns
        return Outcome(
            name=self._contender.name,
            package=self._contender.package,
            version=self._contender.version or "",
            maxsize=self._maxsize,
            hits=hits,
            hit_ratio=hits / self._requests,
            requests_per_second=self._requests / self._took_ns * 1e9 if timed else None,
        )
