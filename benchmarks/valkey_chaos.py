"""Does a cache hold anything that is not true any more, after its Valkey was killed under load?

    python benchmarks/valkey_chaos.py --rounds 5

Several processes with several caches each read from an origin, a SQLite file of versions; some of
them write to it and publish what they have changed, over a private Valkey. Each round kills the
server with signal 9 and starts it again, empty, after a random while. Everybody goes on meanwhile
and afterwards; half a second before the five are over nobody writes any more, and when they are,
whatever the caches hold is compared with the origin. A stale key is exit status 1; so is a cache
that has not noticed a kill, or holds nothing. The caches have no ttl: what is missed stays wrong.

Columns: sends that `failed` were retried, what is `unsent` waits for that; `noticed` are the
resyncs of a link that was dead, `twice` the second copies of retries; bytes are those of
batches and of single messages, before and after compression.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from chaos_process import Origin, Part, run
from servers.valkey import Valkey

BACK = 5.0  # seconds after the return of the server within which everything must be true
QUIET = 0.5  # seconds of these in which nobody writes
LONGEST_DOWN = 3.0  # seconds
KEYS = 500


class Child:
    """A process, from its parent's side."""

    def __init__(self, name: str, part: Part) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(theirs, part), daemon=True)
        self._process.start()
        self._answer()

    def tell(self, order: str) -> Any:
        """Say something and wait for the answer."""
        self._orders.send(order)
        return self._answer()

    def end(self) -> None:
        """Close it."""
        self.tell("close")
        self._process.join(10)

    def _answer(self) -> Any:
        if not self._orders.poll(60):
            raise RuntimeError(f"{self.name} does not answer")
        return self._orders.recv()


def stale(items: dict[str, int], truth: dict[str, int]) -> int:
    """How many keys a cache holds in another version than the true one."""
    return sum(version != truth[key] for key, version in items.items())


def play(server: Valkey, children: list[Child], load: float, draw: random.Random) -> float:
    """One round: load, kill, wait, start, load; the seconds that the server was down."""
    time.sleep(load)
    server.kill()
    began = time.monotonic()
    time.sleep(draw.uniform(0.2, LONGEST_DOWN))
    server.start()
    back = time.monotonic()
    time.sleep(BACK - QUIET)
    for child in children:
        child.tell("pause")
    time.sleep(max(0.0, back + BACK - time.monotonic()))
    return back - began


def judge(children: list[Child], origin: Origin) -> list[dict[str, Any]]:
    """A row of figures for each cache; nobody writes meanwhile."""
    truth = origin.versions()
    rows = []
    for child in children:
        report = child.tell("report")
        pairs = zip(report["items"], report["stats"], strict=True)
        for number, (items, stats) in enumerate(pairs):
            row = {"cache": f"{child.name}/{number}", "reads": report["reads"][number]}
            row["writes"] = report["writes"] if number == 0 else 0  # which the first one publishes
            rows.append(row | figures(stats) | {"held": len(items), "stale": stale(items, truth)})
    return rows


def judge_patiently(
    children: list[Child], origin: Origin, number: int, patience: float
) -> list[dict[str, Any]]:
    """The same after round `number`; if not all is well yet, anew, as nobody writes meanwhile."""
    end = time.monotonic() + patience
    rows = judge(children, origin)
    while sum(faults_of(rows, number)) and time.monotonic() < end:
        time.sleep(QUIET)
        rows = judge(children, origin)
    return rows


def faults_of(rows: list[dict[str, Any]], number: int) -> tuple[int, int]:
    """Values that are stale, and caches that have not noticed a kill, or hold nothing."""
    blind = sum(row["noticed"] < number or not row["held"] for row in rows)
    return sum(row["stale"] for row in rows), blind


def figures(stats: Any) -> dict[str, Any]:
    """Those of an invalidator that tell the story."""
    return {
        "published": stats.published,
        "failed": stats.publish_failures,
        "unsent": stats.unsent,
        "messages": stats.messages,
        "applied": stats.applied,
        "noticed": stats.resyncs.get("reconnected", 0),
        "resyncs": sum(stats.resyncs.values()),
        "gaps": stats.gaps,
        "twice": stats.duplicates,
        "poison": stats.poison,
        "errors": stats.errors,
        "raw out": stats.raw_out,
        "wire out": stats.wire_out,
        "p50 ms": f"{1000 * stats.latency_p50:.1f}",
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    table = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often the server is killed")
    parser.add_argument("--load", type=float, default=2.0, help="seconds before each kill")
    parser.add_argument("--writers", type=int, default=2, help="processes that write")
    parser.add_argument("--readers", type=int, default=3, help="processes that only read")
    parser.add_argument("--caches", type=int, default=2, help="caches of each process")
    parser.add_argument("--writes", type=float, default=100, help="a second, of each writer")
    parser.add_argument("--patience", type=float, default=0, help="seconds more, if needed")
    parser.add_argument("--seed", type=int, default=1)
    return run_rounds(parser.parse_args())


def run_rounds(asked: argparse.Namespace) -> int:
    """Play all rounds and print what came of them; the exit status."""
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder)) as server:
        path = Path(folder) / "origin"
        origin = Origin(path)
        origin.create(KEYS)
        roles = [("writer", asked.writes)] * asked.writers + [("reader", 0)] * asked.readers
        children = [
            Child(f"{role}-{n}", Part(server.url, path, asked.caches, writes, asked.seed + n))
            for n, (role, writes) in enumerate(roles)
        ]
        for child in children:
            child.tell("start")
        faults = 0
        for number in range(1, asked.rounds + 1):
            down = play(server, children, asked.load, draw)
            rows = judge_patiently(children, origin, number, asked.patience)
            held = sum(row["held"] for row in rows)
            wrong, blind = faults_of(rows, number)
            faults += wrong + blind
            print(
                f"round {number}: down for {down:.2f} s; {BACK:.0f} s later {held} values held,",
                end=" ",
            )
            print(f"{wrong} of them stale; {blind} caches have not noticed", flush=True)
            if number < asked.rounds:
                for child in children:
                    child.tell("resume")
        show(rows)
        for child in children:
            child.end()
    print(f"violations: {faults}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
