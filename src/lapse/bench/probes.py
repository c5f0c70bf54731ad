"""The questions that no plain loop answers: sweep, growth stall, memory and garbage collection."""

from __future__ import annotations

import gc
import heapq
import json
import os
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from struct import calcsize
from typing import Any

from .cases import str_keys
from .contenders import CONTENDERS, Contender, compile_fill, compile_stall
from .engine import Plan, Progress, Series, Table, fresh_process, gc_paused, race

__all__ = ["PROBES", "Probe", "StallTrack", "SweepTrack", "collection", "memory_child", "memory_of"]

STALL_RUNS = 5
TENTH = 10
EXPIRED_SHARE = 1_000  #: one entry in so many has expired when the sweep comes
MEMORY_SIZES = (0.5, 0.95, 1.0, 1.2, 1.7)  #: of Plan.large; a split in the wrong place shows
NS_PER_US, NS_PER_MS = 1e3, 1e6
POINTER = calcsize("P")  #: bytes; a class that counts less an entry does not count entries


@dataclass(frozen=True)
class Probe:
    """One question with a way of measuring of its own."""

    name: str
    what: str
    run: Callable[[Sequence[Contender], Plan, Progress], list[Table]]

    def __str__(self) -> str:
        return self.name

    def title(self, plan: Plan) -> str:
        """The question in words."""
        return f"{self.what}, {plan.large:,} entries"

    def measure(
        self, contenders: Sequence[Contender], plan: Plan, progress: Progress
    ) -> list[Table]:
        """Measure all `contenders` that take part; one table or more."""
        tables = self.run(contenders, plan, progress)
        gc.collect()
        return tables


class SweepTrack:
    """A lapse cache of which one entry in a thousand, spread evenly, expires before each sweep."""

    def __init__(self, contender: Contender, entries: int) -> None:
        from lapse import ManualClock

        self.clock = ManualClock()
        self.cache = contender.make(entries, clock=self.clock, cleanup_interval=None)
        self.keys = str_keys(entries)
        self.cache.set_many(dict.fromkeys(self.keys))
        self.short_lived = self.keys[::EXPIRED_SHARE]
        self.errors: list[float] = []

    def prepare(self) -> None:
        """Store the short-lived entries anew and let them expire."""
        for key in self.short_lived:
            self.cache.set(key, None, 1)
        self.clock.advance(2)

    def __call__(self, number: int) -> float:
        """Milliseconds of one `expire()`."""
        self.prepare()
        with gc_paused():
            start = time.perf_counter_ns()
            removed = self.cache.expire()
            elapsed = time.perf_counter_ns() - start
        self.errors.append(abs(removed - len(self.short_lived)))
        return elapsed / NS_PER_MS


def _sweep(contenders: Sequence[Contender], plan: Plan, progress: Progress) -> list[Table]:
    entrants = [c for c in contenders if c.module == "lapse"]
    tracks = {c.name: SweepTrack(c, plan.large) for c in entrants}
    times = race(tracks, plan.rounds, progress)
    title = f"{plan.large:,} entries, 1 in {EXPIRED_SHARE:,} expired"
    took = Table("sweep-time", f"sweep of {title}", "ms", baseline=None)
    took.series = [Series(name, values) for name, values in times.items()]
    wrong = f"error in the count that the sweep returned, {title}"
    errors = Table("sweep-error", wrong, "entries", summary=max, baseline=None)
    errors.series = [Series(name, track.errors) for name, track in tracks.items()]
    return [took, errors]


class StallTrack:
    """A cache that grows from empty with each single `set` timed."""

    def __init__(self, contender: Contender, keys: list[str]) -> None:
        assert contender.set is not None
        self.contender = contender
        self.keys = keys
        self.loop = compile_stall(contender.set)
        self.tenth: list[float] = []

    def __call__(self, number: int) -> float:
        """Microseconds of the slowest `set` of one growth; the tenth slowest is noted too."""
        out = array("q", bytes(8 * len(self.keys)))
        cache = self.contender.make(len(self.keys))
        with gc_paused():
            self.loop(cache, self.keys, None, out)
        slowest = heapq.nlargest(TENTH, out)
        if number >= 0:
            self.tenth.append(slowest[-1] / NS_PER_US)
        return slowest[0] / NS_PER_US


def _stall(contenders: Sequence[Contender], plan: Plan, progress: Progress) -> list[Table]:
    keys = str_keys(plan.large)
    tracks = {c.name: StallTrack(c, keys) for c in contenders if c.set}
    times = race(tracks, min(STALL_RUNS, plan.rounds), progress)
    title = f"set while growing to {plan.large:,} entries"
    slowest = Table("growth-slowest", f"slowest single {title}", "µs", paired=False)
    slowest.series = [Series(name, values) for name, values in times.items()]
    tenth = Table("growth-tenth", f"tenth slowest single {title}", "µs", paired=False)
    tenth.series = [Series(name, track.tenth) for name, track in tracks.items()]
    return [slowest, tenth]


def _memory(contenders: Sequence[Contender], plan: Plan, progress: Progress) -> list[Table]:
    sizes = [round(size * plan.large) for size in MEMORY_SIZES]
    title = f"bytes an entry, worst of {', '.join(f'{size:,}' for size in sizes)}"
    tables = {
        key: Table(f"memory-{key}", f"{title}, {what}", "B", summary=max, paired=False)
        for key, what in {"rss": "resident set", "sizeof": "__sizeof__"}.items()
    }
    for done, contender in enumerate(contenders):
        answers = [memory_of(contender, size) for size in sizes]
        for key, table in tables.items():
            values = [answer[key] for answer in answers if answer[key] is not None]
            if len(values) == len(sizes):
                table.series.append(Series(contender.name, values))
        progress(done + 1, len(contenders))
    return list(tables.values())


def memory_of(contender: Contender, entries: int) -> dict[str, Any]:
    """Bytes an entry, measured in a process that holds nothing else."""
    code = "import sys; from lapse.bench.probes import memory_child as run; run(*sys.argv[1:])"
    sizes: dict[str, Any] = json.loads(fresh_process(code, contender.name, str(entries)))
    return sizes


def memory_child(name: str, entries: str) -> None:
    """Print, as JSON, the bytes that an entry adds to this process and to `__sizeof__`.

    Keys and values exist before the first reading. A null stands where the platform does not
    tell the resident set, or where the class leaves its entries out of `__sizeof__`.
    """
    contender = next(c for c in CONTENDERS if c.name == name)
    keys = str_keys(int(entries))
    fill = compile_fill(contender.store)
    if contender.module:
        import_module(contender.module)
    gc.collect()
    before = _resident_bytes()
    cache = contender.make(len(keys))
    fill(cache, keys, keys)
    after = _resident_bytes()
    grown = None if before is None or after is None else (after - before) / len(keys)
    counted = sys.getsizeof(cache) / len(keys)
    print(json.dumps({"rss": grown, "sizeof": counted if counted >= POINTER else None}))


def _resident_bytes() -> int | None:
    """Bytes of this process in memory, or None where /proc does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def collection(rounds: int) -> list[float]:
    """Milliseconds of each of `rounds` full collections."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        gc.collect()
        times.append((time.perf_counter_ns() - start) / NS_PER_MS)
    return times


def _collect(contenders: Sequence[Contender], plan: Plan, progress: Progress) -> list[Table]:
    keys = str_keys(plan.large)
    values = [b"%d" % i for i in range(plan.large)]
    title = f"gc.collect() over {plan.large:,} str to bytes entries, more than without them"
    table = Table("gc-collect", title, "ms", baseline=None)
    for done, contender in enumerate(contenders):
        table.series.append(Series(contender.name, _extra(contender, keys, values, plan.rounds)))
        progress(done + 1, len(contenders))
    return [table]


def _extra(contender: Contender, keys: list[str], values: list[bytes], rounds: int) -> list[float]:
    """Milliseconds that each full collection takes longer while a full cache is alive."""
    fill = compile_fill(contender.store)
    contender.make(1)
    gc.collect()
    gc.freeze()
    try:
        alone = median(collection(rounds))
        cache = contender.make(len(keys))
        fill(cache, keys, values)
        gc.collect()
        return [took - alone for took in collection(rounds)]
    finally:
        gc.unfreeze()


PROBES = (
    Probe("sweep", "sweep", _sweep),
    Probe("growth-stall", "slowest and tenth slowest set while growing", _stall),
    Probe("memory", "memory an entry, keys and values aside", _memory),
    Probe("gc", "gc.collect() with a full cache", _collect),
)
