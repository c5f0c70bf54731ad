"""Time at its edges: clocks that misbehave, jitter, the law of early expiry, the native clock."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import pytest

import lapse
from support import PATIENCE, check

# --- The limits of 63 bits of nanoseconds ---


def test_deadlines_below_zero(cache, clock):
    """Deadlines before the clock's zero, and at it, are deadlines like any other."""
    clock.advance(-1100)
    cache.set("before", 1)
    cache.set("at", 2, ttl=100)
    cache.set("after", 3, ttl=101)
    assert len(cache) == 3
    clock.advance(10)
    assert sorted(cache) == ["after", "at"]
    assert cache.expire() == 1
    clock.advance(90)
    assert cache.get("at") is None
    assert cache.expires_in("after") == 1


@pytest.mark.parametrize("ttl", [1e-9, 1e-12, 5e-324])
def test_the_smallest_ttl_is_a_nanosecond(cache, clock, ttl):
    """A ttl under a nanosecond is one nanosecond: alive now, gone at the next tick."""
    clock.advance(-1000)
    cache.set("a", 1, ttl)
    assert cache["a"] == 1
    clock.advance(1e-9)
    assert "a" not in cache


def test_a_late_clock_and_a_long_ttl(cache, clock):
    """Where clock and ttl together pass 63 bits the entry is simply alive."""
    clock.advance(2e9)
    cache.set("a", 1, ttl=9.2e9)
    assert cache["a"] == 1
    assert cache.expires_in("a") is None or cache.expires_in("a") >= 9e9
    cache.touch("a", 9.2e9)
    assert cache.gather(["a"]) == [1]
    assert cache.expire() == 0
    check(cache)


def test_ever_later_clocks(cache, clock):
    """A clock moved to where 63 bits end says so or stays there; no entry comes back to life."""
    cache.set("a", 1, ttl=100)
    for _ in range(12):
        try:
            clock.advance(2e9)
        except (ValueError, OverflowError):
            break
        assert "a" not in cache
        assert clock() >= 2e9


@pytest.mark.parametrize("start", [0.0, -1e6, 1e6, 1.7e9, 5])
def test_a_manual_clock(start):
    """A ManualClock gives its seconds as a float and moves both ways, to the nanosecond."""
    clock = lapse.ManualClock(start)
    assert clock() == start
    assert isinstance(clock(), float)
    clock.advance(1.5)
    clock.advance(-0.5)
    assert clock() == start + 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "1", None])
def test_a_manual_clock_refuses(wrong):
    """A ManualClock is not moved by what is no number of seconds."""
    clock = lapse.ManualClock(7)
    for call in (clock.advance, lapse.ManualClock):
        with pytest.raises((TypeError, ValueError)):
            call(wrong)
    assert clock() == 7


# --- Clocks of the caller ---


def test_any_callable_is_a_clock(make):
    """A clock is any callable that returns seconds, int or float."""
    now: list[float] = [5]
    cache = make(clock=lambda: now[0])
    cache.set("a", 1)
    now[0] = 14.9
    assert cache.expires_in("a") == pytest.approx(0.1)
    now[0] = 15
    assert "a" not in cache


@pytest.mark.parametrize("reading", [math.nan, "soon", None, [], 1j])
def test_a_clock_that_returns_nonsense(make, reading):
    """A clock that gives no number is an error of the call, which does nothing."""
    now: list[Any] = [0.0]
    cache = make(clock=lambda: now[0])
    cache.set("a", 1)
    now[0] = reading
    for call in (
        lambda: cache.get("a"), lambda: cache["a"], lambda: cache.set("b", 1), lambda: len(cache),
        lambda: "a" in cache, lambda: cache.gather(["a"]), lambda: cache.delete("a"),
        lambda: cache.touch("a"), lambda: list(cache), lambda: cache.set_many({"b": 2}),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            call()
    now[0] = 1.0
    assert cache == {"a": 1}
    assert cache.expires_in("a") == 9


def test_a_clock_that_raises(make):
    """What the clock raises reaches the caller, and the cache is as it was."""
    broken = [False]

    def clock() -> float:
        if broken[0]:
            raise OSError("no time")
        return 0.0

    cache = make(clock=clock)
    cache.set("a", 1)
    broken[0] = True
    for call in (lambda: cache.get("a"), lambda: cache.set("a", 2), lambda: cache.popitem()):
        with pytest.raises(OSError, match="no time"):
            call()
    broken[0] = False
    assert cache == {"a": 1}


@pytest.mark.parametrize("reading", [math.inf, -math.inf, 1e300, -1e300])
def test_a_clock_beyond_all_bounds(make, reading):
    """A reading that nanoseconds can't hold is refused, or taken for the far end of time."""
    now: list[float] = [0.0]
    cache = make(clock=lambda: now[0])
    cache.set("a", 1)
    now[0] = reading
    try:
        alive = "a" in cache
    except (ValueError, OverflowError):
        alive = reading < 0
    assert alive is (reading < 0)
    now[0] = 1.0
    check(cache)


@pytest.mark.parametrize("wrong", [5, "clock", lapse.ManualClock])
def test_a_clock_that_is_no_clock(make, wrong):
    """A clock that can't be called, or gives no seconds, is refused now or at its first use."""
    with pytest.raises((TypeError, ValueError)):
        make(clock=wrong).set("a", 1)


def test_many_at_once_read_the_clock_once(make):
    """`gather`, `set_many` and the like ask the clock once, not for every key."""
    readings = [0]

    def clock() -> float:
        readings[0] += 1
        return 5.0

    cache = make(clock=clock)
    keys = list(range(200))
    for call in (
        lambda: cache.set_many(dict.fromkeys(keys, 1)), lambda: cache.gather(keys),
        lambda: cache.get_many(keys), lambda: cache.touch_many(keys),
        lambda: cache.delete_many(keys),
    ):  # fmt: skip
        readings[0] = 0
        call()
        assert readings[0] == 1


# --- Jitter ---


@pytest.mark.parametrize("jitter", [0.1, 0.5, 0.999])
def test_jitter_shortens_within_its_bounds(make, jitter):
    """Each ttl is scaled by a draw from (1 - jitter, 1], evenly: never longer than asked."""
    cache = make(jitter=jitter, seed=3)
    cache.set_many({n: n for n in range(4000)}, ttl=100)
    left = sorted(cache.expires_in(n) for n in range(4000))
    assert 100 * (1 - jitter) <= left[0]
    assert left[-1] <= 100
    assert len(set(left)) > 3900
    for share in (0.1, 0.5, 0.9):
        expected = 100 * (1 - jitter * (1 - share))
        assert left[int(4000 * share)] == pytest.approx(expected, abs=4 * jitter)


def test_jitter_spares_the_endless(make):
    """An endless entry stays endless, and a cache without jitter is exact."""
    cache = make(jitter=0.5)
    cache.set("a", 1, ttl=math.inf)
    assert cache.expires_in("a") is None
    cache.set("b", 1, ttl=1e-9)
    assert "b" in cache
    assert make(jitter=0).setdefault("a", 1) == 1


def lifetimes(cache: Any) -> list[float]:
    cache.set_many({n: n for n in range(50)})
    return [cache.expires_in(n) for n in range(50)]


def test_a_seed_repeats_the_draws(make):
    """Caches of one seed draw alike, of another seed or none differently."""
    first = lifetimes(make(jitter=0.5, seed=7))
    assert lifetimes(make(jitter=0.5, seed=7)) == first
    assert lifetimes(make(jitter=0.5, seed=8)) != first
    assert lifetimes(make(jitter=0.5)) != lifetimes(make(jitter=0.5))


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, 2**70])
def test_any_int_is_a_seed(make, seed):
    """Seeds of any size and sign are taken."""
    assert lifetimes(make(jitter=0.5, seed=seed)) == lifetimes(make(jitter=0.5, seed=seed))


# --- Early expiry ---


def share_dropped(factor: float, elapsed: float, read: str = "get", ttl: float = 10) -> float:
    """The share of 5,000 entries of ttl 10 that one read each drops `elapsed` seconds on."""
    clock = lapse.ManualClock()
    cache = lapse.ProbabilisticTTLCache(10, factor, None, clock=clock, seed=11)
    cache.set_many(dict.fromkeys(range(5000), 0), ttl)
    clock.advance(elapsed)
    if read == "get":
        gone = sum(cache.get(n) is None for n in range(5000))
    else:
        gone = cache.gather(range(5000)).count(None)
    assert cache.stats().early_expirations == gone == 5000 - len(cache)
    return gone / 5000


@pytest.mark.parametrize("read", ["get", "gather"])
@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("along", [0.05, 0.25, 0.5, 0.75, 0.95])
def test_the_ramp_is_linear(factor, along, read):
    """`along` of the ramp an entry is dropped with that probability."""
    elapsed = 10 - 10 * factor * (1 - along)
    assert share_dropped(factor, elapsed, read) == pytest.approx(along, abs=0.03)


def test_the_ramp_scales_with_the_own_ttl():
    """The ramp is a share of the entry's own ttl, not of the default."""
    assert share_dropped(0.5, 75, ttl=100) == pytest.approx(0.5, abs=0.03)
    assert share_dropped(0.5, 49, ttl=100) == 0


def test_touch_moves_the_ramp():
    """After `touch` the ramp belongs to the new ttl."""
    clock = lapse.ManualClock()
    cache = lapse.ProbabilisticTTLCache(10, 0.5, None, clock=clock, seed=5)
    cache.set_many(dict.fromkeys(range(2000), 0))
    cache.touch_many(range(2000), 100)
    clock.advance(49)
    assert None not in cache.gather(range(2000))
    clock.advance(26)
    assert cache.gather(range(2000)).count(None) == pytest.approx(1000, abs=100)


def test_a_dropped_entry_is_stored_anew():
    """What was dropped early is absent for everybody, and stored again lives its whole ttl."""
    clock = lapse.ManualClock()
    cache = lapse.ProbabilisticTTLCache(10, 1.0, None, clock=clock, seed=2)
    cache.set("a", 1)
    clock.advance(9.9999999)
    assert cache.get("a") is None
    assert "a" not in cache
    assert cache.add("a", 2) is True
    assert cache.expires_in("a") == 10


# --- The native clock ---


@pytest.mark.parametrize(
    ("cache_class", "fixed"),
    [(lapse.TTLCache, {}), (lapse.ProbabilisticTTLCache, {"early_expiry_factor": 0})],
)
def test_the_native_clock_is_exact(cache_class, fixed):
    """On the native clock an entry is there before its deadline and not after."""
    cache = cache_class(cleanup_interval=None, **fixed)
    earliest = time.monotonic() + 0.05
    cache.set("a", 1, ttl=0.05)
    latest = time.monotonic() + 0.05
    alive = True
    while alive:
        before = time.monotonic()
        alive = "a" in cache and cache.get("a") == 1
        after = time.monotonic()
        assert after >= earliest - 1e-6 if not alive else before <= latest + 1e-6


def test_sliding_on_the_native_clock():
    """On the native clock a read gives an entry its ttl anew, but for two ticks; unread it ends."""
    ttl, tick = 0.08, 0.02
    cache = lapse.SlidingTTLCache(ttl, cleanup_interval=None)
    cache.set("unread", 2)
    cache.set("read", 1)
    start = last = time.monotonic()
    while last < start + 3 * ttl or (cache.stats().hits <= 100 and last < start + PATIENCE):
        before = time.monotonic()
        if cache.get("read") is None:  # only after a pause of this process
            assert time.monotonic() - last >= ttl - 2 * tick
            cache.set("read", 1)
        last = before
    assert "unread" not in cache
    assert cache.stats().hits > 100
    with contextlib.suppress(KeyError):  # after another pause
        assert cache.expires_in("read") <= ttl


def test_the_native_clock_is_monotonic_time():
    """`expires_in` on the native clock runs with `time.monotonic`."""
    cache = lapse.TTLCache(cleanup_interval=None)
    before = time.monotonic()
    cache.set("a", 1, ttl=1000)
    left = cache.expires_in("a")
    assert 1000 - (time.monotonic() - before) - 1e-3 <= left <= 1000


def test_a_key_named_like_a_ttl(make, clock):
    """A key that ends in `_ttl` is a key like any other beside one with a ttl of its own."""
    cache = make(clock=clock)
    cache.set("a", 1, ttl=5)
    cache.set("a_ttl", 2)
    assert (cache["a"], cache["a_ttl"]) == (1, 2)
    assert sorted(cache) == ["a", "a_ttl"]
    assert cache.expires_in("a") == 5
