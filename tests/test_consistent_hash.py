"""ConsistentHash and ConsistentHashInvalidation: owners, nodes that come, go and fail."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lapse
from lapse.distributed.consistent_hash import (
    ConsistentHash,
    ConsistentHashInvalidation,
    NodesError,
)
from lapse.distributed.ring import Ring, point_of

KEYS = [f"user:{n}" for n in range(3000)]


class Node:
    """Any object with the two methods, in the reference's manner."""

    def __init__(self, name: str | None = None, error: Exception | None = None) -> None:
        if name is not None:
            self.name = name
        self.error = error
        self.told: list[Any] = []

    def invalidate_key(self, key: Any) -> None:
        self._tell(("key", key))

    def invalidate_pattern(self, pattern: Any) -> None:
        self._tell(("pattern", pattern))

    def _tell(self, what: Any) -> None:
        self.told.append(what)
        if self.error is not None:
            raise self.error


def owners(ring: ConsistentHash, keys: list[Any]) -> list[str | None]:
    return [ring.get_node_name(key) for key in keys]


def cache(name: str, keys: list[Any] = KEYS) -> Any:
    made: Any = lapse.TTLCache(None, cleanup_interval=None, name=name)
    made.set_many(dict.fromkeys(keys, "old"))
    return made


# --- Points ---


def test_points_are_known():
    """The circle is a promise to other processes and versions."""
    known = {
        "user:1": 0x844CBEE71E246B66,
        b"user:1": 0xC2B008A2B3DB08DB,
        7: 0x8F530D0076CF790C,
        None: 0x5DBA33A5971E98B4,
        ("a", 1, 2.5): 0xBE85992B2B2A76E9,
    }
    assert {key: point_of(key) for key in known} == known


def test_equal_keys_have_equal_points():
    """What is one entry in a cache has one owner."""
    for same in (
        [1, True, 1.0],
        [0, False, 0.0, -0.0],
        [2**70, float(2**70)],
        [("a", 1), ("a", 1.0)],
    ):
        assert len({point_of(key) for key in same}) == 1


def test_different_keys_have_different_points():
    """Types are told apart, and so are tuples of other shapes."""
    keys = [
        *("a", b"a", 1, "1", -1, 255, 256, 2**64, 1.5, None, "None", "\ud800"),
        *((), ("a",), ("a", "b"), ("ab",), (("a",), "b"), ("a", ("b",)), ("", "ab")),
        *(float("inf"), float("-inf")),
    ]
    assert len({point_of(key) for key in keys}) == len(keys)
    assert point_of(float("nan")) == point_of(float("nan"))


@pytest.mark.parametrize("key", [object(), ["a"], {"a": 1}, ("a", ["b"]), 1j, bytearray(b"a")])
def test_other_keys_are_refused(key):
    """A key that has no canonical form is a TypeError."""
    ring = ConsistentHash(["a", "b"])
    with pytest.raises(TypeError, match="a key of a ring"):
        ring.get_node(key)


def test_the_ring_is_the_same_in_every_process():
    """Another hash seed, the same owners."""
    code = (
        "from lapse.distributed.consistent_hash import ConsistentHash\n"
        "ring = ConsistentHash(['a', 'b', 'c'], 50)\n"
        "print(''.join(ring.get_node(key) for key in KEYS))"
    ).replace("KEYS", "[f'user:{n}' for n in range(500)] + [1, 2.5, b'x', ('t', 3), None]")
    here = "".join(
        ConsistentHash(["a", "b", "c"], 50).get_node(key)
        for key in [*KEYS[:500], 1, 2.5, b"x", ("t", 3), None]
    )
    for seed in ("0", "1", "77"):
        path = [each for each in sys.path if each]
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == here


# --- Owners ---


def test_an_empty_ring_has_no_owners():
    """get_node() answers None."""
    assert ConsistentHash([]).get_node("a") is None


def test_names_are_what_counts():
    """Other objects of the same names, in another order, own the same keys."""
    first = ConsistentHash([Node("a"), Node("b"), Node("c")], 20)
    second = ConsistentHash({"c": object(), "a": object(), "b": object()}, 20)
    third = ConsistentHash([1, 2, 3], 20, name=lambda node: " abc"[node])
    assert owners(first, KEYS) == owners(second, KEYS) == owners(third, KEYS)


def test_nodes_without_a_name_are_called_after_their_place():
    """As the reference takes any object; where it stands in memory does not matter."""
    first, second = (ConsistentHash([Node(), lapse.TTLCache(None), Node("x")]) for _ in range(2))
    assert first.names == ["node-0", "node-1", "x"]
    assert owners(first, KEYS) == owners(second, KEYS)
    with pytest.raises(ValueError, match="needs a name"):
        first.add_node(Node())


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        (["a", "a"], {}),
        ([Node("a"), Node("a")], {}),
        ({1: "a"}, {}),
        (["a"], {"replicas": 0}),
        (["a"], {"weights": {"b": 1}}),
        (["a"], {"weights": {"a": 0}}),
        (["a"], {"weights": {"a": float("inf")}}),
        (["a"], {"weights": {"a": float("nan")}}),
    ],
)
def test_what_is_no_ring(nodes, options):
    """Equal names, unknown weights and numbers out of range are refused."""
    with pytest.raises(ValueError):  # noqa: PT011
        ConsistentHash(nodes, **options)


def test_a_point_belongs_to_the_next_node_onwards():
    """The owner is that of the least point not below; after the last comes the first."""
    ring = Ring({"a": 5, "b": 5})
    places = sorted((point_of((name, i)), name) for name in "ab" for i in range(5))
    for (before, _), (point, owner) in itertools.pairwise(places):
        assert ring.owner_at(point) == ring.owner_at(before + 1) == owner
    assert ring.owner_at(places[-1][0] + 1) == ring.owner_at(0) == places[0][1]


def test_shares_follow_the_weights():
    """With many replicas each node has its share, to a fifth."""
    ring = ConsistentHash("abcd", 200, weights={"d": 3})
    shares = Counter(owners(ring, [f"key:{n}" for n in range(30_000)]))
    for name, share in {"a": 5000, "b": 5000, "c": 5000, "d": 15_000}.items():
        assert abs(shares[name] - share) < share / 5


def test_as_even_and_as_steady_as_ketama():
    """Beside uhashring: shares as even, and no more keys move when a node comes or goes."""
    uhashring = pytest.importorskip("uhashring")
    keys = [f"key:{n}" for n in range(20_000)]
    names = [f"node-{n}" for n in range(10)]
    theirs = uhashring.HashRing(names, hash_fn="ketama", vnodes=40)
    ours = ConsistentHash(names, 160)

    def spread(found: list[Any]) -> float:
        return max(Counter(found).values()) / len(found) * len(names)

    before, before_theirs = owners(ours, keys), [theirs.get_node(key) for key in keys]
    assert spread(before) < max(1.4, 1.2 * spread(before_theirs))
    ours.add_node("more")
    theirs.add_node("more", {"vnodes": 40})
    after, after_theirs = owners(ours, keys), [theirs.get_node(key) for key in keys]
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    moved_theirs = sum(a != b for a, b in zip(before_theirs, after_theirs, strict=True))
    assert moved < len(keys) / 11 * 1.5
    assert moved < 1.5 * moved_theirs
    ours.remove_node("more")
    assert owners(ours, keys) == before


names = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=7, unique=True)
some_keys = st.lists(
    st.one_of(st.text(max_size=5), st.integers(), st.binary(max_size=4)), max_size=60
)


@settings(max_examples=100, deadline=None)
@given(names, some_keys, st.integers(1, 20), st.floats(0.1, 4))
def test_a_node_that_comes_takes_and_one_that_goes_gives(nodes, keys, replicas, weight):
    """Only keys of the new node's arcs move, and they move back when it goes."""
    ring = ConsistentHash(nodes, replicas)
    before = owners(ring, keys)
    change = ring.add_node("new", weight)
    for key, was in zip(keys, before, strict=True):
        now = ring.get_node_name(key)
        assert now in (was, "new")
        assert change.has_moved(key) == (now != was)
    assert all(move.target == "new" for move in change.moves)
    assert ring.remove_node("new").epoch == ring.epoch == 2
    assert owners(ring, keys) == before


@settings(max_examples=60, deadline=None)
@given(names, names, st.integers(1, 8))
def test_moves_are_the_difference_of_two_rings(first, second, replicas):
    """Every point of an arc that moves has the two owners that the move names, and no others do."""
    one, two = (Ring(dict.fromkeys(each, replicas)) for each in (first, second))
    moves = {move.to: move for move in one.moves_to(two)}
    for to in {*one._points, *two._points}:
        if to in moves:
            move = moves[to]
            for point in (to, (move.after + 1) % 2**64):
                assert (one.owner_at(point), two.owner_at(point)) == (move.source, move.target)
        else:
            assert one.owner_at(to) == two.owner_at(to)


def test_nodes_come_and_go_by_name_or_themselves():
    """Names that are taken, and nodes that are not there, are errors; the epoch rises."""
    node = Node("b")
    ring = ConsistentHash({"a": Node()}, 10)
    assert (ring.epoch, len(ring)) == (0, 1)
    ring.add_node(node, name="c")
    with pytest.raises(ValueError, match="already"):
        ring.add_node(Node("c"))
    ring.add_node(node)
    ring.remove_node("c")
    ring.remove_node(node)
    with pytest.raises(ValueError, match="no such node"):
        ring.remove_node(node)
    assert (ring.epoch, ring.names) == (4, ["a"])
    assert repr(ring) == "ConsistentHash(['a'], epoch=4)"


def test_changes_of_several_threads_are_all_made():
    """None is lost, and look-ups meanwhile always find a node that is there."""
    ring = ConsistentHash(["base"], 10)
    wrong, stop = [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            if not isinstance(ring.get_node("k"), str):
                wrong.append(1)

    def change(letter: str) -> None:
        for n in range(30):
            ring.add_node(f"{letter}{n}")
        for n in range(29):
            ring.remove_node(f"{letter}{n}")

    reader = threading.Thread(target=look)
    writers = [threading.Thread(target=change, args=(letter,)) for letter in "abc"]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert not wrong
    assert sorted(ring.names) == ["a29", "b29", "base", "c29"]
    assert ring.epoch == 3 * 59


# --- Invalidation ---


def test_a_key_goes_to_its_owner_alone():
    """Every key is told to one node; patterns and tables to all."""
    nodes = [Node("a"), Node("b"), Node("c")]
    it = ConsistentHashInvalidation(None, nodes, replicas=20)
    for key in KEYS[:50]:
        it.invalidate_key(key)
    for node in nodes:
        expected = [("key", key) for key in KEYS[:50] if it.consistent_hash.get_node(key) is node]
        assert node.told == expected
        node.told.clear()
    it.invalidate_pattern("user:*")
    it.invalidate_table("us*er")
    it.invalidate_table(b"raw")
    expected = [("pattern", "user:*"), ("pattern", "us\\*er:*"), ("pattern", b"raw:*")]
    assert [node.told for node in nodes] == [expected] * 3
    assert it.stats()[:4] == (3, 0, 50, 3)


def test_the_own_cache_is_told_as_a_cache():
    """It needs delete() and delete_pattern() alone, and is known by identity."""

    class Own:
        name = "own"

        def __init__(self) -> None:
            self.told: list[Any] = []

        def delete(self, key: Any) -> None:
            self.told.append(key)

        def delete_pattern(self, pattern: Any) -> None:
            self.told.append(pattern)

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    own, other = Own(), Node("other")
    it = ConsistentHashInvalidation(own, [own, other], replicas=20)
    for key in KEYS[:40]:
        it.invalidate_key(key)
    it.invalidate_pattern("p:*")
    assert len(own.told) + len(other.told) == 42
    assert own.told[-1] == "p:*"
    assert other.told[-1] == ("pattern", "p:*")


def test_caches_are_nodes():
    """Those of lapse have every method; nodes that are equal as mappings are still different."""
    nodes = [cache("a"), cache("b")]
    it = ConsistentHashInvalidation(nodes[0], nodes, replicas=20)
    for key in KEYS[:100]:
        it.invalidate_key(key)
    assert [len(node) for node in nodes] == [
        3000 - owners(it.consistent_hash, KEYS[:100]).count(name) for name in "ab"
    ]
    it.invalidate_table("user")
    assert [len(node) for node in nodes] == [0, 0]


def test_nodes_that_raise():
    """All others are told; the error has each, by name, and is counted."""
    nodes = [Node("a", OSError("down")), Node("b"), Node("c", ValueError("no"))]
    it = ConsistentHashInvalidation(None, nodes)
    with pytest.raises(NodesError, match="2 nodes failed") as caught:
        it.invalidate_pattern("*")
    assert {name: type(error) for name, error in caught.value.errors.items()} == {
        "a": OSError, "c": ValueError,
    }  # fmt: skip
    assert [len(node.told) for node in nodes] == [1, 1, 1]
    assert it.stats().errors == 2
    for node in nodes:
        node.error = KeyError("x")
    with pytest.raises(NodesError) as caught:
        it.invalidate_key("k")
    assert list(caught.value.errors) == [it.consistent_hash.get_node_name("k")]


def test_what_moves_is_forgotten_by_both():
    """Keys whose owner changes are gone at the old one and the new one; all others stay."""
    nodes = [cache("a"), cache("b"), cache("c")]
    it = ConsistentHashInvalidation(nodes[0], nodes, replicas=20)
    before = owners(it.consistent_hash, KEYS)
    new = cache("d", [*KEYS, "other", object()])
    change = it.add_node(new, 2)
    moved = {key for key in KEYS if change.has_moved(key)}
    assert 0 < len(moved) < len(KEYS)
    for key, was in zip(KEYS, before, strict=True):
        assert (key in new) == (key not in moved)
        holders = [node.name for node in nodes if key in node]
        assert holders == ["a", "b", "c"] if key not in moved else was not in holders
    it.remove_node("d")
    assert not any(key in new for key in moved)
    assert it.stats().epoch == 2


def test_a_node_that_comes_back_forgets_what_it_missed():
    """It went, missed changes, and comes back with what it held: none of it is served."""
    nodes = {"a": cache("a", []), "b": cache("b", [])}
    it = ConsistentHashInvalidation(None, nodes, replicas=20)
    mine = [key for key in KEYS if it.consistent_hash.get_node_name(key) == "b"]
    away = nodes["b"]
    it.remove_node("b")
    away.set_many(dict.fromkeys(mine, "outdated"))
    for key in mine:
        it.invalidate_key(key)
    it.add_node(away)
    assert not any(key in away for key in mine)


def test_the_last_node_goes_and_comes_back():
    """While there is none nobody is told, so that what it held is forgotten."""
    only = cache("a")
    it = ConsistentHashInvalidation(None, [only])
    it.remove_node(only)
    assert len(only) == 0
    it.invalidate_key("user:1")
    only["user:1"] = "outdated"
    it.add_node(only)
    assert len(only) == 0


def test_nodes_that_cannot_list_their_keys():
    """They forget everything, by a pattern or as the caller says."""
    nodes = [Node("a"), Node("b")]
    it = ConsistentHashInvalidation(None, nodes, replicas=50)
    new = Node("c")
    it.add_node(new)
    assert [node.told for node in (*nodes, new)] == [[("pattern", "*")]] * 3
    asked = []
    it = ConsistentHashInvalidation(
        None, nodes, replicas=50, forget=lambda node, has_moved: asked.append((node, has_moved))
    )
    change = it.add_node(new)
    assert [node for node, _ in asked] == [new, *nodes]
    assert [key for key in KEYS if asked[0][1](key)] == [k for k in KEYS if change.has_moved(k)]


def test_a_change_with_nodes_that_raise():
    """The ring changes all the same, everybody is asked, and the error says who could not."""
    nodes = [Node("a", OSError("down")), Node("b")]
    it = ConsistentHashInvalidation(None, nodes, replicas=50)
    with pytest.raises(NodesError) as caught:
        it.remove_node("a")
    assert list(caught.value.errors) == ["a"]
    assert it.consistent_hash.names == ["b"]
    assert nodes[1].told == [("pattern", "*")]


def test_new_owners_forget_before_anybody_is_led_to_them():
    """Until it has forgotten, the ring leads to the old owner."""
    seen = []

    class Late(Node):
        def invalidate_pattern(self, pattern: Any) -> None:
            seen.append((self.name, it.consistent_hash.epoch))

    it = ConsistentHashInvalidation(None, [Late("a"), Late("b")], replicas=50)
    it.add_node(Late("c"))
    assert seen == [("c", 0), ("a", 1), ("b", 1)]


def test_a_key_that_has_just_moved_is_told_to_both():
    """Until the next change the owner before hears of it too, if it is still there."""
    nodes = {name: Node() for name in "abc"}
    it = ConsistentHashInvalidation(None, nodes, replicas=20, forget=lambda node, has_moved: None)
    before = dict(zip(KEYS, owners(it.consistent_hash, KEYS), strict=True))
    change = it.add_node(new := Node(), name="d")
    moved = next(key for key in KEYS if change.has_moved(key))
    it.invalidate_key(moved)
    assert new.told == nodes[str(before[moved])].told == [("key", moved)]
    it.remove_node("d")
    it.invalidate_key(moved)
    assert new.told == [("key", moved)]
    assert nodes[str(before[moved])].told == [("key", moved)] * 2


def test_closing():
    """It refuses what comes after, and leaves the nodes open."""
    node = cache("a")
    with ConsistentHashInvalidation(node, [node]) as it:
        it.invalidate_key("user:1")
    it.close()
    for call in (it.invalidate_key, it.invalidate_pattern, it.add_node, it.remove_node):
        with pytest.raises(RuntimeError, match="closed"):
            call("x")
    assert len(node) == 2999
    assert it.get_stats()["class"] == "ConsistentHashInvalidation"
