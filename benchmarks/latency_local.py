"""How long does an invalidation take from one process to all others of a same-host bus?

    PYTHONPATH=src python benchmarks/latency_local.py --processes 4 --rounds 2000

One process broadcasts; each of the others notes, on the system's monotonic clock, when its
listener finds the key gone from its cache. Printed are the slowest of them in each round, counted
from before the call, and the length of the call with wait=True. The processes are idle between the
rounds; what else the machine does shows in the figures, so look at the load first.
"""

from __future__ import annotations

import argparse
import datetime
import mmap
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lapse import TTLCache
from lapse.distributed.broadcast import BroadcastInvalidation
from lapse.distributed.local import LocalBroadcaster
from lapse.invalidation.source import Batch

TIME = struct.Struct("=q")
POLL = 0.0005  # seconds between looks at what the others have noted


class Slots:
    """When each process found each key gone: nanoseconds in a file that all of them map."""

    def __init__(self, path: Path, processes: int, rounds: int) -> None:
        self._rounds = rounds
        size = processes * rounds * TIME.size
        with path.open("r+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)

    def note(self, process: int, number: int) -> None:
        TIME.pack_into(self._map, self._place(process, number), time.monotonic_ns())

    def read(self, process: int, number: int) -> int:
        return int(TIME.unpack_from(self._map, self._place(process, number))[0])

    def _place(self, process: int, number: int) -> int:
        return (process * self._rounds + number) * TIME.size


def listen(options: argparse.Namespace) -> None:
    """One of the others: notes what goes, until it is killed."""
    slots = Slots(options.slots, options.processes, options.rounds)
    cache: TTLCache[str, int] = TTLCache(3600)
    cache.set_many({f"key:{number}": number for number in range(options.rounds)})

    def gone(batch: Batch) -> None:
        for item in batch.invalidations:
            if item.target not in cache:
                slots.note(options.listen, int(item.target.rpartition(":")[2]))

    bus = LocalBroadcaster("latency", directory=options.slots.parent)
    with BroadcastInvalidation(cache, bus, listener=gone):
        print("ready", flush=True)
        sys.stdin.read()


def start(options: argparse.Namespace, path: Path, number: int) -> subprocess.Popen[str]:
    command = [
        sys.executable, __file__, "--listen", str(number), "--slots", str(path),
        "--processes", str(options.processes), "--rounds", str(options.rounds),
    ]  # fmt: skip
    member = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert member.stdout is not None
    assert member.stdout.readline() == "ready\n"
    return member


def measure(options: argparse.Namespace, slots: Slots, news: BroadcastInvalidation) -> None:
    others = range(1, options.processes)
    latencies, calls = [], []
    for number in range(options.rounds):
        waits = number % 2 == 1
        began = time.monotonic_ns()
        news.broadcast_invalidation("key", key=f"key:{number}", wait=waits)
        ended = time.monotonic_ns()
        while not all(slots.read(process, number) for process in others):
            time.sleep(POLL)
        if waits:
            calls.append(ended - began)
        else:
            latencies.append(max(slots.read(process, number) for process in others) - began)
        time.sleep(options.pause)
    report("invalidate -> gone everywhere", latencies)
    report("broadcast(wait=True)", calls)


def report(what: str, nanoseconds: list[int]) -> None:
    ordered = sorted(nanoseconds)
    at = [ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.5, 0.99, 1)]
    p50, p99, most = (f"{each / 1000:,.0f}" for each in at)
    print(f"{what:30}  p50 {p50:>7} µs   p99 {p99:>7} µs   max {most:>7} µs   n {len(ordered)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--pause", type=float, default=0.001, help="seconds between rounds")
    parser.add_argument("--listen", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--slots", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.listen is not None:
        listen(options)
        return
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} processors, "
        f"load {os.getloadavg()[0]:.1f}, CPython {platform.python_version()}, "
        f"{options.processes} processes"
    )
    with tempfile.TemporaryDirectory(prefix="lapse-", dir="/tmp") as folder:
        path = Path(folder) / "slots"
        path.touch()
        members = [start(options, path, number) for number in range(1, options.processes)]
        try:
            slots = Slots(path, options.processes, options.rounds)
            bus = LocalBroadcaster("latency", directory=folder)
            with BroadcastInvalidation(TTLCache(3600), bus) as news:
                measure(options, slots, news)
        finally:
            for member in members:
                member.kill()
                member.wait()


if __name__ == "__main__":
    main()
