"""Who is compared: bounded caches of lapse and of others, each with how it is asked.

All are held to their size. moka-py puts evictions off and holds more than its size meanwhile: on
small caches it beats the optimum that way. So it is told to do its pending work after each store.

libcachesim simulates: it holds no values, and is given numbers for keys.
"""

from __future__ import annotations

__all__ = ["LAPSE", "RIVALS", "Contender", "Replay", "named", "plain"]

import functools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from lapse import TTLCache, __version__
from lapse.bounds import POLICIES
from lapse.replay import VALUE, own, race
from lapse.traces import Key

#: Asks a cache for these keys, stores those that it misses, and returns how many they are.
Replay = Callable[[Sequence[Key]], int]

_KNOWN_VERSIONS = {"lapse": __version__, "Python": platform.python_version()}


@dataclass(frozen=True, slots=True)
class Contender:
    """A kind of bounded cache."""

    name: str
    #: Makes an empty one that holds so many entries.
    make: Callable[[int], Replay]
    #: The package that it comes with, as it is installed.
    package: str = "Python"
    #: Whether it does what a cache does, so that its speed means something.
    timed: bool = True
    #: The smallest size that it can have.
    least: int = 1

    @property
    def version(self) -> str | None:
        """The version of its package; None if that is not installed."""
        if self.package in _KNOWN_VERSIONS:
            return _KNOWN_VERSIONS[self.package]
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


def plain(path: str, store: str, **options: Any) -> Callable[[int], Replay]:
    """A maker of `path` ("module.Class"): `get` reads, None is a miss, and `store` stores."""
    module, _, name = path.rpartition(".")

    def make(capacity: int) -> Replay:
        cache = getattr(import_module(module), name)(capacity, **options)
        return functools.partial(own(race), cache.get, getattr(cache, store))

    return make


def _lapse(policy: str) -> Contender:
    def make(capacity: int) -> Replay:
        cache: Any = TTLCache(None, None, maxsize=capacity, policy=policy)
        return functools.partial(own(race), cache.get, cache.set)

    return Contender(f"lapse {policy}", make, "lapse")


# --- Those that are asked in another way; a loop each, so that no wrapper slows them ---


def _lru_cache(capacity: int) -> Replay:
    load = functools.lru_cache(capacity)(lambda key: VALUE)

    def replay(keys: Sequence[Key]) -> int:
        before = load.cache_info().misses
        for key in keys:
            load(key)
        return load.cache_info().misses - before

    return replay


def _theine(capacity: int) -> Replay:
    cache = import_module("theine").Cache(capacity)
    get, store = cache.get, cache.set

    def replay(keys: Sequence[Key]) -> int:
        misses = 0
        for key in keys:
            if not get(key)[1]:
                store(key, VALUE)
                misses += 1
        return misses

    return replay


def _moka(capacity: int) -> Replay:
    cache = import_module("moka_py").Moka(capacity, policy="tiny_lfu")
    get, store, settle = cache.get, cache.set, cache.run_pending_tasks

    def replay(keys: Sequence[Key]) -> int:
        misses = 0
        for key in keys:
            if get(key) is None:
                store(key, VALUE)
                settle()
                misses += 1
        return misses

    return replay


def _simulated(policy: str, capacity: int, **options: Any) -> Replay:
    libcachesim = import_module("libcachesim")
    cache, request = getattr(libcachesim, policy)(capacity, **options), libcachesim.Request()
    get = cache.get
    numbers: dict[Key, int] = {}

    def replay(keys: Sequence[Key]) -> int:
        misses = 0
        for key in keys:
            request.obj_id = numbers.setdefault(key, len(numbers) + 1)
            misses += not get(request)
        return misses

    return replay


def _s3fifo(capacity: int) -> Replay:
    """With a small queue of one entry libcachesim stores nothing, and without one it aborts."""
    return _simulated("S3FIFO", capacity, small_size_ratio=max(0.1, 2.5 / capacity))


#: The policies of lapse by their names.
LAPSE = {policy: _lapse(policy) for policy in POLICIES}

RIVALS = (
    Contender("lru_cache", _lru_cache),
    Contender("cachetools LRU", plain("cachetools.LRUCache", "__setitem__"), "cachetools"),
    Contender("cachetools LFU", plain("cachetools.LFUCache", "__setitem__"), "cachetools"),
    Contender("cachebox LRU", plain("cachebox.LRUCache", "insert"), "cachebox"),
    Contender("cachebox LFU", plain("cachebox.LFUCache", "insert"), "cachebox"),
    Contender("lru-dict", plain("lru.LRU", "__setitem__"), "lru-dict"),
    Contender("theine", _theine, "theine"),
    Contender("moka", _moka, "moka-py"),
    Contender("SIEVE", functools.partial(_simulated, "Sieve"), "libcachesim", timed=False),
    Contender("S3-FIFO", _s3fifo, "libcachesim", timed=False, least=3),
    Contender("ARC", functools.partial(_simulated, "ARC"), "libcachesim", timed=False),
)


def named(policies: str) -> list[Contender]:
    """The contenders of lapse for a list of policies such as `duel,lru`.

    Raises:
        ValueError: There is no such policy.
    """
    wanted = [policy.strip() for policy in policies.split(",")]
    for policy in wanted:
        if policy not in LAPSE:
            raise ValueError(f"unknown policy {policy!r}; known: {', '.join(LAPSE)}")
    return [LAPSE[policy] for policy in dict.fromkeys(wanted)]
