"""Replays a trace through a lapse cache and its rivals, and measures each of them.

Every request is a read; a miss stores the key. The contenders are unbounded and take turns of
`TURN_REQUESTS`, each turn led by another one, so that none of them always meets cold keys.

What is measured, and how:
    rate         requests a second of the bare loop. The loop itself and, for a cache that is
                 driven by the trace's clock, moving that clock are included.
    percentiles  one request in `SAMPLE_EVERY`, in runs of `SAMPLE_RUN`, is read between two
                 readings of `perf_counter_ns` instead, and left out of the rate. The cost of the
                 timer is in every figure; `Report.timer_ns` says what it is, so that a reader
                 may subtract it.
    expirations  entries stored less entries still alive at the end.
    memory       growth of the resident set during the contender's turns.
"""

from __future__ import annotations

__all__ = ["VALUE", "Report", "Result", "own", "race", "replay"]

import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import repeat
from statistics import median
from time import perf_counter_ns
from types import FunctionType
from typing import Any

from lapse.contenders import Contender, contenders
from lapse.traces import Chunk, Key, Trace

TURN_REQUESTS = 4_096
SAMPLE_EVERY = 8
SAMPLE_RUN = 64
VALUE = object()  #: what is stored under every key

_BLOCK_REQUESTS = SAMPLE_RUN * SAMPLE_EVERY
_PRECISE_BITS = 11  # a read time keeps its 11 leading bits, so 0.1 % and few distinct values

_Read = Callable[[Key], object]
_Store = Callable[[Key, object], object]
_Advance = Callable[[float], object]
_Loop = Callable[..., int]


@dataclass(frozen=True, slots=True)
class Result:
    """What one contender did with the trace. A figure that could not be measured is None."""

    name: str
    version: str
    requests: int
    hits: int
    hit_ratio: float
    expirations: int
    requests_per_second: float | None
    read_p50_ns: int | None
    read_p99_ns: int | None
    read_p999_ns: int | None
    memory_bytes: int | None
    #: Whether the trace's timestamps drove its expiry; else real time did, if anything.
    trace_time: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A replay: the trace, the settings and a result for each contender, lapse first."""

    trace: str
    format: str
    requests: int
    distinct_keys: int
    #: Seconds between the first and the last timestamp; None if the trace has none.
    span_seconds: float | None
    cache: str
    ttl_seconds: float
    #: What the timer itself adds to each read time.
    timer_ns: int
    python: str
    results: tuple[Result, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready types."""
        return asdict(self)


def replay(
    trace: Trace,
    cache: str = "ttl",
    ttl: float = 3600.0,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Run a trace through every contender.

    Args:
        trace: Where the requests come from; it is read to its end.
        cache: A name out of `contenders.CACHES`.
        ttl: The lifetime of every entry in seconds.
        progress: Called with the number of requests done, after every turn.

    Raises:
        TraceError: The trace turns out to be unreadable.
        ValueError: The cache is unknown, or the ttl is no lifetime.
    """
    done, span = 0, _Span()
    with ExitStack() as closing:
        lanes = []
        for contender in contenders(cache, ttl, trace.timed):
            lanes.append(_Lane(contender))
            if contender.close:
                closing.callback(contender.close)
        for chunk in trace:
            for turn in _turns(chunk, span):
                lead = done // TURN_REQUESTS % len(lanes)
                for lane in lanes[lead:] + lanes[:lead]:
                    lane.take(turn)
                done += len(turn.keys)
                if progress:
                    progress(done)
        return Report(
            trace=trace.name,
            format=trace.format,
            requests=done,
            distinct_keys=next(
                lane.contender.size() for lane in lanes if lane.contender.name == "dict"
            ),
            span_seconds=span.seconds if trace.timed else None,
            cache=cache,
            ttl_seconds=float(ttl),
            timer_ns=_timer_ns(),
            python=platform.python_version(),
            results=tuple(lane.result(done) for lane in lanes),
        )


# --- The race ---


@dataclass(frozen=True, slots=True)
class _Turn:
    """A stretch of requests; `steps` are the seconds that pass before each of them."""

    keys: list[Key]
    steps: list[float] | None

    def part(self, start: int, stop: int) -> _Turn:
        """The requests from start up to stop."""
        return _Turn(self.keys[start:stop], self.steps and self.steps[start:stop])


class _Span:
    """The time that a trace has covered so far."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = 0.0

    @property
    def seconds(self) -> float:
        """Seconds between the first and the last timestamp."""
        return 0.0 if self._first is None else self._last - self._first

    def steps(self, times: list[float]) -> list[float]:
        """The seconds that pass before each request; none before the very first."""
        if self._first is None:
            self._first = self._last = times[0]
        before = [self._last, *times[:-1]]
        self._last = times[-1]
        return [now - then for then, now in zip(before, times, strict=True)]


def _turns(chunk: Chunk, span: _Span) -> Iterator[_Turn]:
    """The chunk in pieces short enough to take turns by."""
    whole = _Turn(chunk.keys, None if chunk.times is None else span.steps(chunk.times))
    for start in range(0, len(chunk.keys), TURN_REQUESTS):
        yield whole.part(start, start + TURN_REQUESTS)


class _Lane:
    """One contender's lane: runs its turns and adds up what they show."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._race = own(_race_with_clock if contender.clock else race)
        self._sample = own(_sample)
        self._misses = 0
        self._raced_requests = 0
        self._raced_ns = 0
        self._memory_bytes: int | None = 0
        self._read_times: Counter[int] = Counter()

    def take(self, turn: _Turn) -> None:
        """Run the requests of a turn, most of them in the bare loop and some under the timer."""
        times: list[int] = []
        before = _resident_bytes()
        for start in range(0, len(turn.keys), _BLOCK_REQUESTS):
            stop = min(start + _BLOCK_REQUESTS, len(turn.keys))
            split = stop - max(1, (stop - start) // SAMPLE_EVERY)
            self._take_raced(turn.part(start, split))
            self._take_sampled(turn.part(split, stop), times)
        self._add_memory(before, _resident_bytes())
        self._read_times.update(map(_rounded, times))

    def _take_raced(self, turn: _Turn) -> None:
        racer, run = self.contender, self._race
        clocked = (turn.steps, racer.clock.advance) if racer.clock else ()
        begin = perf_counter_ns()
        self._misses += run(racer.read, racer.store, turn.keys, *clocked)
        self._raced_ns += perf_counter_ns() - begin
        self._raced_requests += len(turn.keys)

    def _take_sampled(self, turn: _Turn, times: list[int]) -> None:
        racer = self.contender
        clocked = (turn.steps, racer.clock.advance) if racer.clock else (repeat(0.0), _stay)
        self._misses += self._sample(racer.read, racer.store, turn.keys, *clocked, times)

    def _add_memory(self, before: int | None, after: int | None) -> None:
        if self._memory_bytes is None or before is None or after is None:
            self._memory_bytes = None
        else:
            self._memory_bytes += after - before

    def result(self, requests: int) -> Result:
        """The figures of the lane, which has seen that many requests."""
        racer = self.contender
        misses = racer.loads() if racer.loads else self._misses
        raced, took_ns = self._raced_requests, self._raced_ns
        return Result(
            name=racer.name,
            version=racer.version,
            requests=requests,
            hits=requests - misses,
            hit_ratio=(requests - misses) / requests,
            expirations=misses - racer.size(),
            requests_per_second=raced / took_ns * 1e9 if raced and took_ns else None,
            read_p50_ns=_percentile(self._read_times, 0.5),
            read_p99_ns=_percentile(self._read_times, 0.99),
            read_p999_ns=_percentile(self._read_times, 0.999),
            memory_bytes=self._memory_bytes,
            trace_time=racer.clock is not None,
        )


def race(read: _Read, store: _Store, keys: list[Key]) -> int:
    """Misses among `keys`, each of them read and, on a miss, stored."""
    misses = 0
    for key in keys:
        if read(key) is None:
            store(key, VALUE)
            misses += 1
    return misses


def _race_with_clock(
    read: _Read, store: _Store, keys: list[Key], steps: list[float], advance: _Advance
) -> int:
    """As `race`, with a clock that moves on before a request whose time has changed."""
    misses = 0
    for key, step in zip(keys, steps, strict=True):
        if step:
            advance(step)
        if read(key) is None:
            store(key, VALUE)
            misses += 1
    return misses


def _sample(
    read: _Read,
    store: _Store,
    keys: list[Key],
    steps: Iterable[float],
    advance: _Advance,
    times: list[int],
) -> int:
    """As `_race_with_clock`, but appends how long each read took, in nanoseconds."""
    misses = 0
    for key, step in zip(keys, steps, strict=False):
        if step:
            advance(step)
        begin = perf_counter_ns()
        value = read(key)
        times.append(perf_counter_ns() - begin)
        if value is None:
            store(key, VALUE)
            misses += 1
    return misses


def _stay(seconds: float) -> None:
    """The `advance` of a cache whose clock the trace does not drive."""


def own(loop: _Loop) -> _Loop:
    """A copy of `loop` with inline caches of its own, which no other contender's calls spoil."""
    return FunctionType(loop.__code__.replace(), loop.__globals__)


# --- Figures ---


def _allocator_trim() -> Callable[[int], int] | None:
    """The C library's call that returns free memory to the system, if it has one."""
    try:
        import ctypes

        return ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, TypeError, AttributeError):
        return None


_trim = _allocator_trim()


def _rounded(nanoseconds: int) -> int:
    """The time cut to its leading bits, so that a long replay keeps few distinct values."""
    surplus = max(0, nanoseconds.bit_length() - _PRECISE_BITS)
    return nanoseconds >> surplus << surplus


def _percentile(counts: Counter[int], share: float) -> int | None:
    """The smallest value that at least this share of all values does not exceed."""
    rank = math.ceil(share * counts.total())
    for value in sorted(counts):
        rank -= counts[value]
        if rank <= 0:
            return value
    return None


def _timer_ns() -> int:
    """What two readings of the timer, one right after the other, are apart (the median)."""
    pairs = ((perf_counter_ns(), perf_counter_ns()) for _ in range(1_001))
    return int(median(later - earlier for earlier, later in pairs))


def _resident_bytes() -> int | None:
    """The resident set of this process in bytes, or its peak where only that is known.

    What the allocator holds free goes back to the system first. Else a table would seem small that
    lies where another contender, as it grew, left a smaller one behind.
    """
    if _trim:
        _trim(0)
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
