"""How long after a key is invalidated in one process is it gone from the cache of another?

    python benchmarks/latency_valkey.py

Two processes on one host, a private Valkey between them. The clock starts before
`publish_invalidation()`, which also removes the key from the publisher's own cache, and stops when
the other cache tells its listener that the entry went. Both read the same monotonic clock.

A figure of one host: no network, and nothing else for the processes to do. Their own work comes on
top in yours, for Python receives in a thread that waits for the interpreter like any other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lapse import TTLCache
from lapse.invalidation import Invalidation
from lapse.sources.kombu import KombuQueue
from lapse.sources.message_queue import MessageQueueInvalidation

LIMIT = 10.0  # milliseconds that single invalidations may take, 99 of 100


def publish(orders: Connection, url: str) -> None:
    """The other process: invalidate the keys that are asked for, and answer when each was begun."""
    with MessageQueueInvalidation(TTLCache(None), KombuQueue(url)) as invalidator:
        orders.send("ready")
        while (order := orders.recv()) is not None:
            groups, pause = order
            began = []
            for keys in groups:
                began.append(time.monotonic())
                if len(keys) == 1:
                    invalidator.publish_invalidation("invalidate_key", key=keys[0])
                else:
                    invalidator.publish([Invalidation("key", key) for key in keys])
                time.sleep(pause)
            orders.send(began)


class Watched:
    """A cache that notes when its keys go."""

    def __init__(self, url: str) -> None:
        self.cache: TTLCache[str, int] = TTLCache(None, listener=self._gone)
        self.invalidator = MessageQueueInvalidation(self.cache, KombuQueue(url))
        self._at: dict[str, float] = {}
        self._left = 0
        self._all = threading.Event()

    def expect(self, keys: Sequence[str]) -> None:
        """Hold these keys, and wait for them from now on."""
        self._at.clear()
        self._all.clear()
        self._left = len(keys)
        self.cache.set_many(dict.fromkeys(keys, 1))

    def moments(self, keys: Sequence[str]) -> list[float]:
        """When each of them went."""
        if not self._all.wait(30):
            raise RuntimeError(f"{self._left} keys have not gone")
        return [self._at[key] for key in keys]

    def _gone(self, key: str, value: int, cause: str) -> None:
        self._at[key] = time.monotonic()
        self._left -= 1
        if not self._left:
            self._all.set()


def measure(watched: Watched, orders: Any, count: int, size: int, pause: float) -> list[float]:
    """Milliseconds until the last key of each group was gone, in order of size."""
    groups = [[f"item:{n}:{m}" for m in range(size)] for n in range(count)]
    watched.expect([key for group in groups for key in group])
    orders.send((groups, pause))
    began = orders.recv()
    ends = [max(watched.moments(group)) for group in groups]
    return sorted(1000 * (end - begin) for begin, end in zip(began, ends, strict=True))


def at(ordered: Sequence[float], share: float) -> float:
    """The value below which so many of them are."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def main() -> int:
    """Measure, print a table, and judge its first row."""
    from servers.valkey import Valkey

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000, help="single invalidations")
    parser.add_argument("--rate", type=float, default=200, help="of them a second")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder)) as server:
        watched = Watched(server.url)
        orders, theirs = context.Pipe()
        process = context.Process(target=publish, args=(theirs, server.url), daemon=True)
        process.start()
        orders.recv()
        measure(watched, orders, 20, 1, 0.01)
        rows = {
            "one key": measure(watched, orders, asked.count, 1, 1 / asked.rate),
            "100 keys in a batch": measure(watched, orders, asked.count // 20, 100, 0.05),
            "1,000 keys in a batch": measure(watched, orders, asked.count // 40, 1000, 0.1),
        }
        orders.send(None)
        process.join()
        watched.invalidator.close()
    print(f"{'milliseconds until gone':24}{'count':>8}{'p50':>8}{'p99':>8}{'max':>8}")
    for name, took in rows.items():
        figures = "".join(f"{value:8.2f}" for value in (at(took, 0.5), at(took, 0.99), took[-1]))
        print(f"{name:24}{len(took):8}{figures}")
    missed = at(rows["one key"], 0.99) > LIMIT
    print(f"one key, p99: at most {LIMIT} ms is {'missed' if missed else 'met'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
