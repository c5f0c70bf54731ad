"""The traffic of one run: threads that change the database, and threads that read the cache.

    writer   origin.change(), wait a little, again
    reader   a burst of keys, popular ones more often: began ──► get_or_load ──► judge; then a pause

Readers and writers draw from generators that are seeded, so two runs have the same traffic as far
as threads permit.
"""

from __future__ import annotations

import random
import threading
from array import array

from lapse.caches import TTLCache
from lapse.demo.ledger import Fault, Snapshot
from lapse.demo.origin import Origin
from lapse.demo.popularity import Popularity

__all__ = ["Reader", "Writer"]

BURST = 64  # reads between two pauses of a reader, as of one request to a server
PAUSE = 0.001  # seconds
FAULTS = 3  # that each reader remembers
JOIN = 20.0  # seconds for a thread to end


class Worker:
    """A thread that works until an event is set, and keeps what stopped it before."""

    def __init__(self, name: str, stop: threading.Event, origin: Origin, seed: str) -> None:
        self.stop = stop
        self.origin = origin
        self.rng = random.Random(seed)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"lapse-demo-{name}", daemon=True)
        self.start = self._thread.start

    def work(self) -> None:
        """Until `self.stop` is set."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self._error = error
            self.stop.set()

    def join(self) -> None:
        """Wait for the end, if it has begun; raises what the thread has raised."""
        if self._thread.ident is not None:
            self._thread.join(JOIN)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise RuntimeError(f"{self._thread.name} does not stop")


class Writer(Worker):
    """Changes the database, `pause` seconds apart on average."""

    def __init__(
        self, name: str, stop: threading.Event, origin: Origin, seed: str, pause: float
    ) -> None:
        super().__init__(name, stop, origin, seed)
        self._rate = 1 / pause

    def work(self) -> None:
        while not self.stop.wait(self.rng.expovariate(self._rate)):
            self.origin.change(self.rng)


class Reader(Worker):
    """Reads what is popular through a cache, and judges every value."""

    def __init__(
        self,
        name: str,
        stop: threading.Event,
        origin: Origin,
        seed: str,
        cache: TTLCache[str, Snapshot],
        popularity: Popularity,
    ) -> None:
        super().__init__(name, stop, origin, seed)
        self._get_or_load = cache.get_or_load
        self._popularity = popularity
        self.reads = 0
        self.loads = 0
        #: For how long the outdated values had been so when they were asked for, in seconds.
        self.ages = array("d")
        #: How many must not have been served, and the first of these.
        self.fault_count = 0
        self.faults: list[Fault] = []

    def work(self) -> None:
        get_or_load, load, clock = self._get_or_load, self._load, self.origin.ledger.clock
        while not self.stop.is_set():
            for key in self._popularity.draw(self.rng, BURST):
                began = clock()
                value = get_or_load(key, load)
                for row, version in value.rows:
                    if version != row.newest:
                        self._judge(value, began)
                        break
            self.reads += BURST
            self.stop.wait(PAUSE)

    def _load(self, key: str) -> Snapshot:
        self.loads += 1
        return self.origin.load(key)

    def _judge(self, value: Snapshot, began: float) -> None:
        """One of its rows has another version now."""
        age, fault = self.origin.ledger.judge(value.rows, began)
        if age:
            self.ages.append(age)
        if fault is not None:
            self.fault_count += 1
            if len(self.faults) < FAULTS:
                self.faults.append(fault)
