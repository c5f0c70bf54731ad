"""The one type of an invalidation: what it takes, what it refuses, and that it is a value."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest

from lapse.invalidation.message import KINDS, Invalidation

TARGETS = {"key": ("u", 1), "pattern": "users:*", "table": b"users", "tag": "price", "all": None}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_target(kind):
    """Each kind takes its own sort of target, and keeps it; all other fields begin as None."""
    made = Invalidation(kind, TARGETS[kind])

    assert (made.kind, made.target) == (kind, TARGETS[kind])
    assert [made.version, made.origin, made.sequence, made.sent_at] == [None] * 4


@pytest.mark.parametrize("key", ["a", b"a", 1, 1.5, None, True, ("a", 1), frozenset(), object()])
def test_a_key_may_be_anything(key):
    """A key is taken as it is, None included."""
    assert Invalidation("key", key).target is key


def test_the_other_fields():
    """Version, origin, sequence and time are kept; a time in whole seconds becomes a float."""
    made = Invalidation("tag", "price", "0/16B3748", "web-1", 0, 1767225600)

    assert (made.version, made.origin, made.sequence) == ("0/16B3748", "web-1", 0)
    assert made.sent_at == 1767225600.0
    assert type(made.sent_at) is float


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"kind": "keys"}, ValueError, "kind must be one of key, pattern, table, tag, all"),
        ({"kind": None}, ValueError, "kind must be"),
        ({"kind": []}, ValueError, "kind must be"),
        ({"kind": "all", "target": "a"}, ValueError, "takes no target"),
        ({"kind": "all", "target": ""}, ValueError, "takes no target"),
        ({"kind": "pattern"}, TypeError, "target of a pattern must be str or bytes, not NoneType"),
        ({"kind": "pattern", "target": 1}, TypeError, "not int"),
        ({"kind": "table", "target": bytearray(b"a")}, TypeError, "not bytearray"),
        ({"kind": "tag", "target": b"a"}, TypeError, "target of a tag must be str, not bytes"),
        ({"version": 1.5}, TypeError, "version must be int or str, not float"),
        ({"version": True}, TypeError, "not bool"),
        ({"origin": b"a"}, TypeError, "origin must be str, not bytes"),
        ({"sequence": "1"}, TypeError, "sequence must be int, not str"),
        ({"sequence": True}, TypeError, "not bool"),
        ({"sequence": -1}, ValueError, "sequence must not be negative"),
        ({"sent_at": "now"}, TypeError, "sent_at must be float or int, not str"),
        ({"sent_at": float("nan")}, ValueError, "finite"),
        ({"sent_at": float("-inf")}, ValueError, "finite"),
        ({"sent_at": 10**400}, ValueError, "finite"),
    ],
)
def test_what_is_wrong_is_refused(fields, error, message):
    """Each fault has its type of exception, and says what was expected."""
    with pytest.raises(error, match=message):
        Invalidation(**{"kind": "key", **fields})


def test_immutable():
    """No field can be changed, added or deleted."""
    made = Invalidation("key", "a")

    with pytest.raises(FrozenInstanceError):
        made.target = "b"
    with pytest.raises(FrozenInstanceError):
        del made.target
    with pytest.raises((AttributeError, TypeError)):
        made.extra = 1
    assert not hasattr(made, "__dict__")


def test_equality_and_hash_by_value():
    """Equal fields make equal invalidations with equal hashes; each field counts."""
    made = Invalidation("key", "a", 1, "o", 2, 3.0)
    others = [
        Invalidation("tag", "a", 1, "o", 2, 3.0),
        Invalidation("key", "b", 1, "o", 2, 3.0),
        Invalidation("key", "a", 2, "o", 2, 3.0),
        Invalidation("key", "a", 1, "p", 2, 3.0),
        Invalidation("key", "a", 1, "o", 3, 3.0),
        Invalidation("key", "a", 1, "o", 2, 4.0),
    ]

    assert made == Invalidation("key", "a", 1, "o", 2, 3.0)
    assert hash(made) == hash(Invalidation("key", "a", 1, "o", 2, 3.0))
    assert made not in others
    assert len({made, *others}) == 7
    assert made != ("key", "a", 1, "o", 2, 3.0)


def test_hash_of_an_unhashable_target():
    """A key that cannot be hashed cannot make its invalidation hashable."""
    made = Invalidation("key", ["a"])

    assert made == Invalidation("key", ["a"])
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)


@pytest.mark.parametrize("again", [copy.copy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_are_equal(again):
    """Copying and pickling within a program keep the value."""
    made = Invalidation("pattern", "a*", 1, "o", 2, 3.0)
    assert again(made) == made


def test_repr_shows_the_value():
    """The repr names kind and target."""
    assert "kind='table', target='users'" in repr(Invalidation("table", "users"))
