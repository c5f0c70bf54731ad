"""The fence, rule by rule: what outdates a lease, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from support import Key, check

# --- Changes of the key ------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "set": lambda c, k: c.set(k, 2),
    "set with a ttl": lambda c, k: c.set(k, 2, 5),
    "set with tags": lambda c, k: c.set(k, 2, tags=("x",)),
    "setitem": lambda c, k: c.__setitem__(k, 2),
    "set_many": lambda c, k: c.set_many({k: 2}),
    "update": lambda c, k: c.update({k: 2}),
    "incr": lambda c, k: c.incr(k),
    "delete": lambda c, k: c.delete(k),
    "delete_many": lambda c, k: c.delete_many([k]),
    "pop": lambda c, k: c.pop(k, None),
    "invalidate_key": lambda c, k: c.invalidate_key(k),
    "invalidate_table": lambda c, k: c.invalidate_table(k[:1]),
    "_invalidate_keys": lambda c, k: c._invalidate_keys(["absent", k]),
    "delete_pattern": lambda c, k: c.delete_pattern(k[:2] + "*"),
    "pattern with no head": lambda c, k: c.delete_pattern("*" + k),
    "pattern with no wildcard": lambda c, k: c.delete_pattern(k),
    "invalidate_pattern": lambda c, k: c.invalidate_pattern(k + "*"),
    "_invalidate_patterns": lambda c, k: c._invalidate_patterns(["absent*", f"k?{k[2:]}"]),
    "change and change back": lambda c, k: (c.set(k, 2), c.set(k, 1)),
    "delete and set": lambda c, k: (c.delete(k), c.set(k, 1)),
}
IF_PRESENT: dict[str, Any] = {
    "delitem": lambda c, k: c.__delitem__(k),
    "popitem": lambda c, k: [c.popitem() for _ in range(len(c))],
}
IF_ABSENT: dict[str, Any] = {
    "add": lambda c, k: c.add(k, 2),
    "setdefault": lambda c, k: c.setdefault(k, 2),
}


def state(cache: Any) -> dict[Any, Any]:
    return {key: (value, cache.tags(key)) for key, value in cache.items()}


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("name", [*CHANGES, *IF_PRESENT, *IF_ABSENT])
def test_a_change_outdates_the_leases_of_its_key(cache, name, present):
    """And of no other: not though that one is taken, filled or tagged in the same way."""
    if name in (IF_ABSENT if present else IF_PRESENT):
        return
    change = (CHANGES | IF_PRESENT | IF_ABSENT)[name]
    if present:
        cache.set("k:1", 1)
    leases = [cache.lease("k:1") for _ in range(3)]
    others = [cache.lease(key, tags=("k:1", "k:")) for key in ("o:1", "k", b"k:2", ("k:1",), 1)]
    change(cache, "k:1")
    assert [lease.outdated for lease in leases] == [True] * 3
    assert [lease.outdated for lease in others] == [False] * 5
    before = state(cache)
    assert [cache.fill(lease, "stale") for lease in leases] == [False] * 3
    assert state(cache) == before
    assert [cache.fill(lease, "fresh") for lease in others] == [True] * 5
    assert cache.stats().fenced_stores == 3
    assert cache.fill(cache.lease("k:1"), "new")
    assert cache["k:1"] == "new"
    check(cache)


HARMLESS: dict[str, Any] = {
    "get": lambda c: (c.get("k"), c["k"], c.gather(["k"]), c.get_many(["k"])),
    "look": lambda c: ("k" in c, len(c), list(c.items()), c.expires_in("k"), c.tags("k"), repr(c)),
    "list": lambda c: c.get_keys_matching_pattern("*"),
    "touch": lambda c: (c.touch("k", 100), c.touch_many(["k"])),
    "add": lambda c: c.add("k", 2),
    "setdefault": lambda c: c.setdefault("k", 2),
    "expiry, read": lambda c: (c.clock.advance(10), c.get("k")),
    "expiry, sweep": lambda c: (c.clock.advance(10), c.expire()),
    "expiry, nothing": lambda c: c.clock.advance(10),
    "another lease": lambda c: c.lease("k"),
    "another fill": lambda c: c.fill(c.lease("k"), 2),
    "an outdated fill": lambda c: refill(c, c.lease("x")),
    "another key": lambda c: (c.set("x", 1), c.delete("kk"), c.delete(b"kk"), c.add("j", 1)),
    "another pattern": lambda c: (c.delete_pattern("k?*"), c.delete_pattern(b"*")),
    "another table": lambda c: c.invalidate_table("k"),
    "a tag": lambda c: (c.delete_tag("k"), c.delete_tag("other")),
    "a tag of its entry": lambda c: c.delete_tag("y"),
    "growth": lambda c: c.set_many((n, n) for n in range(20_000)),
    "copy": lambda c: (c.copy().clear(), c.copy().close()),
    "statistics": lambda c: (c.stats(), c.get_stats()),
    "failures": lambda c: (refused(c, "k", 1, ttl=-1), refused(c, "k", 1, tags="x")),
}


def refill(cache: Any, lease: Any) -> None:
    assert cache.fill(lease, 1)
    assert not cache.fill(lease, 2)


def refused(cache: Any, *args: Any, **options: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        cache.set(*args, **options)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_outdates_nothing(cache, name):
    """Reads, touches, expiry, and changes of other keys and tags leave a lease alone."""
    cache.set("k", 1, tags=("y",))
    lease = cache.lease("k", tags=("t",))
    HARMLESS[name](cache)
    assert not lease.outdated
    assert cache.fill(lease, "loaded", tags=("u",)) is True
    assert cache["k"] == "loaded"
    assert cache.tags("k") == {"t", "u"}
    check(cache)


@pytest.mark.parametrize("clear", [lambda c: c.clear(), lambda c: c._clear()])
def test_clear_outdates_everything(cache, clear):
    """Leases of any key, with and without tags; those taken afterwards are good."""
    leases = [cache.lease(key, tags=tags) for key in ("a", b"b", 3, ()) for tags in ((), ("x",))]
    clear(cache)
    assert all(lease.outdated for lease in leases)
    assert not any(cache.fill(lease, 1) for lease in leases)
    assert len(cache) == 0
    assert cache.fill(cache.lease("a"), 1)


# --- Equal keys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "equal"),
    [
        (1, 1.0), (1, True), (0.0, -0.0), ("a" * 50, "".join(["a"] * 50)), (b"a", bytes([97])),
        ((1, 2), tuple(range(1, 3))), (frozenset("ab"), frozenset("ba")), (2**70, 2**69 * 2),
        (Key("a"), Key("a")), (None, None),
    ],
)  # fmt: skip
def test_equal_keys_are_the_same_key(cache, key, equal):
    """A change outdates the leases of any equal key, whatever its type."""
    for first, second in ((key, equal), (equal, key)):
        lease = cache.lease(first)
        cache.delete(second)
        assert not cache.fill(lease, 1)


@pytest.mark.parametrize(("key", "other"), [(-1, -2), (2**61 - 1, 0), (2**61, 1), (-(2**61), -2)])
def test_equal_hashes_are_not_equal_keys(cache, key, other):
    """Two int, two str or two bytes are compared themselves."""
    for first, second in ((key, other), (other, key)):
        lease = cache.lease(first)
        cache.set(second, 2)
        assert cache.fill(lease, 1)


def test_no_user_code_runs_to_compare_leases(cache):
    """Where Python would have to compare, an equal hash counts as an equal key."""
    called = []
    first, second = (Key(name, hook=lambda: called.append(1)) for name in "ab")
    lease = cache.lease(first)
    cache.delete(second)
    assert not called
    assert not cache.fill(lease, 1)


# --- Tags --------------------------------------------------------------------------------------


def test_a_deleted_tag_outdates_what_names_it(cache):
    """Named at the lease or at the fill, and only if it was deleted after the lease was taken."""
    cache.delete_tag("x")
    at_lease, at_fill, both = cache.lease("a", tags=("y", "x")), cache.lease("b"), cache.lease("c")
    neither = cache.lease("d", tags=("y",))
    cache.delete_tag("x")
    assert (at_lease.outdated, at_fill.outdated, neither.outdated) == (True, False, False)
    assert not cache.fill(at_lease, 1)
    assert not cache.fill(at_fill, 1, tags=("x",))
    assert not cache.fill(at_fill, 1)  # it was used up
    assert not cache.fill(both, 1, tags=("y", "x"))
    assert cache.fill(neither, 1, tags=("z",))
    assert state(cache) == {"d": (1, {"y", "z"})}
    assert cache.fill(cache.lease("a", tags=("x",)), 1)
    assert cache.stats().fenced_stores == 4


def test_more_deleted_tags_than_are_remembered(cache):
    """When the list of them is full, a lease that is older and names any tag is outdated."""
    named, plain = cache.lease("a", tags=("x",)), cache.lease("b")
    for n in range(40_000):
        cache.delete_tag(f"{n}")
    assert named.outdated
    assert cache.fill(plain, 1)
    late = cache.lease("c", tags=("x",))
    cache.delete_tag("y")
    assert cache.fill(late, 1)


def test_a_tag_that_was_deleted_long_ago(cache):
    """Each of many deleted tags is known, the first and the last."""
    leases = {n: cache.lease(n) for n in (0, 1, 15_000, 29_999)}
    late = cache.lease("late")
    for n in range(30_000):
        cache.delete_tag(f"{n}")
    assert [cache.fill(lease, n, tags=(f"{n}",)) for n, lease in leases.items()] == [False] * 4
    assert cache.fill(late, 1, tags=("30000",))


# --- Passes under way --------------------------------------------------------------------------

PASSES: dict[str, Any] = {
    "pattern": lambda c: c.delete_pattern("k*"),
    "table": lambda c: c.invalidate_table("k"),
    "patterns": lambda c: c._invalidate_patterns(["x*", "k:*"]),
    "tag": lambda c: c.delete_tag("t"),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_lease_that_is_taken_while_a_pass_runs(make, name):
    """It is outdated from the start if the pass covers it, filled meanwhile or afterwards."""
    filled: dict[str, bool] = {}
    leases: list[Any] = []

    def listener(*_: Any) -> None:
        leases.append(cache.lease("k:4", tags=("t",)))
        filled["older"] = cache.fill(leases[0], 1)
        filled["new"] = cache.fill(cache.lease("k:3", tags=("t",)), 1)
        filled["not covered"] = cache.fill(cache.lease("other", tags=("u",)), 1)

    cache = make(listener=listener)
    cache.set("k:1", 1, tags=("t",))
    leases.append(cache.lease("k:2", tags=("t",)))
    PASSES[name](cache)
    assert filled == {"older": False, "new": False, "not covered": True}
    assert not cache.fill(leases[1], 1)
    assert cache.fill(cache.lease("k:4", tags=("t",)), 1)
    assert cache == {"other": 1, "k:4": 1}
