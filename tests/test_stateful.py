"""Hypothesis drives a native cache and its model through the same calls on the same clock.

LAPSE_LONG=1 runs more than a hundred times as many steps, at random instead of the fixed seed.
"""

from __future__ import annotations

import os
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import lapse
from model import ModelProbabilisticTTLCache, ModelSlidingTTLCache, ModelTTLCache
from support import Key

LONG = os.environ.get("LAPSE_LONG") == "1"
STEPS = settings(
    max_examples=5000 if LONG else 80,
    stateful_step_count=100 if LONG else 50,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Text(str):
    """A str of another type: equal to it, with its hash, but not exactly a str."""


KEYS: list[Any] = [
    *range(-3, 6), True, False, 1.0, 0.0, -0.0, float("nan"), float("nan"),
    2**61 - 1, 2**61, 2**64, 7 << 32, 7 << 48, -(2**63),
    "", "a", "b", Text("a"), b"a", b"", (), (1,), (1.0, "a"), (True, "a"), frozenset(), None,
    *(Key(name) for name in "abcabc"), Key("d", 6), Key(1, 1),
]  # fmt: skip
IDS = set(map(id, KEYS))
keys = st.sampled_from(range(len(KEYS))).map(KEYS.__getitem__)
many = st.lists(keys, max_size=12)
values = st.integers(0, 9)
ttls = st.sampled_from([None, None, 1e-9, 0.5, 1, 3, 10, 500, float("inf")])
steps = st.sampled_from([0, 1e-9, 0.25, 0.5, 1, 3, 10, 400, -0.5, -5, -3000])
ABSENT = object()


def outcome(call: Any, *args: Any) -> Any:
    """What a call gives, or the type of what it raises."""
    try:
        return call(*args)
    except (KeyError, TypeError, ValueError) as error:
        return type(error)


class Machine(RuleBasedStateMachine):
    """Runs each step on both caches and compares the answers."""

    native_class: Any = None
    model_class: Any = None

    @initialize(default_ttl=st.sampled_from([None, 1, 8, 1000]), early=st.integers(-16, 16))
    def start(self, default_ttl: Any, early: int) -> None:
        self.clock = lapse.ManualClock(early)
        options = {"cleanup_interval": None, "clock": self.clock, **self.more()}
        self.native = self.native_class(default_ttl, **options)
        self.model = self.model_class(default_ttl, **options)

    def more(self) -> dict[str, Any]:
        return {}

    def both(self, method: str, *args: Any) -> Any:
        """Calls the method on both caches and holds the answers equal."""
        native = outcome(getattr(self.native, method), *args)
        model = outcome(getattr(self.model, method), *args)
        assert native == model, f"{method}{args}: native {native!r}, model {model!r}"
        return native

    @rule(step=steps)
    def advance(self, step: float) -> None:
        """What has expired may be gone by the time the clock goes back, so it all goes first."""
        if step < 0:
            self.native.expire(), self.model.expire()
        self.clock.advance(step)

    @rule(key=keys, value=values, ttl=ttls)
    def set(self, key: Any, value: int, ttl: Any) -> None:
        self.both("set", key, value, ttl)

    @rule(key=keys, value=values)
    def setitem(self, key: Any, value: int) -> None:
        self.both("__setitem__", key, value)

    @rule(key=keys, value=values, ttl=ttls)
    def add(self, key: Any, value: int, ttl: Any) -> None:
        self.both("add", key, value, ttl)

    @rule(key=keys, value=values)
    def setdefault(self, key: Any, value: int) -> None:
        self.both("setdefault", key, value)

    @rule(key=keys, delta=values)
    def incr(self, key: Any, delta: int) -> None:
        self.both("incr", key, delta)

    @rule(key=keys)
    def get(self, key: Any) -> None:
        self.both("get", key, ABSENT)

    @rule(key=keys)
    def getitem(self, key: Any) -> None:
        self.both("__getitem__", key)

    @rule(key=keys)
    def look(self, key: Any) -> None:
        self.both("__contains__", key)
        self.both("expires_in", key)

    @rule(key=keys, how=st.sampled_from(["delete", "__delitem__", "pop"]))
    def remove(self, key: Any, how: str) -> None:
        self.both(how, key)

    @rule(key=keys, ttl=ttls)
    def touch(self, key: Any, ttl: Any) -> None:
        self.both("touch", key, ttl)

    @rule(many=many)
    def gather(self, many: list[Any]) -> None:
        self.both("gather", many, ABSENT)

    @rule(many=many)
    def get_many(self, many: list[Any]) -> None:
        self.both("get_many", many)

    @rule(many=many, value=values, ttl=ttls)
    def set_many(self, many: list[Any], value: int, ttl: Any) -> None:
        self.both("set_many", [(key, value + n) for n, key in enumerate(many)], ttl)

    @rule(many=many)
    def delete_many(self, many: list[Any]) -> None:
        self.both("delete_many", many)

    @rule(many=many, ttl=ttls)
    def touch_many(self, many: list[Any], ttl: Any) -> None:
        self.both("touch_many", many, ttl)

    @rule(start=st.integers(100, 2000), count=st.integers(1, 1500), ttl=ttls)
    def fill(self, start: int, count: int, ttl: Any) -> None:
        self.both("set_many", {n: n for n in range(start, start + count)}, ttl)

    @rule(start=st.integers(100, 3000), count=st.integers(1, 1500))
    def thin_out(self, start: int, count: int) -> None:
        self.both("delete_many", range(start, start + count))

    @rule(limit=st.sampled_from([None, 0, 1, 5]))
    def expire(self, limit: int | None) -> None:
        """Which expired entries are left depends on what met them before; all of them go."""
        gone = self.native.expire(limit)
        assert limit is None or gone <= limit
        self.model.expire(limit)
        if limit is None:
            assert self.native.expire() == 0

    @rule()
    def popitem(self) -> None:
        if self.model:
            key, value = self.native.popitem()
            assert self.model.pop(key, ABSENT) == value
        else:
            self.both("popitem")

    @rule()
    def clear(self) -> None:
        self.both("clear")

    @rule(forget=st.booleans())
    def copy(self, forget: bool) -> None:
        native, model = self.native.copy(), self.model.copy()
        if forget:
            self.native, self.model = native, model
        assert native == model

    @rule()
    def compare(self) -> None:
        """The same key objects, values and remaining lifetimes."""
        assert self.native == self.model
        assert self.of_keys(self.native) == self.of_keys(self.model)
        assert sorted(map(id, self.native.values())) == sorted(map(id, self.model.values()))

    def of_keys(self, cache: Any) -> dict[int, Any]:
        """By identity of key: value and remaining seconds."""
        items = [(key, value) for key, value in cache.items() if id(key) in IDS]
        return {id(key): (value, cache.expires_in(key)) for key, value in items}

    @invariant()
    def same_size(self) -> None:
        assert len(self.native) == len(self.model)
        assert bool(self.native) == bool(self.model)
        native, model = self.native.stats(), self.model.stats()
        assert (native.hits, native.misses) == (model.hits, model.misses)
        assert native.size == model.size

    @invariant()
    def sound(self) -> None:
        assert self.native._check()

    def teardown(self) -> None:
        if hasattr(self, "native"):
            self.compare()


class FixedMachine(Machine):
    native_class, model_class = lapse.TTLCache, ModelTTLCache


class SlidingMachine(Machine):
    native_class, model_class = lapse.SlidingTTLCache, ModelSlidingTTLCache


class LimitedMachine(SlidingMachine):
    def more(self) -> dict[str, Any]:
        return {"max_lifetime": 12}


class ProbabilisticMachine(Machine):
    native_class, model_class = lapse.ProbabilisticTTLCache, ModelProbabilisticTTLCache

    def more(self) -> dict[str, Any]:
        return {"early_expiry_factor": 0.0}


@pytest.mark.parametrize(
    "machine", [FixedMachine, SlidingMachine, LimitedMachine, ProbabilisticMachine]
)
def test_native_agrees_with_model(machine: Any) -> None:
    """Whatever the sequence of calls, the native cache answers as the model does."""
    run_state_machine_as_test(machine, settings=STEPS)
