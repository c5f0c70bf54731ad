"""The index of tags: dead entries leave no trace in it, and threads keep it in step."""

from __future__ import annotations

import operator
import sys
from typing import Any

import pytest

from support import check
from test_threads import in_threads


def size(cache: Any) -> int:
    """Bytes of the cache once it has given up what it is done with, a little at each call."""
    for _ in range(300):
        cache.delete("absent"), cache.expire()
    return sys.getsizeof(cache)


# --- No trace ----------------------------------------------------------------------------------

ENDS: dict[str, Any] = {
    "replaced": lambda c, keys: c.set_many(dict.fromkeys(keys)),
    "expired": lambda c, keys: (c.clock.advance(10), c.expire()),
    "read after the end": lambda c, keys: (c.clock.advance(10), c.gather(keys)),
    "stored after the end": lambda c, keys: (c.clock.advance(10), [c.add(k, 1) for k in keys]),
    "deleted": lambda c, keys: c.delete_many(keys),
    "popped": lambda c, keys: [c.popitem() for _ in keys],
    "by tag": lambda c, keys: [c.delete_tag(f"tag {n}") for n in range(len(keys))],
    "by pattern": lambda c, keys: c.delete_pattern("*"),
    "in a batch": lambda c, keys: c._invalidate_keys(keys),
    "cleared": lambda c, keys: c.clear(),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_index_of_dead_entries_is_given_back(cache, end):
    """However tagged entries end, afterwards the cache weighs what it did without tags."""
    keys = [f"key {n}" for n in range(1200)]
    weights = []
    for tagged in (False, True, True):
        for n, key in enumerate(keys):
            cache.set(key, n, tags=(f"tag {n}", "all") if tagged else ())
        ENDS[end](cache, keys)
        assert cache.delete_tag("all") == 0
        check(cache)
        weights.append(size(cache))
        cache.clear()
    assert weights[1] <= weights[0] + 8192  # the first level of the index stays for the next time
    assert weights[2] <= weights[0] + 8192


def test_a_million_dead_entries_leave_nothing(make, clock):
    """Tags of entries that were replaced, expired or were deleted do not pile up."""
    cache = make()

    def wave(n: int) -> None:
        for key in range(10_000):
            cache.set(key, key, tags=(f"tag {n} {key}", f"wave {n}"))
        assert cache.delete_tag(f"wave {n - 1}") == 0
        if n % 4 == 1:
            clock.advance(10)
        if n % 4 == 2:
            cache.delete_many(range(0, 10_000, 2))

    for n in range(4):
        wave(n)
    before, blocks = size(cache), sys.getallocatedblocks()
    for n in range(4, 100):
        wave(n)
    assert size(cache) <= before + 4096
    assert sys.getallocatedblocks() - blocks < 2000
    check(cache)
    assert cache.delete_tag("wave 99") == 10_000


def test_names_of_dead_tags_are_given_up(cache):
    """A tag's name lives as long as an entry bears it."""
    names = ["".join(["tag ", str(n)]) for n in range(100)]
    before = list(map(sys.getrefcount, names))
    for n in range(100):
        cache.set(n, n, tags=(names[n], names[0]))
    assert all(map(operator.gt, map(sys.getrefcount, names), before))
    cache.delete_tag(names[0])
    size(cache)
    assert list(map(sys.getrefcount, names)) == before


# --- Threads -----------------------------------------------------------------------------------


def test_an_entry_stored_beside_a_removal(make):
    """What was stored before `delete_tag` began is gone when it returns; the rest stays whole."""
    cache = make(None)
    stored = [0, 0]

    def work(thread: int) -> int:
        for n in range(30_000 if thread < 2 else 0):
            cache.set((thread, n), n, tags=("x", f"{thread} {n % 7}"))
            stored[thread] = n + 1
        removed = 0
        while thread == 2 and sum(stored) < 60_000:
            before = list(stored)
            removed += cache.delete_tag("x")
            assert all(n >= before[thread] for thread, n in cache)
        return removed

    removed = in_threads(work, 3)[2]
    assert removed + len(cache) == 60_000
    check(cache)


def test_tags_beside_every_other_call(make):
    """Threads tag, untag, remove and clear the same keys: index and entries stay in step."""
    cache = make(None)
    calls: list[Any] = [
        lambda k, t: cache.set(k, t, tags=(t, "all")),
        lambda k, t: cache.set(k, t),
        lambda k, t: cache.set(k, t, 1e-9, tags=(t,)),
        lambda k, t: cache.delete_tag(t),
        lambda k, t: cache.delete(k),
        lambda k, t: cache.delete_pattern(f"{t}*"),
        lambda k, t: cache.tags(k),
        lambda k, t: cache.fill(cache.lease(k, tags=(t,)), t, tags=("all",)),
        lambda k, t: cache.copy(),
        lambda k, t: cache.clear(),
    ]

    def work(thread: int) -> None:
        for n in range(3000):
            call = calls[(n * 7 + thread) % 13 % (10 if n % 50 == 0 else 8)]
            call(f"{n % 11}:{n % 40}", f"{n % 5}")

    in_threads(work)
    check(cache)
    for tag in "01234":
        cache.delete_tag(tag)
    cache.delete_tag("all")
    assert all(cache.tags(key) == frozenset() for key in cache)
