"""The default policy, call by call: what the native cache lets go, and why, is what its model does.

The model (tests/duel_model.py) has segments as the native table has them, so both agree to the last
entry. The same model with one segment, however large, says what segments cost.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from duel_model import DuelModel
from lapse import ManualClock, TTLCache
from lapse.traces import open_sample, open_trace

LONG = os.environ.get("LAPSE_LONG") == "1"
TRACES = Path(__file__).resolve().parents[1].parent / "shared" / "traces"
NEAR = 0.3  # points of hit ratio

#: Traces and sizes: caches of one segment, and of many.
STEP_BY_STEP = [
    ("lirs-multi1.gz", 26),
    ("lirs-cpp.gz", 400),
    ("weblog-2015.tsv.gz", 100),
    ("lirs-cs.gz", 784),
    ("arc-oltp.gz", 1024),
    ("orm-night.trace.xz", 4096),
]
WHOLE = [
    ("web07.trace.xz", 1024),
    ("web07.trace.xz", 4096),
    ("web07.trace.xz", 16384),
    ("lirs-sprite.gz", 1024),
    ("lirs-sprite.gz", 4096),
    ("lirs-multi2.gz", 1024),
]
LONG_WHOLE = [
    (name, maxsize)
    for name in ("arc-oltp.gz", "orm-night.trace.xz")
    for maxsize in (1024, 4096, 16384)
]
#: What keys are xored with: other hashes, and with them another order in which the hand meets them.
SALTS = [0, 12345678901, 987654321987][: 3 if LONG else 1]


class Twins:
    """A cache and its model, on one clock: what is asked of one is asked of the other."""

    def __init__(self, maxsize: int) -> None:
        self.clock = ManualClock(0.0)
        self.gone: list[tuple[Any, str]] = []
        self.cache: Any = TTLCache(
            None, None, maxsize=maxsize, clock=self.clock, listener=self._note, seed=1
        )
        self.model = DuelModel(maxsize, self.clock)

    def _note(self, key: Any, value: Any, cause: str) -> None:
        if cause != "replaced":
            self.gone.append((key, cause))

    def get(self, key: Any) -> bool:
        found = self.cache.get(key, False)
        assert found == self.model.get(key)
        self.agree()
        return found

    def set(self, key: Any, ttl: float | None = None) -> None:
        self.cache.set(key, True, ttl)
        self.model.set(key, ttl)
        self.agree()

    def add(self, key: Any, ttl: float | None) -> None:
        assert self.cache.add(key, True, ttl) == self.model.add(key, ttl)
        self.agree()

    def touch(self, key: Any, ttl: float | None) -> None:
        assert self.cache.touch(key, ttl) == self.model.touch(key, ttl)
        self.agree()

    def delete(self, key: Any) -> None:
        assert self.cache.delete(key) == self.model.delete(key)
        self.agree()

    def gather(self, keys: list[Any]) -> None:
        assert self.cache.gather(keys, False) == [self.model.get(key) for key in keys]
        self.agree()

    def set_many(self, keys: list[Any]) -> None:
        self.cache.set_many((key, True) for key in keys)
        for key in keys:
            self.model.set(key)
        self.agree()

    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()
        self.gone.clear()

    def agree(self) -> None:
        """The same entries have gone, in the same order."""
        assert self.gone == self.model.gone
        self.gone.clear()
        self.model.gone.clear()

    def look(self) -> None:
        """The same keys are there, and the table is sound."""
        assert set(self.cache) == self.model.keys()
        assert self.cache._check()


def calls(rng: random.Random, keys: list[Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Calls of random methods for ever; a few keys are asked for most."""
    while True:
        key = keys[int(len(keys) * rng.random() ** 3)] if rng.random() < 0.5 else rng.choice(keys)
        ttl = rng.choice([None] * 8 + [3, 20, 100])
        many = rng.choices(keys, k=rng.randrange(6))
        kinds = [
            (40, "get", (key,)),
            (40, "set", (key, ttl)),
            (3, "add", (key, ttl)),
            (3, "touch", (key, ttl)),
            (6, "delete", (key,)),
            (3, "gather", (many,)),
            (3, "set_many", (many,)),
        ]
        _, method, args = rng.choices(kinds, [weight for weight, _, _ in kinds])[0]
        yield method, args


@pytest.mark.parametrize("maxsize", [1, 2, 3, 7, 20, 100, 300, 784, 1500, 3000])
@pytest.mark.parametrize("seed", range(10 if LONG else 2))
def test_random_calls(maxsize: int, seed: int) -> None:
    """Whatever is called, the same keys are there after each call, and the same have gone."""
    rng = random.Random(f"{maxsize} {seed}")
    twins, keys = Twins(maxsize), [n << rng.choice([0, 0, 20, 32]) for n in range(3 * maxsize + 3)]
    turns = 40_000 if LONG else 10_000
    for turn, (method, args) in zip(range(turns), calls(rng, keys), strict=False):
        getattr(twins, method)(*args)
        if turn % (1 if maxsize < 10 else maxsize) == 0:
            twins.look()
        if rng.random() < 0.02:
            twins.clock.advance(rng.choice([1, 1, 10]))
        if seed % 2 and turn % 100 == 99:
            twins.gather(keys)  # so that asks are halved often
        if turn % 3000 == 2999:
            twins.clear()
            twins.set_many(rng.sample(keys, maxsize))
    twins.look()
    assert twins.model.history.now > 1000
    assert seed % 2 == 0 or twins.model.history.age > 5


def replay(trace: Any, twins: Twins) -> None:
    """A miss stores the key."""
    for chunk in trace:
        for key in chunk.keys:
            if not twins.get(key):
                twins.set(key)
    twins.look()


@pytest.mark.parametrize("maxsize", [64, 784, 1024, 4096])
def test_the_sample(maxsize: int) -> None:
    """On the trace that comes with the package every eviction is the model's."""
    twins = Twins(maxsize)
    with open_sample() as trace:
        replay(trace, twins)
    assert twins.cache.stats().evictions > 10_000


def path_of(name: str) -> str:
    """Of a shared trace."""
    if not (TRACES / name).is_file():
        pytest.skip("no real traces: ../shared/traces")
    return str(TRACES / name)


@pytest.mark.parametrize(("name", "maxsize"), STEP_BY_STEP)
def test_real_traces_step_by_step(name: str, maxsize: int) -> None:
    """So it is on the first requests of others, or on all."""
    twins = Twins(maxsize)
    with open_trace(path_of(name), limit=None if LONG else 100_000) as trace:
        replay(trace, twins)
    assert twins.model.history.now > 0


def hits(keys: list[Any], get: Any, store: Any) -> int:
    """A miss stores the key."""
    found = 0
    for key in keys:
        if get(key):
            found += 1
        else:
            store(key)
    return found


@pytest.mark.parametrize(("name", "maxsize"), WHOLE + LONG_WHOLE * LONG)
def test_real_traces_in_one_segment(name: str, maxsize: int) -> None:
    """Segments cost no hits: a table that is never split would have as many."""
    with open_trace(path_of(name), limit=1_000_000) as trace:
        requests = [key for chunk in trace for key in chunk.keys]
    found = [0, 0]
    for salt in SALTS:
        keys = [key ^ salt for key in requests]
        cache: Any = TTLCache(None, None, maxsize=maxsize, seed=1)
        whole = DuelModel(maxsize, whole=True)
        found[0] += hits(keys, cache.get, lambda key, cache=cache: cache.set(key, True))
        found[1] += hits(keys, whole.get, whole.set)
        assert len(whole.table.segments) == 1 < cache.stats().segments
    native, model = (100 * n / len(requests) / len(SALTS) for n in found)
    assert native == pytest.approx(model, abs=NEAR)
