"""load_many(): one call for what is missing, and a load a key all the same."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lapse.flight_board import board
from loads import PATIENCE, Call, Counting, Held, everything_lands, wait_for_waiters
from support import KINDS

_ = pytest.fixture(autouse=True)(everything_lands)


def test_load_many(cache):
    """One call of the batch loader gets the keys that are missing; each is stored."""
    cache.set("a", "stored")
    batches = []

    def load_batch(keys):
        batches.append(keys)
        return {key: key.upper() for key in keys} | {"more": 1}

    expected = {"a": "stored", "b": "B", "c": "C"}
    assert cache.load_many(["a", "b", "c", "b"], load_batch, 5, tags=["t"]) == expected
    assert cache.load_many(iter("abc"), load_batch) == expected
    assert cache.load_many([], load_batch) == {}
    assert batches == [["b", "c"]]
    assert cache.expires_in("c") == 5
    assert cache.tags("c") == {"t"}
    assert "more" not in cache


def test_load_many_leaves_out(cache):
    """A key that the batch leaves out is absent; who waited for it loads it himself."""
    load = Held()
    batch = Call(cache.load_many, ["a", "b"], lambda keys: {"a": load("a")})
    assert load.entered.wait(PATIENCE)
    waiter = Call(cache.get_or_load, "b", Counting())
    wait_for_waiters(cache, "b", 1)
    load.go.set()
    assert batch.result() == {"a": ("a", 1)}
    assert waiter.result() == ("b", 1)


def test_load_many_joins(cache):
    """Keys that somebody is loading are waited for; the others are loaded meanwhile."""
    load, batches = Held(), []
    single = Call(cache.get_or_load, "a", load)
    assert load.entered.wait(PATIENCE)
    batch = Call(cache.load_many, ["a", "b"], lambda keys: batches.append(keys) or {"b": 2})
    wait_for_waiters(cache, "a", 1)
    assert cache["b"] == 2
    load.go.set()
    assert single.result() == ("a", 1)
    assert batch.result() == {"a": ("a", 1), "b": 2}
    assert batches == [["b"]]


def test_load_many_is_joined(make):
    """Who waits for a key of a batch gets its value, though it is not stored."""
    cache, load = make(maxsize=0), Held()
    batch = Call(cache.load_many, ["a", "b"], lambda keys: {key: load(key) for key in keys})
    assert load.entered.wait(PATIENCE)
    joiner = Call(cache.get_or_load, "b", Counting())
    wait_for_waiters(cache, "b", 1)
    load.go.set()
    assert batch.result() == {"a": ("a", 1), "b": ("b", 2)}
    assert joiner.result() == ("b", 2)


def test_load_many_looks_once_more(kind):
    """A key that has been stored since the miss is not loaded, and nobody waits for it longer."""
    base, options = KINDS[kind]

    class Stores(base):
        def lease(self, key, *, tags=()):
            self.set("a", "stored")
            return super().lease(key, tags=tags)

    def load_batch(keys):
        assert (id(cache), hash("a")) not in board.running
        return dict.fromkeys(keys, "loaded")

    cache: Any = Stores(cleanup_interval=None, **options)
    assert cache.load_many(["a", "b"], load_batch) == {"a": "stored", "b": "loaded"}


def test_load_many_takes_over(cache):
    """A joined load that is cut off is loaded by the batch loader."""
    load, batches = Held(SystemExit()), []
    single = Call(cache.get_or_load, "a", load)
    assert load.entered.wait(PATIENCE)
    batch = Call(cache.load_many, ["a"], lambda keys: batches.append(keys) or {"a": 2})
    wait_for_waiters(cache, "a", 1)
    load.go.set()
    assert isinstance(single.error(), SystemExit)
    assert batch.result() == {"a": 2}
    assert batches == [["a"]]


def test_batches_that_overlap(cache):
    """Two batches, each of which waits for a key of the other, both end."""
    both = threading.Barrier(2)

    def load_batch(keys):
        both.wait(PATIENCE)
        both.wait(PATIENCE)
        return dict.fromkeys(keys, "value")

    def second():
        both.wait(PATIENCE)
        return cache.load_many(["a", "b"], lambda keys: (both.wait(PATIENCE) and None) or {"b": 2})

    calls = [Call(cache.load_many, ["a", "c"], load_batch), Call(second)]
    assert calls[0].result() == {"a": "value", "c": "value"}
    assert calls[1].result() == {"a": "value", "b": 2}


def test_load_many_fails(cache):
    """An exception of the batch loader reaches those who wait for any of its keys."""
    load = Held(ValueError("no"))
    batch = Call(cache.load_many, ["a", "b"], lambda keys: load(keys[0]))
    assert load.entered.wait(PATIENCE)
    waiter = Call(cache.get_or_load, "b", Counting())
    wait_for_waiters(cache, "b", 1)
    load.go.set()
    assert type(batch.error()) is type(waiter.error()) is ValueError
    with pytest.raises(TypeError, match="mapping"):
        cache.load_many(["a"], lambda keys: [1])


def test_load_many_is_fenced_key_by_key(cache):
    """A change of one key while a batch is loaded keeps that key out, and no other."""

    def load_batch(keys):
        cache.delete("b")
        return dict.fromkeys(keys, "loaded")

    assert cache.load_many("abc", load_batch) == dict.fromkeys("abc", "loaded")
    assert sorted(cache) == ["a", "c"]
