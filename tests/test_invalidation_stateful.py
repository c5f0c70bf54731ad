"""Hypothesis drives tags, patterns and leases of a native cache and of its model alike.

LAPSE_LONG=1 runs many times as many steps, at random instead of the fixed seed.
"""

from __future__ import annotations

import os
import pickle
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

LONG = os.environ.get("LAPSE_LONG") == "1"
STEPS = settings(
    max_examples=2000 if LONG else 100,
    stateful_step_count=100 if LONG else 50,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
FEW_STEPS = settings(STEPS, max_examples=200 if LONG else 12)

KEYS: list[Any] = [
    "", ":", "a", "a:", "a:b", "a:b:c", "a:c", "aa", "b:", "b:1", "b:b", "*", "a*", "a[b]", "\\",
    "ж:a", "\U0001f600:b", "x:" * 9, "x:" * 9 + "y", b"A", b"A:b", b"A:b:c", b"B\xff", 1, 2.5,
    None, ("a", "b"),
]  # fmt: skip
PATTERNS: list[Any] = [
    "*", "a", "a*", "a:*", "a:b:*", "*:b", "?", "??", "*:*", "[ab]:*", "[^a]*", "a\\*", "\\*",
    "a[[]b]", "ж:*", "x:" * 8 + "*", "x:" * 9 + "*", "g1:*", "g2:3:*", "g*:1:?*", "*9", "z:*", "",
    b"*", b"A:*", b"?",
]  # fmt: skip
TABLES: list[Any] = ["", "a", "a:b", "b", "g1", "g2:3", "*", "z", b"A"]
TAGS = ["", "t", "u", "tu", "a:", "ж", "all"]
GROWN = 7600  # enough segments for prefixes to be indexed

keys = st.sampled_from(KEYS)
many = st.lists(keys, max_size=8)
tags = st.lists(st.sampled_from(TAGS), max_size=3)
values = st.integers(0, 9)
ttls = st.sampled_from([None, None, 0.5, 3, 500])
numbers = st.integers(0, 9)
ABSENT = object()


class Machine(RuleBasedStateMachine):
    """Runs each step on both caches and compares the answers."""

    native_class: Any = None
    model_class: Any = None
    options: dict[str, Any] = {}  # noqa: RUF012

    @initialize(default_ttl=st.sampled_from([None, 8]))
    def start(self, default_ttl: Any) -> None:
        self.clock = lapse.ManualClock(5)
        options = {"cleanup_interval": None, "clock": self.clock, **self.options}
        self.native = self.native_class(default_ttl, **options)
        self.model = self.model_class(default_ttl, **options)
        self.leases: list[tuple[Any, Any]] = []

    def both(self, method: str, *args: Any, **options: Any) -> Any:
        """Calls the method on both caches and holds the answers equal, whatever their order."""
        native = getattr(self.native, method)(*args, **options)
        model = getattr(self.model, method)(*args, **options)
        if isinstance(model, list):
            native, model = sorted(native, key=repr), sorted(model, key=repr)
        assert native == model, f"{method}{args}: native {native!r}, model {model!r}"
        return native

    # --- Storing ---

    @rule(key=keys, value=values, ttl=ttls, tags=tags)
    def set(self, key: Any, value: int, ttl: Any, tags: list[str]) -> None:
        self.both("set", key, value, ttl, tags=tags)

    @rule(key=keys, value=values)
    def set_untagged(self, key: Any, value: int) -> None:
        self.both("__setitem__", key, value)

    @rule(many=many, value=values, ttl=ttls, tags=tags)
    def set_many(self, many: list[Any], value: int, ttl: Any, tags: list[str]) -> None:
        self.both("set_many", [(key, value) for key in many], ttl, tags=tags)

    @rule(key=keys, value=values, how=st.sampled_from(["add", "setdefault", "incr"]))
    def store(self, key: Any, value: int, how: str) -> None:
        self.both(how, key, value)

    @rule(key=keys, ttl=ttls)
    def touch(self, key: Any, ttl: Any) -> None:
        self.both("touch", key, ttl)

    # --- Removing ---

    @rule(key=keys)
    def delete(self, key: Any) -> None:
        self.both("delete", key)

    @rule(key=keys)
    def pop(self, key: Any) -> None:
        self.both("pop", key, None)

    @rule(many=many)
    def batch_of_keys(self, many: list[Any]) -> None:
        erased, errors = self.native._invalidate_keys(many)
        assert sum(erased) == self.model.delete_many(many)
        assert errors == {}

    @rule(pattern=st.sampled_from(PATTERNS))
    def delete_pattern(self, pattern: Any) -> None:
        self.both("delete_pattern", pattern)

    @rule(patterns=st.lists(st.sampled_from(PATTERNS), max_size=4))
    def batch_of_patterns(self, patterns: list[Any]) -> None:
        removed = sum(self.native._invalidate_patterns(patterns))
        assert removed == sum(self.model.delete_pattern(pattern) for pattern in patterns)

    @rule(table=st.sampled_from(TABLES))
    def invalidate_table(self, table: Any) -> None:
        self.both("invalidate_table", table)

    @rule(tag=st.sampled_from(TAGS))
    def delete_tag(self, tag: str) -> None:
        self.both("delete_tag", tag)

    @rule(step=st.sampled_from([0.25, 0.5, 3, 10]), sweep=st.booleans())
    def advance(self, step: float, sweep: bool) -> None:
        self.clock.advance(step)
        if sweep:
            self.native.expire(), self.model.expire()

    @rule()
    def clear(self) -> None:
        self.both("clear")

    # --- Looking ---

    @rule(pattern=st.sampled_from(PATTERNS))
    def matching_keys(self, pattern: Any) -> None:
        self.both("get_keys_matching_pattern", pattern)

    @rule(key=keys)
    def look(self, key: Any) -> None:
        self.both("tags", key)
        self.both("get", key, ABSENT)

    @rule(pickled=st.booleans())
    def copy(self, pickled: bool) -> None:
        """Goes on with a copy; leases are the old cache's."""
        native, model = self.native.copy(), self.model.copy()
        if pickled:
            native.clear()
            native._restore(pickle.loads(pickle.dumps(self.native._entries())))
        self.native, self.model, self.leases = native, model, []

    # --- Loading ---

    @rule(key=keys, tags=tags)
    def lease(self, key: Any, tags: list[str]) -> None:
        self.leases.append((self.native.lease(key, tags=tags), self.model.lease(key, tags=tags)))

    @rule(which=numbers, value=values, ttl=ttls, tags=tags)
    def fill(self, which: int, value: int, ttl: Any, tags: list[str]) -> None:
        if self.leases:
            native, model = self.leases[which % len(self.leases)]
            stored = self.native.fill(native, value, ttl, tags=tags)
            assert stored == self.model.fill(model, value, ttl, tags=tags)

    @rule(which=numbers)
    def drop_lease(self, which: int) -> None:
        if self.leases:
            self.leases.pop(which % len(self.leases))

    # --- What always holds ---

    @invariant()
    def sound(self) -> None:
        assert self.native._check()
        assert len(self.native) == len(self.model)
        assert [n.outdated for n, _ in self.leases] == [m.outdated for _, m in self.leases]

    def teardown(self) -> None:
        if hasattr(self, "native"):
            assert self.state(self.native) == self.state(self.model)

    def state(self, cache: Any) -> dict[Any, Any]:
        return {k: (v, cache.tags(k), cache.expires_in(k)) for k, v in cache.items()}


class FixedMachine(Machine):
    native_class, model_class = lapse.TTLCache, ModelTTLCache


class GrownMachine(FixedMachine):
    """With so many entries that prefixes are indexed."""

    @rule(first=numbers, tagged=st.booleans())
    def grow(self, first: int, tagged: bool) -> None:
        grown = {f"g{n % 3}:{n % 7}:{n}": n for n in range(first, first + GROWN)}
        self.both("set_many", grown, tags=["all"] if tagged else [])


class SlidingMachine(Machine):
    native_class, model_class = lapse.SlidingTTLCache, ModelSlidingTTLCache


class ProbabilisticMachine(Machine):
    native_class, model_class = lapse.ProbabilisticTTLCache, ModelProbabilisticTTLCache
    options = {"early_expiry_factor": 0.0}  # noqa: RUF012


@pytest.mark.parametrize("machine", [FixedMachine, SlidingMachine, ProbabilisticMachine])
def test_native_agrees_with_model(machine: Any) -> None:
    """Whatever the sequence of calls, entries, tags and leases are those of the model."""
    run_state_machine_as_test(machine, settings=STEPS)


def test_native_agrees_with_model_through_the_prefix_index() -> None:
    """The same while patterns are looked up in the index."""
    run_state_machine_as_test(GrownMachine, settings=FEW_STEPS)
