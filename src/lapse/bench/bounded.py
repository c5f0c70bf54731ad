"""What a bounded cache costs when it is full: a new key, and a replay that misses.

A new key makes another entry go; beside it stands the same call on a cache without a bound. The
replay asks for keys by Zipf's law (exponent 1.0) and stores what is missing, like `lapse replay`;
each cache holds a tenth of all keys, so one that hits more often stores less often.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from lapse.policies.contenders import LAPSE, RIVALS, Replay
from lapse.replay import VALUE, own, race

from .cases import SEED, str_keys
from .contenders import compile_loop
from .contest import Contest, Trial
from .engine import Plan

__all__ = ["BOUNDED"]

KEYS_AN_ENTRY = 10
REQUESTS_A_KEY = 4
FEWEST_REQUESTS = 400_000
SET = "c.set(k, v)"
#: What a replay is compared with, and what it is measured beside for the record.
PEERS = [c for c in RIVALS if c.name in ("cachebox LRU", "cachetools LRU", "theine", "moka")]


class NewKeys(Trial):
    """Stores of keys that a full cache does not have, each round others."""

    def __init__(self, maxsize: int | None, size: int, plan: Plan) -> None:
        from lapse import TTLCache

        self.cache: Any = TTLCache(None, None, maxsize=maxsize)
        self.loop = compile_loop(SET)
        self.size, self.operations, self.round = size, min(size, plan.operations), 0
        self.cache.set_many(dict.fromkeys(str_keys(size), VALUE))

    def prepare(self) -> None:
        """Keys that nobody has seen."""
        self.round += 1
        self.keys = [f"new:{self.round}:{i}" for i in range(self.operations)]

    def call(self) -> object:
        """The loop."""
        return self.loop(self.cache, self.keys, VALUE)

    def finish(self, answer: object) -> None:
        """All have been stored: without a bound nothing has left before this."""
        if self.cache.maxsize is None:
            assert len(self.cache) == self.size + self.operations
            self.cache.delete_many(self.keys)
        assert len(self.cache) == self.size


class Zipf(Trial):
    """A replay by a cache that is made for it; the trace is shared."""

    def __init__(self, make: Any, size: int, trace: list[str]) -> None:
        self.make, self.size, self.trace, self.operations = make, size, trace, len(trace)

    def prepare(self) -> None:
        """An empty cache."""
        self.replay: Replay = self.make(self.size)

    def call(self) -> object:
        """The replay."""
        return self.replay(self.trace)

    def finish(self, answer: object) -> None:
        """It has missed some, and let the cache go."""
        assert 0 < int(answer) < len(self.trace)  # type: ignore[call-overload]
        del self.replay


class LRUByHand:
    """The cache that people write: an OrderedDict, the newest last."""

    def __init__(self, size: int) -> None:
        self.entries: OrderedDict[Any, Any] = OrderedDict()
        self.size = size

    def get(self, key: Any) -> Any:
        """The value, which becomes the newest; None if it is not there."""
        if key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key]

    def set(self, key: Any, value: Any) -> None:
        """Store it as the newest; the oldest makes way."""
        self.entries[key] = value
        self.entries.move_to_end(key)
        if len(self.entries) > self.size:
            self.entries.popitem(last=False)


def by_hand(size: int) -> Replay:
    """The replay of a cache written by hand."""
    cache = LRUByHand(size)
    return partial(own(race), cache.get, cache.set)


def zipf_trace(keys: int) -> list[str]:
    """Requests for so many keys: the n-th most popular is asked for in proportion to 1 / n."""
    rng, names = random.Random(SEED), str_keys(keys)
    rng.shuffle(names)
    weights = list(accumulate(1 / rank for rank in range(1, keys + 1)))
    requests = max(FEWEST_REQUESTS, REQUESTS_A_KEY * keys)
    return rng.choices(names, cum_weights=weights, k=requests)


def _new_keys(size: str, plan: Plan) -> Sequence[Trial]:
    entries = getattr(plan, size)
    return [NewKeys(maxsize, entries, plan) for maxsize in (None, entries)]


CACHES: dict[str, Any] = {"OrderedDict": by_hand, "TTLCache": LAPSE["duel"].make}
CACHES |= {'TTLCache, "lru"': LAPSE["lru"].make}
CACHES |= {peer.name: peer.make for peer in PEERS if peer.version}


def _zipf(times: int, plan: Plan) -> Sequence[Trial]:
    size = plan.small * times
    trace = zipf_trace(size * KEYS_AN_ENTRY)
    return [Zipf(make, size, trace) for make in CACHES.values()]


BOUNDED = (
    *(
        Contest(
            f"evict-{name}",
            f"set, a new key, {{{size}:,}} entries",
            "ns",
            ("no bound", "TTLCache"),
            partial(_new_keys, size),
            "no bound",
        )
        for name, size in (("1k", "small"), ("1m", "large"))
    ),
    *(
        Contest(
            f"zipf-{name}",
            f"a request of a Zipf replay, {name} entries, ten keys an entry",
            "ns",
            tuple(CACHES),
            partial(_zipf, times),
            "OrderedDict",
            most_rounds=rounds,
        )
        for name, times, rounds in (("1k", 1, 31), ("10k", 10, 15), ("100k", 100, 7))
    ),
)
