"""The body that every cache runs as time passes: deadlines, sliding, early expiry."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from contract import ABSENT, Fixtures


class TimeContract(Fixtures):
    """What all three kinds have in common as time passes."""

    @pytest.mark.parametrize(
        ("ttl", "seconds"),
        [(2, 2), (0.25, 0.25), (timedelta(milliseconds=1500), 1.5), (None, 10), (2**20, 2**20)],
    )
    def test_a_ttl_is_exact_to_the_tick(self, cache, clock, ttl, seconds):
        """An entry is live while now < stored + ttl, and not one nanosecond longer."""
        clock.advance(-1000)
        cache.set("a", 1, ttl)
        clock.advance(seconds - 1e-9)
        assert "a" in cache
        clock.advance(1e-9)
        assert "a" not in cache
        assert cache.get("a") is None

    @pytest.mark.parametrize("ttl", [math.inf, 1e10, 10**400, timedelta.max])
    def test_endless_ttl(self, cache, clock, ttl):
        """A ttl that 63 bits of nanoseconds can't hold never ends."""
        cache.set("a", 1, ttl)
        assert cache.expires_in("a") is None
        clock.advance(2e9)
        assert cache.get("a") == 1

    def test_endless_default(self, make, clock):
        """`default_ttl=None` means never, and a ttl of its own still counts."""
        cache = make(None)
        cache.set("a", 1)
        cache.set("b", 2, ttl=1)
        assert cache.expires_in("a") is None
        clock.advance(1e9)
        assert dict(cache.items()) == {"a": 1}

    @pytest.mark.parametrize(
        "ttl", [0, -1, -0.0, math.nan, -math.inf, True, False, "5", b"5", timedelta(0), [], 1j]
    )
    def test_wrong_ttl(self, cache, make, ttl):
        """A wrong ttl is a ValueError that names it, and the call does nothing."""
        cache.set("a", 1)
        for call in (
            lambda: cache.set("a", 2, ttl), lambda: cache.set("b", 2, ttl=ttl),
            lambda: cache.add("b", 2, ttl), lambda: cache.set_many({"b": 2}, ttl),
            lambda: cache.touch("a", ttl), lambda: cache.touch_many(["a"], ttl),
            lambda: make(ttl),
        ):  # fmt: skip
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                call()
            assert repr(ttl) in str(caught.value)
        assert cache == {"a": 1}
        assert cache.expires_in("a") == 10

    def test_an_expired_entry_is_absent_everywhere(self, make, clock):
        """Every method takes an expired entry for an absent one."""

        def expired():
            cache = make()
            cache.set("a", 1)
            clock.advance(10)
            return cache

        assert expired().get("a", ABSENT) is ABSENT
        assert expired().gather(["a"], ABSENT) == [ABSENT]
        assert expired().get_many(["a"]) == {}
        assert "a" not in expired()
        assert len(expired()) == 0
        assert not expired()
        assert list(expired()) == []
        assert list(expired().items()) == []
        assert expired() == {}
        assert "'a'" not in repr(expired())
        assert expired().copy() == {}
        assert expired().delete("a") is False
        assert expired().delete_many(["a"]) == 0
        assert expired().pop("a", ABSENT) is ABSENT
        assert expired().touch("a") is False
        assert expired().touch_many(["a"]) == 0
        assert expired().add("a", 2) is True
        assert expired().incr("a", 5) == 5
        assert expired().setdefault("a", 2) == 2
        for call in (expired().popitem, lambda: expired()["a"], lambda: expired().expires_in("a")):
            with pytest.raises(KeyError):
                call()

    def test_a_read_removes_what_it_finds_expired(self, cache, clock):
        """A read of an expired entry removes and counts it, so that `expire` has nothing left."""
        cache.update(a=1, b=2, c=3, d=4)
        clock.advance(10)
        cache.get("a"), cache.gather("b"), cache.get_many("c")
        with pytest.raises(KeyError):
            cache["d"]
        assert cache.stats().expirations == 4
        assert cache.expire() == 0

    def test_overwriting_restarts_the_lifetime(self, cache, clock):
        """`set` on a live key gives it a fresh deadline, longer or shorter."""
        cache.set("a", 1, ttl=5)
        clock.advance(4)
        cache.set("a", 2)
        assert cache.expires_in("a") == 10
        cache.set("a", 3, ttl=1)
        clock.advance(1)
        assert "a" not in cache

    def test_overwriting_an_expired_entry_stores_the_new_key(self, cache, clock):
        """An expired entry is absent, its key object too: the next store brings its own."""
        for n, store in enumerate((cache.set, cache.add, cache.__setitem__, cache.setdefault)):
            cache.set(1, n)
            clock.advance(10)
            store(True, n)
            assert [key for key in cache if key is True] == [True]
            cache.clear()

    def test_expires_in(self, cache, clock):
        """`expires_in` counts down in seconds."""
        cache.set("a", 1, ttl=8)
        assert cache.expires_in("a") == 8
        clock.advance(2.5)
        assert cache.expires_in("a") == 5.5
        with pytest.raises(KeyError):
            cache.expires_in("b")

    def test_touch(self, cache, clock):
        """`touch` moves the deadline to now + ttl and says whether the key was there."""
        cache.set("a", 1)
        clock.advance(9)
        assert cache.touch("a") is True
        assert cache.expires_in("a") == 10
        assert cache.touch("a", 3) is True
        assert cache.expires_in("a") == 3
        assert cache.touch("a", ttl=math.inf) is True
        assert cache.expires_in("a") is None
        assert cache.touch("b") is False

    def test_touch_many(self, cache, clock):
        """`touch_many` touches what it finds and counts it."""
        cache.update(a=1, b=2, c=3)
        clock.advance(9)
        assert cache.touch_many(iter("abx"), 5) == 2
        assert [cache.expires_in(key) for key in "abc"] == [5, 5, 1]

    def test_incr_keeps_the_deadline(self, cache, clock):
        """`incr` starts with the default ttl and then leaves the deadline alone."""
        cache.incr("n")
        clock.advance(4)
        cache.incr("n")
        assert cache.expires_in("n") == 6
        clock.advance(6)
        assert cache.incr("n") == 1
        assert cache.expires_in("n") == 10

    def test_add_and_set_many_take_a_ttl(self, cache):
        """`add` and `set_many` honour their ttl, `setdefault` and `update` use the default."""
        cache.add("a", 1, ttl=2)
        cache.set_many({"b": 1}, ttl=3)
        cache.setdefault("c", 1)
        cache.update(d=1)
        assert [cache.expires_in(key) for key in "abcd"] == [2, 3, 10, 10]

    def test_expire(self, cache, clock):
        """`expire` removes up to `limit` expired entries, counts them, and spares the rest."""
        cache.set_many({n: n for n in range(10)}, ttl=5)
        cache.set_many({n: n for n in range(10, 14)}, ttl=6)
        assert cache.expire() == 0
        clock.advance(5)
        assert cache.expire(limit=3) == 3
        assert cache.expire(0) == 0
        assert cache.expire(100) == 7
        assert cache.expire() == 0
        assert sorted(cache) == [10, 11, 12, 13]
        assert cache.stats().expirations == 10

    def test_iteration_judges_expiry_at_its_start(self, cache, clock):
        """What was live when an iteration started is yielded, though it ends on the way."""
        cache.set_many({n: n for n in range(2000)})
        iterator = iter(cache)
        first = next(iterator)
        clock.advance(10)
        assert sorted([first, *iterator]) == list(range(2000))

    def test_copy_keeps_remaining_lifetimes(self, cache, clock):
        """A copy's entries end when the original's do."""
        cache.set("a", 1, ttl=4)
        cache.set("b", 2, ttl=math.inf)
        clock.advance(1)
        other = cache.copy()
        assert other.expires_in("a") == 3
        assert other.expires_in("b") is None
        clock.advance(3)
        assert other == cache == {"b": 2}

    def test_clock_backwards(self, cache, clock):
        """A clock that goes backwards, below zero too, only makes entries last longer."""
        cache.set("a", 1)
        clock.advance(-1010)
        cache.set("b", 2)
        assert cache.expires_in("a") == 1020
        assert "b" in cache
        clock.advance(10)
        assert cache == {"a": 1}
        assert cache.expire() <= 1
        clock.advance(1010)
        assert cache == {}


class FixedContract(Fixtures):
    """What a cache without sliding promises: reads leave deadlines alone."""

    def test_a_read_leaves_the_deadline(self, cache, clock):
        """Reading does not make an entry last longer."""
        cache.set("a", 1)
        clock.advance(9)
        cache.get("a"), cache["a"], cache.gather("a"), cache.get_many("a")
        assert cache.expires_in("a") == 1


class SlidingContract(Fixtures):
    """What a sliding cache adds."""

    @pytest.mark.parametrize(
        "read",
        [
            lambda cache: cache.get("a"),
            lambda cache: cache["a"],
            lambda cache: cache.gather(["a"]),
            lambda cache: cache.get_many(["a"]),
        ],
        ids=["get", "getitem", "gather", "get_many"],
    )
    def test_a_read_rearms(self, cache, clock, read):
        """Each way of reading gives the entry its own ttl anew, without end."""
        cache.set("a", 1, ttl=3)
        for _ in range(10):
            clock.advance(2.5)
            read(cache)
            assert cache.expires_in("a") == 3
        clock.advance(3)
        assert cache.get("a") is None

    def test_the_smallest_move_rearms(self, cache, clock):
        """Under an injected clock even a nanosecond re-arms."""
        clock.advance(-1000)
        cache.set("a", 1, ttl=1)
        clock.advance(1e-9)
        cache.get("a")
        clock.advance(1 - 1e-9)
        assert "a" in cache
        clock.advance(1e-9)
        assert "a" not in cache

    def test_a_read_never_shortens(self, cache, clock):
        """A read after the clock went backwards leaves the later deadline."""
        cache.set("a", 1)
        clock.advance(-4)
        cache.get("a"), cache.gather("a")
        assert cache.expires_in("a") == 14

    def test_looking_does_not_rearm(self, cache, clock):
        """Membership, length, iteration, comparison and `expires_in` leave the deadline."""
        cache.set("a", 1)
        clock.advance(4)
        "a" in cache, len(cache), list(cache), list(cache.items()), cache == {}, repr(cache)
        1 in cache.values(), ("a", 1) in cache.items(), cache.copy()
        assert cache.expires_in("a") == 6

    def test_touch_changes_the_ttl_of_the_entry(self, cache, clock):
        """After `touch` reads re-arm with the touched ttl, the default when none was given."""
        cache.set("a", 1, ttl=3)
        cache.touch("a", 5)
        clock.advance(4)
        cache.get("a")
        assert cache.expires_in("a") == 5
        cache.touch("a")
        clock.advance(4)
        cache.get("a")
        assert cache.expires_in("a") == 10

    def test_copy_goes_on_sliding(self, cache, clock):
        """A copy re-arms with the ttl that the entry had."""
        cache.set("a", 1, ttl=3)
        clock.advance(2)
        other = cache.copy()
        assert other.expires_in("a") == 1
        other.get("a")
        assert other.expires_in("a") == 3
        assert cache.expires_in("a") == 1

    def test_max_lifetime(self, make, clock):
        """Nothing extends an entry beyond `max_lifetime` after its last `set`."""
        cache = make(max_lifetime=25)
        cache.set("a", 1)
        for _ in range(4):
            clock.advance(5)
            cache.get("a")
        assert cache.expires_in("a") == 5
        cache.touch("a", 100)
        assert cache.expires_in("a") == 5
        cache.touch("a", math.inf)
        clock.advance(5)
        assert cache.get("a") is None

    def test_max_lifetime_caps_a_longer_ttl(self, make, clock):
        """A ttl beyond `max_lifetime` ends with it; `set` starts it anew, `incr` does not."""
        cache = make(max_lifetime=timedelta(seconds=6))
        cache.set("n", 1, ttl=math.inf)
        assert cache.expires_in("n") == 6
        clock.advance(4)
        cache.incr("n")
        assert cache.expires_in("n") == 2
        cache.set("n", 1)
        assert cache.expires_in("n") == 6
        other = cache.copy()
        clock.advance(3)
        other.get("n")
        assert other.expires_in("n") == 3

    @pytest.mark.parametrize("wrong", [0, -1, math.nan, True, "1"])
    def test_wrong_max_lifetime(self, make, wrong):
        """`max_lifetime` is a ttl or None."""
        with pytest.raises(ValueError):  # noqa: PT011
            make(max_lifetime=wrong)


class EarlyContract(Fixtures):
    """What a probabilistic cache adds. Its law in numbers is held by test_time.py."""

    def test_no_draw_before_the_ramp(self, make, clock):
        """Outside the last `early_expiry_factor` of its ttl no entry is dropped."""
        cache = make(early_expiry_factor=0.5)
        cache.set_many({n: n for n in range(1000)})
        clock.advance(5)
        assert cache.gather(range(1000)) == list(range(1000))
        assert cache.stats().early_expirations == 0

    @pytest.mark.parametrize("read", ["get", "__getitem__", "gather", "get_many"])
    def test_reads_draw(self, make, clock, read):
        """Next to the deadline nearly every read drops its entry, which is a counted miss."""
        cache = make(early_expiry_factor=1.0, seed=1)
        cache.set_many({n: n for n in range(100)})
        clock.advance(10 - 1e-6)
        for n in range(100):
            try:
                getattr(cache, read)([n] if "many" in read or "gather" in read else n)
            except KeyError:
                assert read == "__getitem__"
        stats = cache.stats()
        assert stats.early_expirations == stats.misses == 100 - len(cache)
        assert stats.early_expirations > 95

    def test_looking_does_not_draw(self, make, clock):
        """Membership, length, iteration, touching and `expires_in` never drop."""
        cache = make(early_expiry_factor=1.0)
        cache.set_many({n: n for n in range(100)})
        clock.advance(9.999)
        assert all(n in cache and cache.expires_in(n) for n in range(100))
        assert sorted(cache.values()) == sorted(cache) == list(range(100))
        assert cache.copy() == cache
        assert len(cache) == cache.touch_many(range(100)) == 100

    def test_an_endless_entry_is_never_early(self, make, clock):
        """An entry without an end has no ramp."""
        cache = make(None, early_expiry_factor=1.0)
        cache.set("a", 1)
        clock.advance(1e9)
        assert all(cache.get("a") == 1 for _ in range(100))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"early_expiry_factor": -0.1},
            {"early_expiry_factor": 1.1},
            {"early_expiry_factor": math.nan},
            {"beta": -1},
        ],
    )
    def test_wrong_factors(self, make, wrong):
        """`early_expiry_factor` lies in [0, 1], `beta` is not negative."""
        with pytest.raises(ValueError):  # noqa: PT011
            make(**wrong)
