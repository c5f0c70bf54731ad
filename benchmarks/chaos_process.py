"""One process of a chaos test: caches on a message queue, somebody who reads, and who writes.

    writer ──► origin (SQLite): version + 1 ──► publish ──► every cache of every process
    reader ──► cache.get_or_load(key, origin.version)

The parent says what to do over a pipe, one word at a time: see `run()`.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from lapse import TTLCache
from lapse.invalidation import Invalidation
from lapse.sources.kombu import KombuQueue
from lapse.sources.message_queue import MessageQueueInvalidation

READS = 20  # of each cache between two naps
NAP = 0.004  # seconds
BATCH, BATCHES = 200, 0.02  # keys of a batch, and how many of the writes are one


class Part(NamedTuple):
    """What one process is to do."""

    url: str
    origin: Path
    caches: int
    #: Writes a second; 0 for a process that only reads.
    writes: float
    seed: int


class Origin:
    """The truth: a version of each key, in a file. One thread may use one of these."""

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=OFF")

    def create(self, keys: int) -> None:
        """So many keys, at version 0."""
        self._file.execute("CREATE TABLE version (key TEXT PRIMARY KEY, version INTEGER)")
        rows = [(f"item:{n}", 0) for n in range(keys)]
        self._file.executemany("INSERT INTO version VALUES (?, ?)", rows)

    def version(self, key: str) -> int:
        """The version of a key, now."""
        query = self._file.execute("SELECT version FROM version WHERE key = ?", (key,))
        version: int = query.fetchone()[0]
        return version

    def versions(self) -> dict[str, int]:
        """All of them."""
        return dict(self._file.execute("SELECT key, version FROM version").fetchall())

    def change(self, keys: list[str]) -> None:
        """Raise the version of these keys, all at once."""
        rows = [(key,) for key in keys]
        self._file.execute("BEGIN IMMEDIATE")
        self._file.executemany("UPDATE version SET version = version + 1 WHERE key = ?", rows)
        self._file.execute("COMMIT")


class Process:
    """The caches of this process and its threads."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._keys = list(Origin(part.origin).versions())
        queue = KombuQueue(part.url, name="chaos")
        self.caches = [TTLCache[str, int](None, cleanup_interval=None) for _ in range(part.caches)]
        self.invalidators = [MessageQueueInvalidation(cache, queue) for cache in self.caches]
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self.reads = [0] * part.caches
        self.writes = 0

    def start(self) -> None:
        """Read, and write if this process does."""
        threading.Thread(target=self._read, daemon=True).start()
        if self._part.writes:
            threading.Thread(target=self._write, daemon=True).start()

    def pause(self) -> None:
        """Write no more once this returns."""
        self._writing.acquire()

    def resume(self) -> None:
        """Go on writing."""
        self._writing.release()

    def report(self) -> dict[str, Any]:
        """What the caches hold, and the figures of their invalidators."""
        return {
            "items": [dict(cache.items()) for cache in self.caches],
            "stats": [each.stats() for each in self.invalidators],
            "reads": self.reads,
            "writes": self.writes,
        }

    def close(self) -> None:
        """End all threads; after pause()."""
        self._ended.set()
        for each in self.invalidators:
            each.close()

    def _read(self) -> None:
        draw, origin = random.Random(self._part.seed), Origin(self._part.origin)
        while not self._ended.wait(NAP):
            for number, cache in enumerate(self.caches):
                for key in draw.choices(self._keys, k=READS):
                    cache.get_or_load(key, origin.version)
                self.reads[number] += READS

    def _write(self) -> None:
        draw, origin = random.Random(-self._part.seed), Origin(self._part.origin)
        publisher = self.invalidators[0]
        while not self._ended.wait(draw.expovariate(self._part.writes)):
            with self._writing:
                if draw.random() < BATCHES:
                    keys = draw.sample(self._keys, BATCH)
                    origin.change(keys)
                    publisher.publish([Invalidation("key", key) for key in keys])
                else:
                    key = draw.choice(self._keys)
                    origin.change([key])
                    publisher.publish_invalidation("invalidate_key", key=key)
                self.writes += 1


def run(orders: Connection, part: Part) -> None:
    """Carry out the orders of the parent, and answer each one."""
    logging.disable(logging.CRITICAL)  # the alerts of a link that is killed on purpose
    process = Process(part)
    order = "ready"
    while True:
        if order == "report":
            orders.send(process.report())
        else:
            if order != "ready":
                getattr(process, order)()
            orders.send(order)
        if order == "close":
            return
        order = orders.recv()
