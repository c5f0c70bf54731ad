"""No stale store: loads and invalidations that race, over every kind of invalidation.

An origin holds the version of each key. Loaders take a lease, read the version, and fill. The one
invalidator of a key raises the version and invalidates; from then on, whenever it looks, what the
cache holds must not be older. A pair is a load that a change of its key overtook before the fill.
LAPSE_LONG=1 races a million pairs over all kinds, instead of a share of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import cycle
from time import sleep
from typing import Any, NamedTuple

import pytest

import lapse
from support import check, switching
from test_threads import in_threads

LONG = os.environ.get("LAPSE_LONG") == "1"
PAIRS = 1_000_000 if LONG else 20_000  # over all kinds,
RACE = 5_000  # at most so many in one race
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
        lambda cache, key, n: cache._invalidate_patterns(["x:*", key + "*", "y:*"])
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
    """What came of loaders and invalidators that raced on one cache for so many pairs."""

    def __init__(self, cache: Any, kind: Kind, pairs: int) -> None:
        self.cache, self.kind = cache, kind
        self.keys = [[f"t{i}:{n}:" for n in range(KEYS)] for i in range(INVALIDATORS)]
        self.versions = {key: 0 for keys in self.keys for key in keys}
        self.wanted = -(-pairs // LOADERS)  # of each loader
        self.loading = [True] * LOADERS
        self.stale: list[tuple[str, int, int]] = []
        results = in_threads(self.work, LOADERS + INVALIDATORS)
        self.loads, self.stored, self.pairs = map(sum, zip(*results[:LOADERS], strict=True))
        for key in self.versions:
            self.look(key)

    def work(self, thread: int) -> Any:
        return self.load(thread) if thread < LOADERS else self.change(self.keys[thread - LOADERS])

    def load(self, thread: int) -> tuple[int, int, int]:
        """How many loads, how many of them were stored, how many a change overtook."""
        cache, versions, loads, stored, pairs = self.cache, self.versions, 0, 0, 0
        for key in cycle(versions):
            lease = cache.lease(key, tags=(key,) if self.kind.at_lease else ())
            value = versions[key]
            sleep(0)  # with a GIL it is another thread's turn
            pairs += versions[key] != value
            stored += cache.fill(lease, value, tags=(key,) if self.kind.at_fill else ())
            loads += 1
            if pairs >= self.wanted:
                break
        self.loading[thread] = False
        return loads, stored, pairs

    def change(self, keys: list[str]) -> None:
        """Changes one key after the other while anybody loads."""
        for key in cycle(keys):
            self.look(key)
            self.versions[key] += 1
            self.kind.invalidate(self.cache, key, self.versions[key])
            self.look(key)
            sleep(0)
            if not any(self.loading):
                return

    def look(self, key: str) -> None:
        """For the one thread that changes the key."""
        held = self.cache.get(key)
        if held is not None and held < self.versions[key]:
            self.stale.append((key, held, self.versions[key]))


_switch_often = switching(2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stale_is_stored(kind):
    """Whatever the kind of the change, and whoever is quicker."""
    left = PAIRS // len(KINDS)
    while left > 0:
        cache = lapse.TTLCache(None, cleanup_interval=None)
        cache.set_many({f"o{n % 50}:{n}": n for n in range(OTHERS)})
        race = Race(cache, KINDS[kind], min(left, RACE))
        assert race.stale == []
        assert race.loads - race.stored == cache.stats().fenced_stores > 0
        assert race.stored > 0
        check(cache)
        left -= race.pairs


def test_the_race_is_one():
    """A cache without a fence loses it."""
    assert Race(NaiveCache(), KINDS["key"], PAIRS // len(KINDS) % RACE).stale != []
