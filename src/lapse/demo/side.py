"""One run of the demo: traffic on a cache in front of a database, with invalidations or without.

    writers ──► Origin (SQLite) ──► the world's invalidation ──► cache ◄── readers
       │                                      │ in force                      │
       └──────────────► Ledger ◄──────────────┘                               │
                           └──────────────────── judges what they get ◄───────┘

At the end the writers stop first. Then every change must get in force, and nothing that is left in
the cache may be outdated.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lapse.caches import TTLCache
from lapse.demo.figures import Counters, Result, spread
from lapse.demo.invalidating import kept_true
from lapse.demo.ledger import BOUND, Fault, Ledger, Snapshot
from lapse.demo.origin import Origin
from lapse.demo.traffic import Reader, Writer
from lapse.demo.world import World

__all__ = ["Settings", "Side"]

LONG = 3600.0  # seconds that an entry lives in the cache that learns of changes
SETTLE = 5.0  # seconds for the last change to get in force
LOOK = 0.005  # seconds between two looks whether it has
EXAMPLES = 3  # of each kind of violation


class Settings(NamedTuple):
    """What both runs have in common."""

    world: World
    seconds: float
    readers: int
    writers: int
    seed: int
    #: Seconds that an entry lives in the cache that gets no invalidations.
    plain_ttl: float = 2.0
    #: Seconds after which an overwritten version must be gone.
    bound: float = BOUND


class Side:
    """One of the two caches, with traffic of its own: start(), then finish(). A context manager.

    Args:
        name: for the figures.
        settings: of both runs.
        folder: for the file of the database.
        invalidated: whether the cache learns of changes; otherwise its entries end by their ttl.
    """

    def __init__(self, name: str, settings: Settings, folder: Path, *, invalidated: bool) -> None:
        self.name = name
        self.settings = settings
        self.invalidated = invalidated
        self.ledger = Ledger(settings.bound)
        self._quiet, self._stop = threading.Event(), threading.Event()
        self._began = 0.0
        with ExitStack() as ends:
            path = folder / ("lapse.sqlite" if invalidated else "plain.sqlite")
            origin = ends.enter_context(closing(Origin(path, settings.world, self.ledger)))
            ttl = LONG if invalidated else settings.plain_ttl
            self.cache: TTLCache[str, Snapshot] = ends.enter_context(TTLCache(ttl))
            if invalidated:
                ends.enter_context(kept_true(self.cache, settings.world, origin))
            self._hire(origin)
            ends.callback(self._dismiss)
            self._ends = ends.pop_all()

    def _hire(self, origin: Origin) -> None:
        pause, popular = self.settings.world.pause, self.settings.world.popularity
        seed = self.settings.seed
        self._writers = [
            Writer(f"writer-{n}", self._quiet, origin, f"{seed} writer {n}", pause)
            for n in range(self.settings.writers)
        ]
        self._readers = [
            Reader(f"reader-{n}", self._stop, origin, f"{seed} reader {n}", self.cache, popular)
            for n in range(self.settings.readers)
        ]

    def start(self) -> None:
        """Let the traffic begin."""
        self._began = time.monotonic()
        for worker in (*self._readers, *self._writers):
            worker.start()

    def wait(self, seconds: float) -> bool:
        """Wait a while; whether the traffic goes on."""
        return not self._stop.wait(seconds) and not self._quiet.is_set()

    def counters(self) -> Counters:
        """What has happened so far."""
        return Counters(
            seconds=time.monotonic() - self._began,
            reads=sum(reader.reads for reader in self._readers),
            hit_ratio=self.cache.stats().hit_ratio,
            changes=len(self.ledger.changes),
            applied=self.ledger.applied,
            stale=sum(len(reader.ages) for reader in self._readers),
            faults=sum(reader.fault_count for reader in self._readers),
        )

    def finish(self) -> Result:
        """End the traffic, and add up. Raises what a thread has raised."""
        self._quiet.set()
        for writer in self._writers:
            writer.join()
        if self.invalidated:
            self._settle()
        self._stop.set()
        for reader in self._readers:
            reader.join()
        return self._result(self.counters())

    def _settle(self) -> None:
        """Wait for the last change to get in force, while readers go on."""
        deadline = time.monotonic() + SETTLE
        while self.ledger.applied < len(self.ledger.changes) and time.monotonic() < deadline:
            if self._stop.wait(LOOK):  # a reader has failed
                break

    def _result(self, counters: Counters) -> Result:
        outdated, left = self._audit()
        lost = self.ledger.lost() if self.invalidated else []
        ages = sorted(chain.from_iterable(reader.ages for reader in self._readers))
        faults = [fault for reader in self._readers for fault in reader.faults]
        return Result(
            name=self.name,
            seconds=counters.seconds,
            reads=counters.reads,
            hit_ratio=counters.hit_ratio,
            loads=sum(reader.loads for reader in self._readers),
            changes=counters.changes,
            applied=counters.applied,
            lag=spread(self.ledger.lags()),
            stale=len(ages),
            age=spread(ages),
            outdated=outdated,
            violations=counters.faults + len(left) + len(lost),
            examples=tuple(
                [f"read: {fault}" for fault in faults[:EXAMPLES]]
                + [f"left in the cache: {fault}" for fault in left[:EXAMPLES]]
                + [f"never in force: {change}" for change in lost[:EXAMPLES]]
            ),
        )

    def _audit(self) -> tuple[int, list[Fault]]:
        """What is left in the cache, now that nothing happens: how many are outdated; what faults.

        Without invalidations it is the ttl's business.
        """
        now = self.ledger.clock()
        judged = [self.ledger.judge(value.rows, now) for value in list(self.cache.values())]
        faults = [fault for _, fault in judged if fault is not None]
        return sum(age > 0 for age, _ in judged), faults if self.invalidated else []

    def _dismiss(self) -> None:
        """Have every thread end, whatever it does."""
        self._quiet.set()
        self._stop.set()
        for worker in (*self._readers, *self._writers):
            with suppress(Exception):  # finish() has raised it, or something else is at fault
                worker.join()

    def close(self) -> None:
        """End everything. Idempotent."""
        self._ends.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
