"""What a hit costs: of functions whose results are kept, of get_or_load(), of a bounded cache.

A cached function stands beside the same one under functools; a cached coroutine function beside
the bare one, which returns a constant. A hit never waits, so coroutines are driven without an
event loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from .cases import Standing, str_keys
from .contenders import DEFAULT_TTL, compile_loop
from .contest import Contest, Trial
from .engine import BASELINE, Plan

__all__ = ["FUNCTIONS"]

CALL, AWAIT = "c(k)", "await c(k)"
GET, GET_OR_LOAD = "c.get(k)", "c.get_or_load(k, v)"


def function(key: str) -> int:
    """What is called."""
    return 1


async def coroutine_function(key: str) -> int:
    """What is awaited."""
    return 1


def chunk(plan: Plan) -> list[str]:
    """The keys of a loop, over and over, in random order."""
    keys: list[str] = Standing.chunks(str_keys(plan.small), plan)[0]
    return keys


def bound(plan: Plan) -> int:
    """A bound that is never reached."""
    return 2 * plan.small


class Hits(Trial):
    """A loop over keys, all of which the subject has."""

    def __init__(self, subject: Any, statement: str, keys: list[str]) -> None:
        self.subject = subject
        self.keys = keys
        self.operations = len(keys)
        self.loop = compile_loop(statement, awaits=statement == AWAIT)
        self.fill()
        self.missed = self.misses()

    def fill(self) -> None:
        """Call once for every key."""
        self.call()

    def misses(self) -> int:
        """How many calls were no hits."""
        return self.subject.cache_info().misses if hasattr(self.subject, "cache_info") else 0

    def call(self) -> object:
        """The loop."""
        return self.loop(self.subject, self.keys, None)

    def finish(self, answer: object) -> None:
        """All were hits."""
        assert self.misses() == self.missed


class Awaits(Hits):
    """The same with `await`."""

    def fill(self) -> None:
        """Loads want an event loop."""
        asyncio.run(self.loop(self.subject, self.keys, None))

    def call(self) -> object:
        """The loop, from end to end at once."""
        coroutine: Coroutine[Any, Any, int] = self.loop(self.subject, self.keys, None)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("a hit waited")


class Reads(Hits):
    """The loop over a mapping or cache, each key with a value of its own."""

    def fill(self) -> None:
        """Store them."""
        for number, key in enumerate(dict.fromkeys(self.keys)):
            self.subject[key] = b"%d" % number

    def misses(self) -> int:
        """Those that the cache has counted."""
        return 0 if isinstance(self.subject, dict) else self.subject.stats().misses


def _ways(maxsize: int | None) -> list[Callable[[Any], Any]]:
    from lapse import cached

    return [cached(maxsize=maxsize), cached(maxsize=maxsize, ttl=DEFAULT_TTL)]


def _calls(bounded: bool, plan: Plan) -> Sequence[Trial]:
    maxsize, keys = bound(plan) if bounded else None, chunk(plan)
    ways = (functools.lru_cache(maxsize), *_ways(maxsize))
    return [Hits(way(function), CALL, keys) for way in ways]


def _awaits(bounded: bool, plan: Plan) -> Sequence[Trial]:
    ways, keys = _ways(bound(plan) if bounded else None), chunk(plan)
    subjects = (coroutine_function, *(way(coroutine_function) for way in ways))
    return [Awaits(subject, AWAIT, keys) for subject in subjects]


def _cache(maxsize: int | None) -> Any:
    from lapse import TTLCache

    return TTLCache(DEFAULT_TTL, maxsize=maxsize)


def _loads(plan: Plan) -> Sequence[Trial]:
    keys = chunk(plan)
    ways = [(maxsize, way) for maxsize in (None, bound(plan)) for way in (GET, GET_OR_LOAD)]
    return [Reads(_cache(maxsize), way, keys) for maxsize, way in ways]


def _gets(plan: Plan) -> Sequence[Trial]:
    keys = chunk(plan)
    subjects: tuple[Any, ...] = ({}, _cache(bound(plan)))
    return [Reads(subject, GET, keys) for subject in subjects]


def _contest(
    name: str, what: str, baseline: str, make: Callable[[Plan], Sequence[Trial]]
) -> Contest:
    entrants = (baseline, "cached", "cached, ttl")
    return Contest(name, f"{what}, a hit, {{small:,}} keys", "ns", entrants, make, baseline)


FUNCTIONS = (
    _contest("cached-hit", "f(k)", "functools.cache", partial(_calls, False)),
    _contest("cached-hit-bounded", "f(k), maxsize=", "functools.lru_cache", partial(_calls, True)),
    _contest("cached-async", "await f(k)", "bare", partial(_awaits, False)),
    _contest("cached-async-bounded", "await f(k), maxsize=", "bare", partial(_awaits, True)),
    Contest(
        "get-or-load-hit",
        "get_or_load, a hit, {small:,} keys",
        "ns",
        ("get", "get_or_load", "get, maxsize", "get_or_load, maxsize"),
        _loads,
        "get",
    ),
    Contest(
        "get-hit-bounded",
        "get, hit, maxsize=, {small:,} entries",
        "ns",
        (BASELINE, "TTLCache"),
        _gets,
        BASELINE,
    ),
)
