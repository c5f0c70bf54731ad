"""Leases: what one is good for, how many there may be, and what is left of them."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import weakref

import pytest

import lapse
from support import Key, run_python

LEASES = 65_536  # that are honoured at a time


def test_a_lease_is_good_for_one_fill(cache):
    """Filled or refused, it is used up."""
    lease = cache.lease("a")
    assert cache.fill(lease, 1) is True
    assert lease.outdated
    assert cache.fill(lease, 2) is False
    assert cache["a"] == 1
    cache.delete("a")
    assert cache.fill(lease, 3) is False
    assert "a" not in cache


def test_the_attributes_of_a_lease(cache):
    """It shows its cache, key and tags; nobody changes them, pickles it or makes one."""
    key = ("a", 1)
    lease = cache.lease(key, tags=["x", "y", "x"])
    assert lease.cache is cache
    assert lease.key is key
    assert lease.tags == frozenset("xy")
    assert isinstance(lease, lapse.Lease)
    assert "Lease" in repr(lease)
    assert "outdated" not in repr(lease)
    cache.clear()
    assert "outdated" in repr(lease)
    for name in ("cache", "key", "tags", "outdated"):
        with pytest.raises(AttributeError):
            setattr(lease, name, None)
    with pytest.raises(TypeError):
        pickle.dumps(lease)


def test_a_fill_stores_as_set_does(cache, clock):
    """Its ttl is that of the call; over a live or an expired entry, or none."""
    for key, ttl, left in (("a", None, 10), ("b", 3, 3), ("c", float("inf"), None)):
        assert cache.fill(cache.lease(key), key, ttl)
        assert cache.expires_in(key) == left
        assert cache.fill(cache.lease(key), key, ttl=7)
        assert cache.expires_in(key) == 7
    clock.advance(8)
    assert cache.fill(cache.lease("a"), "again", 2)
    assert cache == {"a": "again"}
    assert cache.stats().sets == 7


def test_wrong_arguments_leave_the_lease_good(cache):
    """A wrong ttl or tag raises before anything is decided."""
    lease = cache.lease("a")
    for wrong in ({"ttl": 0}, {"ttl": "x"}, {"tags": "x"}, {"tags": [1]}):
        with pytest.raises((ValueError, TypeError)):
            cache.fill(lease, 1, **wrong)
    assert cache.fill(lease, 1)


def test_leases_that_are_none(cache, make):
    """An unhashable key, no lease at all, another cache's lease."""
    with pytest.raises(TypeError):
        cache.lease([])
    for wrong in (None, 5, "a", object()):
        with pytest.raises(TypeError):
            cache.fill(wrong, 1)
    for other in (make(), cache.copy()):
        lease = other.lease("a")
        with pytest.raises(ValueError, match="another"):
            cache.fill(lease, 1)
        assert other.fill(lease, 1)
    assert "a" not in cache


def test_a_closed_cache(cache):
    """`close` outdates every lease, and neither gives nor fills one any more."""
    lease = cache.lease("a")
    cache.close()
    assert lease.outdated
    assert repr(lease)
    with pytest.raises(RuntimeError):
        cache.fill(lease, 1)
    with pytest.raises(RuntimeError):
        cache.lease("a")


def test_one_lease_too_many(cache):
    """65,536 are honoured; one more is given and never stored; dropping some makes room."""
    leases = [cache.lease(n) for n in range(LEASES)]
    surplus = cache.lease("surplus")
    assert surplus.outdated
    assert cache.fill(surplus, 1) is False
    assert len(cache) == 0
    assert cache.fill(leases.pop(), 1)  # used up: there is room for one
    extra, surplus = cache.lease("extra"), cache.lease("surplus")
    assert (extra.outdated, surplus.outdated) == (False, True)
    del leases[: LEASES // 2], surplus
    assert not any(lease.outdated for lease in leases)
    again = [cache.lease(("again", n)) for n in range(LEASES // 2)]
    assert not any(lease.outdated for lease in again)
    cache.delete_pattern("e*")
    assert [cache.fill(lease, 1) for lease in (extra, *leases[:5])] == [False] + [True] * 5
    cache.clear()
    assert all(lease.outdated for lease in again)


def test_leases_that_are_never_filled_cost_nothing(cache):
    """Dropped leases leave no memory behind, nor a reference to their key and cache."""
    cache.lease("a")
    before, key = sys.getsizeof(cache), Key("a")
    references = sys.getrefcount(key)
    for _ in range(3 * LEASES):
        cache.lease(key, tags=("x",))
    assert sys.getsizeof(cache) == before
    assert sys.getrefcount(key) == references
    lease = cache.lease("b")
    assert not lease.outdated


def test_a_lease_in_a_cycle_is_collected(make):
    """A cache that holds its own lease dies with it."""
    cache = make()
    cache["lease"] = [cache.lease("a"), cache]
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None


def test_a_lease_keeps_its_cache(make):
    """A lease may outlive every other name of its cache."""
    lease = make().lease("a")
    gc.collect()
    assert lease.cache.fill(lease, 1)
    assert lease.cache == {"a": 1}


FORK = """
import os, threading, lapse
inside, resume = threading.Event(), threading.Event()
def listener(*_):
    inside.set()
    resume.wait()
cache = lapse.TTLCache(cleanup_interval=None, listener=listener)
cache.set("k:1", 1, tags=("t",))
thread = threading.Thread(target=lambda: cache.{call})
thread.start()
inside.wait()
old = cache.lease("k:2", tags=("t",))
child = os.fork()
if child == 0:
    new = cache.fill(cache.lease("k:3", tags=("t",)), 1)
    os._exit(2 * cache.fill(old, 2) + (not new))
status = os.waitpid(child, 0)[1]
resume.set()
thread.join()
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("call", ["delete_pattern('k*')", "delete_tag('t')"])
def test_a_pass_that_a_fork_leaves_behind(call):
    """In the child nobody ends it: what it covers can be loaded there all the same."""
    run = run_python(FORK.replace("{call}", call), "-W", "ignore")
    assert (run.returncode, run.stderr) == (0, "")


def test_outdated_leases_make_room(make):
    """Only good leases count: many of one key are outdated at once, and others honoured then."""
    cache = make()
    stampede = [cache.lease("k") for _ in range(65_536)]
    assert not cache.fill(cache.lease("other"), 1)
    cache.set("k", 1)
    assert all(lease.outdated for lease in stampede)
    assert all(cache.fill(cache.lease(n), n) for n in range(100))
    stampede.clear()
    assert cache._check()
