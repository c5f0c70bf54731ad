"""XFetch: who reloads a value ahead of time, how often, and what everybody else gets.

Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015. A
value whose load takes `cost` is reloaded with `remaining` seconds left with the probability
exp(-remaining / (beta * cost)) at each read.
"""

from __future__ import annotations

import math
import pickle
import random

import pytest

import lapse
from loads import Call, Counting, Held, everything_lands, run
from support import PATIENCE

landed = pytest.fixture(autouse=True)(everything_lands)

TTL = 100.0
COST = 2.0


def probabilistic(clock, **options):
    return lapse.ProbabilisticTTLCache(TTL, 0.1, None, clock=clock, seed=11, **options)


def loaded(cache, clock, key="k", cost=COST):
    """Loads `key`, which takes `cost` seconds of the clock."""

    def load(key):
        clock.advance(cost)
        return "old"

    cache.get_or_load(key, load)


def not_kept(value):
    """A lifetime that leaves the old value as it is."""
    return 0


def draws(cache):
    """Does one read draw the ticket to reload? The old value stays, with its deadline."""
    return cache.get_or_load("k", lambda key: "new", not_kept) == "new"


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("remaining", [0.5, 2.0, 5.0])
def test_the_law(clock, beta, remaining):
    """P(reload | remaining) = exp(-remaining / (beta * cost)), within 4.5 standard deviations."""
    cache = probabilistic(clock, beta=beta)
    loaded(cache, clock)
    clock.advance(TTL - remaining)
    tries = 4000
    expected = math.exp(-remaining / (beta * COST))
    deviation = math.sqrt(expected * (1 - expected) / tries)
    assert abs(sum(draws(cache) for _ in range(tries)) / tries - expected) <= 4.5 * deviation


def cycle(cache, clock, chance, rate, beta):
    """How many readers reload in one cycle, none of whom knows of the others.

    Reads come as a Poisson process. Each that draws the ticket begins a reload, which takes COST;
    the first to end starts the next cycle. What lies so far ahead that hardly anybody draws is
    left out.
    """
    begin = beta * COST * (math.log(rate * beta * COST) + 7)
    clock.advance(TTL - begin)
    reloads, now, end = 0, 0.0, begin
    while True:
        pause = chance.expovariate(rate)
        now += pause
        clock.advance(pause)
        if now >= end:
            return reloads
        if draws(cache):
            reloads += 1
            end = min(end, now + COST)


@pytest.mark.parametrize("beta", [0.7, 1.0, 2.0])
def test_reloads_a_cycle(clock, beta):
    """Without single flight a cycle has e^(1/beta) reloads on average (4.5 standard errors)."""
    cache = probabilistic(clock, beta=beta)
    loaded(cache, clock)
    entries, chance, cycles = cache._entries(), random.Random(5), 300
    counts = []
    for _ in range(cycles):
        cache._restore(entries)
        counts.append(cycle(cache, clock, chance, 50.0, beta))
    mean = sum(counts) / cycles
    error = math.sqrt(sum((count - mean) ** 2 for count in counts) / (cycles - 1) / cycles)
    assert abs(mean - math.exp(1 / beta)) <= 4.5 * error


def test_cost_is_that_of_the_load(clock):
    """What is not loaded has no cost; that of a fill is the age of its lease."""
    cache = probabilistic(clock)
    cache["set"] = 1
    lease = cache.lease("filled")
    clock.advance(1.5)
    cache.fill(lease, 1)
    costs = {entry[0]: entry[-1] for entry in cache._entries()}
    assert costs == {"set": 0, "filled": 1_500_000}


def test_instant_loads_are_never_early(clock):
    """A load that takes no time is known to cost nothing: it waits for the deadline."""
    cache = probabilistic(clock)
    cache.get_or_load("k", lambda key: "old")
    clock.advance(TTL - 0.001)
    assert not any(draws(cache) for _ in range(200))


def test_the_ramp_without_a_cost(clock):
    """An entry that was stored by set() is reloaded by get_or_load() as the linear ramp has it."""
    cache = probabilistic(clock)
    cache["k"] = "old"
    clock.advance(95)  # half way into the last tenth
    assert 400 <= sum(draws(cache) for _ in range(1000)) <= 600


def test_copies_keep_costs(clock):
    """A copy and a pickle know what their values cost."""
    cache = probabilistic(clock)
    loaded(cache, clock)
    assert cache.copy()._entries()[0][-1] == 2_000_000
    native = lapse.ProbabilisticTTLCache(TTL, cleanup_interval=None)
    native._restore(cache._entries())
    assert pickle.loads(pickle.dumps(native))._entries()[0][-1] == 2_000_000


def test_one_reloads_and_others_are_served(clock):
    """Whoever draws the ticket reloads; those who draw it meanwhile get the old value."""
    cache = probabilistic(clock, beta=1e6)  # everybody draws it
    loaded(cache, clock)
    load = Held()
    leader = Call(cache.get_or_load, "k", load)
    assert load.entered.wait(PATIENCE)
    assert [cache.get_or_load("k", Counting()) for _ in range(5)] == ["old"] * 5
    load.go.set()
    assert leader.result() == ("k", 1)
    assert cache._look("k", None) == ("k", 1)


def test_a_failing_early_reload_serves_on(clock):
    """A value that is still live is served if its early reload raises."""
    cache = probabilistic(clock, beta=1e6)
    loaded(cache, clock)
    assert cache.get_or_load("k", Counting(ValueError())) == "old"
    assert cache._look("k", None) == "old"


def test_coroutines_reload_early(clock):
    """aget_or_load() draws tickets too."""

    async def main():
        cache = probabilistic(clock, beta=1e6)
        loaded(cache, clock)
        assert await cache.aget_or_load("k", Counting()) == ("k", 1)

    run(main())


def test_under_the_native_clock():
    """The fast ways in draw tickets as well: get_or_load() with any arguments, and @cached."""
    cache = lapse.ProbabilisticTTLCache(TTL, 0.1, None, beta=1e15)
    cache.get_or_load("k", lambda key: "old", None, tags=["t"])
    assert cache.get_or_load("k", lambda key: "new", 50, tags=["t"], timeout=5) == "new"
    assert cache.tags("k") == {"t"}
    calls = []

    @lapse.cached(cache=cache)
    def function(x):
        calls.append(x)
        return len(calls)

    assert [function("x") for _ in range(3)] == [1, 2, 3]


def test_get_follows_the_ramp(clock):
    """get() ends an entry by the linear ramp, whatever its load has cost."""
    cache = probabilistic(clock, beta=1e6)
    loaded(cache, clock)
    clock.advance(TTL - 10.5)
    assert [cache.get("k") for _ in range(100)] == ["old"] * 100
