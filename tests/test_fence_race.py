"""No stale store: loads and invalidations that race, over every kind of invalidation.

An origin holds the version of each key. Loaders take a lease, read the version, and fill. The one
invalidator of a key raises the version, invalidates, and then looks: what the cache holds must not
be older. LAPSE_LONG=1 races a million invalidations over all kinds, instead of a share of them.
"""

from __future__ import annotations

import os
import sys
from time import sleep
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

import pytest

import lapse
from support import check
from test_threads import in_threads

LONG = os.environ.get("LAPSE_LONG") == "1"
PAIRS = 1_000_000 if LONG else 100_000  # over all kinds
INVALIDATORS, LOADERS = 2, 2
KEYS = 3  # of each invalidator
OTHERS = 8000  # entries beside them: enough for a prefix to be indexed


class Kind(NamedTuple):
    """How a change is told to the cache, and where its loads name their tag."""

    invalidate: Callable[[Any, str, int], Any]
    at_lease: bool = False
    at_fill: bool = False


KINDS = {
    "key": Kind(lambda cache, key, n: cache.delete(key)),
    "set": Kind(lambda cache, key, n: cache.set(key, n)),
    "pop and add": Kind(lambda cache, key, n: (cache.pop(key, 0), cache.add(key, n))),
    "pattern": Kind(lambda cache, key, n: cache.delete_pattern(key + "*")),
    "look at every key": Kind(lambda cache, key, n: cache.delete_pattern("*" + key)),
    "table": Kind(lambda cache, key, n: cache.invalidate_table(key[:-1])),
    "tag at the lease": Kind(lambda cache, key, n: cache.delete_tag(key), at_lease=True),
    "tag at the fill": Kind(lambda cache, key, n: cache.delete_tag(key), at_fill=True),
    "clear": Kind(lambda cache, key, n: cache.clear()),
    "batch of keys": Kind(lambda cache, key, n: cache._invalidate_keys(["x", key, "y"])),
    "batch of patterns": Kind(
        lambda cache, key, n: cache._invalidate_patterns(["x*", key + "*", "y:*"])
    ),
}
SINGLE = list(KINDS.values())
KINDS["all in turn"] = Kind(
    lambda cache, key, n: SINGLE[n % len(SINGLE)].invalidate(cache, key, n), at_fill=True
)


class NaiveCache(dict):  # type: ignore[type-arg]
    """A cache without a fence: a fill stores what was loaded, whatever happened meanwhile."""

    def lease(self, key: str, *, tags: Any) -> str:
        return key

    def fill(self, lease: str, value: int, *, tags: Any) -> bool:
        self[lease] = value
        return True

    def delete(self, key: str) -> None:
        self.pop(key, None)


class Race:
    """What came of loaders and invalidators that raced on one cache."""

    def __init__(self, cache: Any, kind: Kind, pairs: int) -> None:
        self.cache, self.kind, self.pairs = cache, kind, pairs
        self.keys = [[f"t{i}:{n}:" for n in range(KEYS)] for i in range(INVALIDATORS)]
        self.versions = {key: 0 for keys in self.keys for key in keys}
        self.done = [False] * INVALIDATORS
        self.stale: list[tuple[str, int, int]] = []
        results = in_threads(self.work, INVALIDATORS + LOADERS)
        self.loads, self.stored, self.raced = map(sum, zip(*results, strict=True))
        for key, version in self.versions.items():
            self.look(key, version)

    def work(self, thread: int) -> tuple[int, int, int]:
        return self.load() if thread >= INVALIDATORS else self.invalidate(thread)

    def invalidate(self, thread: int) -> tuple[int, int, int]:
        keys = cycle(self.keys[thread])
        for n in range(1, self.pairs // INVALIDATORS + 1):
            key = next(keys)
            self.versions[key] = n
            self.kind.invalidate(self.cache, key, n)
            self.look(key, n)
            sleep(0)  # with a GIL it is another thread's turn
        self.done[thread] = True
        return 0, 0, 0

    def look(self, key: str, version: int) -> None:
        held = self.cache.get(key)
        if held is not None and held < version:
            self.stale.append((key, held, version))

    def load(self) -> tuple[int, int, int]:
        """Loads every key in turn while there are changes: how many, how many were stored, and how
        many a change overtook."""
        cache, versions, loads, stored, raced = self.cache, self.versions, 0, 0, 0
        while not all(self.done):
            for key in versions:
                lease = cache.lease(key, tags=(key,) if self.kind.at_lease else ())
                value = versions[key]
                sleep(0)
                raced += versions[key] != value
                stored += cache.fill(lease, value, tags=(key,) if self.kind.at_fill else ())
                loads += 1
        return loads, stored, raced


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """With a GIL, threads take turns every few microseconds."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stale_is_stored(kind):
    """Whatever the kind of the change, and whoever is quicker."""
    cache = lapse.TTLCache(None, cleanup_interval=None)
    cache.set_many({f"o{n % 50}:{n}": n for n in range(OTHERS)})
    race = Race(cache, KINDS[kind], PAIRS // len(KINDS))
    assert race.stale == []
    assert race.loads - race.stored == cache.stats().fenced_stores > 0
    assert race.stored > 0
    check(cache)


def test_the_race_is_one():
    """A cache without a fence loses it."""
    assert Race(NaiveCache(), KINDS["key"], PAIRS // len(KINDS)).stale != []
