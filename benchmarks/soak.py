"""A soak: threads use four caches in every way for a long time, and check every value they get.

    python benchmarks/soak.py --minutes 30       at least a billion operations
    python benchmarks/soak.py --minutes 0.5 --seed 7

A value knows its key, and until when it may be served at most. The time is cut into rounds. After
each the tables are checked, and resident memory is looked at with all caches holding the same; the
drift is the median of the last third over that of the first, the warm-up left out.

Status 1 for a value under another's key, one that is served too late, a call that raises, a table
that is not intact, or, after five minutes, a drift of 1 % and more.

An element of a batch counts as an operation, like a single call.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import lapse
from lapse import ProbabilisticTTLCache, SlidingTTLCache, TTLCache
from lapse.bench.report import machine, show_versions

KEYS = 50_000  # of each cache
TABLES = 20
MOST = 10_000  # entries of the bounded cache
BATCH = 1000
BURST = 200  # single calls in a row
TTLS = [0.05, 0.3, 2.0]  # seconds
LIFE = 2.0  # the default; a sliding entry may live MOST_LIVES of them
MOST_LIVES = 3
ROUND = 45.0  # seconds
WARM_UP = 0.25  # of the rounds, until the allocators have settled
MOST_DRIFT = 0.01
LONG = 5  # minutes from which on a drift is judged
M_ARENA_MAX = -8  # of malloc.h
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Value:
    """Belongs to a key; from `until` on (monotonic seconds) nobody gets it any more."""

    __slots__ = ("key", "until")

    def __init__(self, key: str) -> None:
        self.key, self.until = key, float("inf")

    def stored(self, cache: Any, ttl: float) -> None:
        """It has been stored just now."""
        if self.key not in UNDATED:
            life = MOST_LIVES * LIFE if isinstance(cache, SlidingTTLCache) else ttl
            self.until = time.monotonic() + life


class Fault(NamedTuple):
    what: str
    #: The key, or what the worker did.
    where: str
    found: str


def table_of(n: int) -> str:
    return f"t{n % TABLES}"


NAMES = [f"{table_of(n)}:{n}" for n in range(KEYS)]
TOUCHED = NAMES[: 2 * BATCH]  # these alone live longer than what they were stored for
UNDATED = frozenset(TOUCHED)


def caches() -> dict[str, Any]:
    """The four of them; the sweeping thread is at work, too."""
    return {
        "ttl": TTLCache(LIFE, 0.2),
        "sliding": SlidingTTLCache(LIFE, 0.2, max_lifetime=MOST_LIVES * LIFE),
        "probabilistic": ProbabilisticTTLCache(LIFE, 0.2),
        "bounded": TTLCache(LIFE, 0.2, maxsize=MOST),
    }


class Worker:
    """One thread's use of the caches."""

    def __init__(self, every: dict[str, Any], seed: int) -> None:
        self.caches = list(every.values())
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.actions = [(name, getattr(self, name)) for name in ACTIONS]

    def run(self, stop: threading.Event) -> None:
        name = ""
        try:
            while not stop.is_set() and not self.faults:
                name, act = self.random.choices(self.actions, WEIGHTS)[0]
                self.done[name] += act(self.random.choice(self.caches))
        except Exception as error:
            self.faults.append(Fault("an exception", name, repr(error)))

    def names(self, count: int) -> list[str]:
        first = self.random.randrange(KEYS - count)
        return NAMES[first : first + count]

    def check(self, key: str, value: Any, asked: float) -> None:
        """Hold what was found under `key`, by a call that began at the moment `asked`."""
        if value.key != key:
            self.faults.append(Fault("another key's value", key, value.key))
        elif asked >= value.until:
            self.faults.append(Fault("served too late", key, f"{asked - value.until} s"))

    # --- What a worker does; each answers how many operations that was ---

    def read(self, cache: Any) -> int:
        for key in self.names(BURST):
            asked = time.monotonic()
            value = cache.get(key)
            if value is not None:
                self.check(key, value, asked)
        return BURST

    def read_many(self, cache: Any) -> int:
        names, asked = self.names(BATCH), time.monotonic()
        for key, value in zip(names, cache.gather(names), strict=True):
            if value is not None:
                self.check(key, value, asked)
        return BATCH

    def write(self, cache: Any) -> int:
        for n, key in enumerate(self.names(BURST)):
            value, ttl = Value(key), self.random.choice(TTLS)
            cache.set(key, value, ttl, tags=[table_of(n)])
            value.stored(cache, ttl)
        return BURST

    def write_many(self, cache: Any) -> int:
        values = {key: Value(key) for key in self.names(BATCH)}
        cache.set_many(values)
        for value in values.values():
            value.stored(cache, LIFE)
        return BATCH

    def load(self, cache: Any) -> int:
        for key in self.names(BURST):
            asked = time.monotonic()
            self.check(key, cache.get_or_load(key, Value, 0.3), asked)
        return BURST

    def remove(self, cache: Any) -> int:
        for key in self.names(BURST):
            cache.delete(key)
        return BURST

    def remove_many(self, cache: Any) -> int:
        cache.delete_many(self.names(BATCH))
        return BATCH

    def touch(self, cache: Any) -> int:
        cache.touch_many(TOUCHED)
        return len(TOUCHED)

    def invalidate(self, cache: Any) -> int:
        table = table_of(self.random.randrange(TABLES))
        calls = [
            lambda: cache.delete_tag(table),
            lambda: cache.invalidate_table(table),
            lambda: cache.delete_pattern(f"*{table}:*7"),
        ]
        return int(self.random.choice(calls)()) + 1

    def sweep(self, cache: Any) -> int:
        return int(cache.expire()) + 1

    def walk(self, cache: Any) -> int:
        asked = time.monotonic()
        found = list(islice(cache.items(), BATCH))
        for key, value in found:
            self.check(key, value, asked)
        return len(found) + 1

    def clear(self, cache: Any) -> int:
        if self.random.randrange(50) == 0:
            cache.clear()
        return 1


#: What a worker does, and how often, beside the others.
ACTIONS = {
    "read": 6, "read_many": 24, "write": 4, "write_many": 6, "load": 3, "remove": 1,
    "remove_many": 1, "touch": 1, "invalidate": 1, "sweep": 1, "walk": 1, "clear": 1,
}  # fmt: skip
WEIGHTS = list(ACTIONS.values())


# --- The soak ---


def resident() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


def use_one_arena() -> None:
    """Have the GNU C library not keep a heap for each thread: those fray for hours."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def trim() -> None:
    """Have it give back what is free in it: what stays is held by somebody."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def play(
    every: dict[str, Any], workers: list[Worker], seconds: float, tell: Callable[[float], None]
) -> None:
    """Let the workers go for so long; every cache is intact then."""
    stop = threading.Event()
    crew = [threading.Thread(target=worker.run, args=(stop,)) for worker in workers]
    for thread in crew:
        thread.start()
    began = time.monotonic()
    try:
        while (past := time.monotonic() - began) < seconds and not any(w.faults for w in workers):
            time.sleep(min(0.5, seconds - past))
            tell(past)
    finally:
        stop.set()
        for thread in crew:
            thread.join()
    for name, cache in every.items():
        assert cache._check(), name


def weigh(every: dict[str, Any]) -> int:
    """Resident bytes while every cache holds the same, so that they can be compared."""
    for name, cache in every.items():
        cache.clear()
        assert len(cache) == len(list(cache)) == 0, name
    gc.collect()
    for cache in every.values():
        cache.set_many({key: Value(key) for key in NAMES}, math.inf)
    trim()
    found = resident()
    for cache in every.values():
        cache.clear()
    return found


def soak(
    seconds: float, threads: int, seed: int, progress: Progress
) -> tuple[list[Worker], list[int]]:
    """Rounds of work, and what was resident after each that is no part of the warm-up."""
    every, weights, rounds = caches(), list[int](), max(1, round(seconds / ROUND))
    workers = [Worker(every, seed + n) for n in range(threads)]
    task = progress.add_task("", total=seconds)

    def tell(past: float) -> None:
        total = sum(worker.done.total() for worker in workers)
        text = f"{total / 1e6:,.0f} M operations"
        done = len(weights) * seconds / rounds + past
        progress.update(task, completed=done, description=text)

    for _ in range(rounds):
        play(every, workers, seconds / rounds, tell)
        weights.append(weigh(every))
        if any(worker.faults for worker in workers):
            break
    for cache in every.values():
        cache.close()
    return workers, weights[int(WARM_UP * rounds) :]


def drift(weights: list[int]) -> float:
    """How much the last third's median is above the first's, as a fraction; 0: not known."""
    third = max(1, len(weights) // 3)
    first = statistics.median(weights[:third]) if weights else 0
    return statistics.median(weights[-third:]) / first - 1 if first else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description="A soak of the caches.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    use_one_arena()
    console = Console()
    show_versions(console, machine(), {"lapse": lapse.__version__})
    console.print(f"seed {options.seed}, {options.threads} threads, {options.minutes:g} minutes")
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, refresh_per_second=1) as progress:
        found = soak(options.minutes * 60, options.threads, options.seed, progress)
    workers, weights = found
    done = sum((worker.done for worker in workers), Counter[str]())
    for name, count in done.most_common():
        console.print(f"  {name:<12} {count:>16,}")
    grown, faults = drift(weights), [fault for worker in workers for fault in worker.faults]
    rate = done.total() / options.minutes / 60
    console.print(f"{done.total():,} operations, {rate:,.0f} a second")
    if weights:
        console.print(f"resident {weights[-1] / 2**20:,.1f} MiB, drift {grown:+.2%}")
    console.print(f"{len(faults)} faults", *faults[:10])
    return 1 if faults or (grown >= MOST_DRIFT and options.minutes >= LONG) else 0


if __name__ == "__main__":
    sys.exit(main())
