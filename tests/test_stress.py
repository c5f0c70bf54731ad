"""Stress: many threads, many calls, and a deep look at the cache afterwards.

A value knows its key and the first moment at which nobody may get it. LAPSE_LONG=1 makes all calls:
20 threads x 40,000 mixed ones, 64 threads x 156,000 reads; otherwise a twentieth of them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from support import check, switching
from test_threads import in_threads

LONG = os.environ.get("LAPSE_LONG") == "1"
SHARE = 1 if LONG else 20
CALLS, READS = 40_000 // SHARE, 156_000 // SHARE
KEYS, BATCH, MOST = 4000, 50, 1500
TTLS = [0.5, 1.0, 5.0]
LONGEST = 3.0  # life of a sliding entry
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


_switch_often = switching(5e-5)


class Value:
    """Belongs to a key; `until` is a moment at which it is gone, once it has been stored."""

    __slots__ = ("key", "until")

    def __init__(self, key: str) -> None:
        self.key, self.until = key, float("inf")


class Stress:
    """Mixed calls on one cache; `wrong` has each value that should not have been got."""

    def __init__(self, cache: Any, longest: float | None) -> None:
        self.cache, self.longest = cache, longest
        self.wrong: list[tuple[str, str, float, float]] = []

    def look(self, key: str, value: Any, asked: float) -> None:
        """`value` was got under `key` by a call that began at the moment `asked`."""
        if value is not None and (value.key != key or asked >= value.until):
            self.wrong.append((key, value.key, asked, value.until))

    def stored(self, value: Value, ttl: float) -> None:
        """It has been stored, at this moment or earlier."""
        life = ttl if self.longest is None else self.longest
        value.until = min(value.until, self.cache.clock() + life)

    def work(self, thread: int) -> None:
        rng = random.Random(thread)
        for call in range(CALLS):
            if call % 100 == 0:
                self.cache.clock.advance(0.25)
            rng.choice(MIXED)(self, f"k:{rng.randrange(KEYS)}", rng)

    def read(self, key: str, rng: random.Random) -> None:
        asked = self.cache.clock()
        self.look(key, self.cache.get(key), asked)

    def read_many(self, key: str, rng: random.Random) -> None:
        keys = [f"k:{rng.randrange(KEYS)}" for _ in range(BATCH)]
        asked = self.cache.clock()
        for each, value in zip(keys, self.cache.gather(keys), strict=True):
            self.look(each, value, asked)

    def write(self, key: str, rng: random.Random) -> None:
        ttl = rng.choice(TTLS)
        value = Value(key)
        self.cache.set(key, value, ttl, tags=[f"tag {len(key)}"])
        self.stored(value, ttl)

    def write_many(self, key: str, rng: random.Random) -> None:
        values = {key: Value(key) for key in (f"k:{rng.randrange(KEYS)}" for _ in range(BATCH))}
        self.cache.set_many(values, 5.0)
        for value in values.values():
            self.stored(value, 5.0)

    def load(self, key: str, rng: random.Random) -> None:
        asked = self.cache.clock()
        value = self.cache.get_or_load(key, Value, 5.0)
        self.look(key, value, asked)
        self.stored(value, 5.0)

    def pop(self, key: str, rng: random.Random) -> None:
        asked = self.cache.clock()
        self.look(key, self.cache.pop(key, None), asked)

    def change(self, key: str, rng: random.Random) -> None:
        self.cache.delete(key)

    def rarely(self, key: str, rng: random.Random) -> None:
        cache = self.cache
        what = rng.randrange(200)
        if what < 4:
            [cache.clear, cache.expire, lambda: cache.delete_pattern("k:1*"), cache.stats][what]()
        elif what == 4:
            cache.delete_tag("tag 5")
        elif what == 5:
            for found, value in cache.items():
                self.look(found, value, 0.0)
        elif what < 40:
            cache.delete_many([f"k:{rng.randrange(KEYS)}" for _ in range(BATCH)])


MIXED = [
    Stress.read, Stress.read, Stress.read, Stress.read_many, Stress.write, Stress.write,
    Stress.write_many, Stress.load, Stress.pop, Stress.change, Stress.rarely,
]  # fmt: skip


@pytest.mark.parametrize("maxsize", [None, MOST], ids=["unbounded", "bounded"])
def test_mixed_calls_of_20_threads(make, kind, maxsize):
    """Every value belongs to its key, none is got when its time is over, the table is intact."""
    longest = LONGEST if kind == "sliding" else None
    options = {"max_lifetime": LONGEST} if kind == "sliding" else {}
    cache = make(10, maxsize=maxsize, **options)
    stress = Stress(cache, longest)
    in_threads(stress.work, 20)
    assert stress.wrong == []
    stats = cache.stats()
    assert min(stats.hits, stats.expirations, stats.replaced, stats.tag_deletes) > 0
    check(cache)
    assert maxsize is None or len(cache) <= maxsize
    cache.clear()
    check(cache)


def test_64_threads_read(make):
    """Reads of many threads beside one that writes: each value belongs to its key."""
    cache = make(10)
    keys = [f"k:{n}" for n in range(1000)]
    cache.set_many({key: Value(key) for key in keys})
    wrong: list[Any] = []
    done = threading.Event()

    def write() -> None:
        n = 0
        while not done.is_set():
            n += 1
            cache.set(keys[n % 1000], Value(keys[n % 1000]))
            cache.set(f"other:{n % 3000}", n)
            cache.delete(f"other:{n * 7 % 3000}")

    def read(thread: int) -> None:
        get = cache.get
        for n in range(READS):
            key = keys[(n * 7 + thread) % 1000]
            if get(key).key != key:
                wrong.append(key)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        in_threads(read, 64)
    finally:
        done.set()
        writer.join()
    assert wrong == []
    assert cache.stats().hits >= 0.99 * 64 * READS
    check(cache)


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ is not here")
def test_a_short_soak():
    """Three seconds of benchmarks/soak.py: no fault, and the tables intact."""
    pytest.importorskip("rich")
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "soak.py", "--minutes=0.05", "--seed=1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 faults" in done.stdout
