"""What does a hit of a cached function cost, beside those of functools and a bare coroutine?"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest

from lapse.loading.cached import cached
from lapse.loading.lru import cache, lru_cache

KEYS = [f"user:{i}" for i in range(1000)]
ROUNDS = 300
BOUND = 5000

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "functools.cache": functools.cache,
    "functools.lru_cache": functools.lru_cache(BOUND),
    "lapse.cache": cache,
    "lapse.lru_cache": lru_cache(BOUND),
    "cached": cached,
    "cached, ttl": cached(ttl=3600),
    "cached, maxsize": cached(maxsize=BOUND),
}
COROUTINES: dict[str, Callable[[Any], Any]] = {
    "bare": lambda function: function,
    "cached": cached,
    "cached, ttl": cached(ttl=3600),
    "cached, maxsize": cached(maxsize=BOUND),
}


@pytest.fixture(autouse=True)
def _present() -> None:
    """Every function here is at hand: this file has no contenders."""


def call_each(function: Callable[[Any], Any]) -> None:
    """The timed loop: one positional str argument."""
    for key in KEYS:
        function(key)


async def await_each(function: Callable[[Any], Any]) -> None:
    """The same for coroutine functions."""
    for key in KEYS:
        await function(key)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_call(benchmark, name):
    """Times hits of a function; a row is a loop of 1,000."""
    benchmark.group = "cached function"
    function = FUNCTIONS[name](lambda key: 1)
    call_each(function)
    benchmark.pedantic(call_each, args=(function,), rounds=ROUNDS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_method(benchmark, name):
    """Times hits of a method, the instance's name in the loop."""

    class Owner:
        method = FUNCTIONS[name](lambda self, key: 1)

    def call_method(owner: Owner) -> None:
        for key in KEYS:
            owner.method(key)

    benchmark.group = "cached method"
    owner = Owner()
    call_method(owner)
    benchmark.pedantic(call_method, args=(owner,), rounds=ROUNDS)


@pytest.mark.parametrize("name", COROUTINES)
def test_await(benchmark, name):
    """Times hits of a coroutine function; `bare` is one that returns a constant."""

    async def constant(key: str) -> int:
        return 1

    benchmark.group = "cached coroutine function"
    function = COROUTINES[name](constant)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(await_each(function))
        benchmark.pedantic(lambda: loop.run_until_complete(await_each(function)), rounds=ROUNDS)
    finally:
        loop.close()
