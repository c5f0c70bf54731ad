"""From the commit of a row to its entry gone from a cache: how long, and how often a second.

    PYTHONPATH=src python benchmarks/latency_sqlite.py --seconds 30

Read the caveats in benchmarks/README.md first. Times are from the return of COMMIT to the cache's
listener, by one clock that all processes of a machine share. A figure below zero means that the
entry was gone before the writer had its answer.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lapse
from lapse.sources.database import DatabaseChangeInvalidation
from lapse.sources.sqlite import SQLiteChanges

WRITER = """
import sqlite3, sys, time
path, first, count, rate = sys.argv[1], *map(float, sys.argv[2:])
db = sqlite3.connect(path, isolation_level=None, timeout=30)
db.execute("PRAGMA synchronous = NORMAL")
begun, times = time.monotonic(), []
for n in range(int(first), int(first + count)):
    time.sleep(max(0.0, begun + (n - first) / rate - time.monotonic()))
    db.execute("INSERT OR REPLACE INTO users VALUES (?, ?)", (n, f"{n}@example.org"))
    times.append(time.monotonic())
sys.stdout.write(" ".join(map(repr, times)))
"""


class Stage:
    """A file, a cache that follows it, and when each entry left."""

    def __init__(self, folder: str, journal: str) -> None:
        self.path = Path(folder, f"{journal}.db")
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        self.db.execute(f"PRAGMA journal_mode = {journal}")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE)")
        self.gone: dict[str, float] = {}
        self.cache: lapse.TTLCache[str, int] = lapse.TTLCache(None, listener=self._left)
        self.changes = SQLiteChanges(self.path, ["users"])
        self.invalidation = DatabaseChangeInvalidation(
            self.cache, self.changes, keys={"users": "user:{id}"}
        )

    def _left(self, key: str, value: int, cause: str) -> None:
        self.gone[key] = time.monotonic()

    def latencies(self, first: int, times: list[float]) -> list[float]:
        """Milliseconds of each commit, in order of size; waits for the last."""
        end = time.monotonic() + 10
        keys = [f"user:{first + n}" for n in range(len(times))]
        while any(key in self.cache for key in keys) and time.monotonic() < end:
            time.sleep(0.01)
        return sorted(
            (self.gone.get(key, float("inf")) - at) * 1e3
            for key, at in zip(keys, times, strict=True)
        )

    def close(self) -> None:
        self.invalidation.close()
        self.db.close()


def here(stage: Stage, db: sqlite3.Connection, first: int, count: int, rate: float) -> list[float]:
    """Commit in this process."""
    begun, times = time.monotonic(), []
    for n in range(first, first + count):
        time.sleep(max(0.0, begun + (n - first) / rate - time.monotonic()))
        db.execute("INSERT OR REPLACE INTO users VALUES (?, ?)", (n, f"{n}@example.org"))
        times.append(time.monotonic())
    return times


def elsewhere(stage: Stage, first: int, count: int, rate: float) -> list[float]:
    """Commit in another process."""
    command = [sys.executable, "-c", WRITER, stage.path, first, count, rate]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return list(map(float, answer.stdout.split()))


def show(what: str, found: list[float]) -> None:
    """A line of percentiles."""
    at = [found[min(int(share * len(found)), len(found) - 1)] for share in (0.5, 0.9, 0.99, 1.0)]
    print(f"{what:<58}" + "".join(f"{each:>9.2f}" for each in at), flush=True)


def measure(stage: Stage, journal: str, seconds: float) -> None:
    """All the questions for one journal mode."""
    told = stage.changes.connect(isolation_level=None)
    told.execute("PRAGMA synchronous = NORMAL")
    count, first = 500, 1
    ways: list[tuple[str, Callable[[int, int, float], list[float]]]] = [
        ("in-process, changes.connect()", lambda *a: here(stage, told, *a)),
        ("in-process, any connection", lambda *a: here(stage, stage.db, *a)),
        ("another process", lambda *a: elsewhere(stage, *a)),
    ]
    for what, commit in ways:
        for rate in (5, 100):
            size = count if rate > 5 else 40
            stage.cache.update({f"user:{n}": n for n in range(first, first + size)})
            show(
                f"{journal}: {what}, {rate} a second",
                stage.latencies(first, commit(first, size, rate)),
            )
            first += size
    told.close()
    size = int(2000 * seconds)
    stage.cache.update({f"user:{n}": n for n in range(first, first + size)})
    begun, cpu = time.monotonic(), time.process_time()
    times = elsewhere(stage, first, size, 2000)
    used, took = time.process_time() - cpu, times[-1] - times[0]
    found = stage.latencies(first, times)
    rate = len(times) / took
    show(f"{journal}: another process, {rate:,.0f} a second for {took:.0f} s", found)
    rows = stage.db.execute("SELECT count(*) FROM lapse_changes").fetchone()[0]
    left = sum(each == float("inf") for each in found)
    print(
        f"    not gone: {left}; resyncs: {stage.invalidation.stats().resyncs};"
        f" CPU: {used / (time.monotonic() - begun):.0%} of a core; rows in the outbox: {rows:,}"
    )


def idle(stage: Stage) -> None:
    """What following a file costs while nothing happens."""
    for wait in (0, 60):
        stage.changes._active_at -= wait
        cpu, looks = time.process_time(), stage.changes.stats().looks
        time.sleep(3)
        used, looks = time.process_time() - cpu, stage.changes.stats().looks - looks
        print(f"idle for {wait}+ s: {used / 3:.2%} of a core, {looks / 3:.0f} looks a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of 2,000 commits a second")
    parser.add_argument("--journal", choices=["wal", "delete"], action="append")
    parser.add_argument("--folder", help="for the files; on a RAM disk, no disk is measured")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version},"
        f" {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'milliseconds from commit to gone':<58}{'p50':>9}{'p90':>9}{'p99':>9}{'max':>9}")
    for journal in options.journal or ["wal", "delete"]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            stage = Stage(folder, journal)
            measure(stage, journal, options.seconds)
            idle(stage)
            stage.close()


if __name__ == "__main__":
    main()
