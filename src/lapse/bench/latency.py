"""What a read waits for while another thread removes by pattern, again and again.

Each single read is timed. The loop is closed: a read that waits keeps the next one from starting,
so the percentiles are of reads, not of moments.
"""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from .cases import SEED, str_keys
from .contenders import Contender, compile_stall
from .engine import Plan, Progress, Series, Table, gc_paused, race
from .patterns import make_cache
from .probes import NS_PER_US, Probe

__all__ = ["LATENCY_PROBES", "READS", "ROUNDS", "Reads", "percentile"]

READS = 2_000_000  #: of one round: what is over the last percentile must be more than chance
PERIOD = 0.1  #: seconds from one pass to the next
ROUNDS = 10
PATTERN = "*:none"  #: it has no head, so every entry is looked at
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999, "max": 1.0}


def percentile(times: Counter[int], share: float) -> int:
    """The least time that `share` of all are within; exact."""
    wanted = share * times.total()
    seen = 0
    for value in sorted(times):
        seen += times[value]
        if seen >= wanted:
            return value
    raise ValueError("no times")


@contextmanager
def passes(cache: Any) -> Iterator[None]:
    """A stretch during which another thread runs the pattern over the cache every PERIOD.

    What the thread raises is raised at the end.
    """
    stop = threading.Event()

    def run() -> None:
        due = time.monotonic()
        stopped = False
        while not stopped:
            cache.delete_pattern(PATTERN)
            due += PERIOD
            stopped = stop.wait(max(0.0, due - time.monotonic()))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield
        finally:
            stop.set()
    running.result()


class Reads:
    """Single reads of a full cache in random order, alone or beside the passes."""

    def __init__(self, entries: int, reads: int) -> None:
        self.cache = make_cache()
        keys = str_keys(entries)
        self.cache.set_many(dict.fromkeys(keys, b""))
        self.keys = random.Random(SEED).choices(keys, k=reads)
        self.out = array("q", bytes(8 * reads))
        self.loop = compile_stall("c.get(k)")
        self.figures: dict[str, dict[str, list[float]]] = {
            name: {share: [] for share in SHARES} for name in ("quiet", "busy")
        }

    def quiet(self, number: int) -> float:
        """The 99th percentile of a round of reads alone, in microseconds."""
        return self.measure("quiet", nullcontext(), number)

    def busy(self, number: int) -> float:
        """The same beside the passes."""
        return self.measure("busy", passes(self.cache), number)

    def measure(self, name: str, beside: AbstractContextManager[None], number: int) -> float:
        """Note every percentile of one round."""
        with gc_paused(), beside:
            self.loop(self.cache, self.keys, None, self.out)
        times = Counter(self.out)
        found = {key: percentile(times, share) / NS_PER_US for key, share in SHARES.items()}
        if number >= 0:
            for share, figure in found.items():
                self.figures[name][share].append(figure)
        return found["p99"]


def _reads(contenders: Sequence[Contender], plan: Plan, progress: Progress) -> list[Table]:
    reads = Reads(plan.large, READS)
    race({"quiet": reads.quiet, "busy": reads.busy}, min(plan.rounds, ROUNDS), progress)
    return [_table(share, reads, plan) for share in SHARES]


def _table(share: str, reads: Reads, plan: Plan) -> Table:
    title = f"{share} of get, a pattern over {plan.large:,} entries every {PERIOD:g} s when busy"
    series = [Series(name, figures[share]) for name, figures in reads.figures.items()]
    table = Table(f"read-{share}", title, "µs", series, baseline="quiet")
    if share == "max":
        table.summary, table.paired = max, False
    return table


LATENCY_PROBES = (Probe("pattern-read", "single reads beside pattern passes", _reads),)
