"""Hypothesis drives a lazily invalidated cache: nothing older than the last mark of it is served.

LAPSE_LONG=1 runs many times as many steps, at random instead of the fixed seed.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import lapse
from lapse.loading.lazy import LazyInvalidation
from model_invalidation import matches
from support import KINDS, cache_maker
from test_invalidation_stateful import STEPS

KEYS: list[Any] = ["a:1", "a:2", "a:b:1", "b:1", "*:1", "lone", b"a:1", b"b:2", 1, -1, -2, ("a", 1)]
TAGS = {key: f"g{n % 3}" for n, key in enumerate(KEYS)}
PATTERNS: list[Any] = ["*", "a:*", "a:?", "*:1", "\\*:*", "lone", "z*", b"*", b"a*"]
TABLES: list[Any] = ["a", "a:b", "*", "z", b"b"]
NO_TAG = "none"
ABSENT = object()

keys = st.sampled_from(KEYS)


class Value:
    """A version of a key, as the source had it."""

    def __init__(self, key: Any, version: int) -> None:
        self.key, self.version = key, version


class Machine(RuleBasedStateMachine):
    """A source whose values have versions, a cache in front of it, and what was promised."""

    kind = "ttl"

    @initialize(
        most=st.sampled_from([1, 2, 4, 100]), stamps=st.sampled_from([1, 3, 100]),
        maxsize=st.sampled_from([None, 4]), stale_ttl=st.sampled_from([None, 6]),
    )  # fmt: skip
    def start(self, most: int, stamps: int, maxsize: Any, stale_ttl: Any) -> None:
        self.clock = lapse.ManualClock(5)
        self.cache = cache_maker(KINDS[self.kind][0], self.clock, KINDS[self.kind][1])(
            8, maxsize=maxsize, stale_ttl=stale_ttl
        )
        self.versions: dict[Any, int] = dict.fromkeys(KEYS, 0)
        self.promised: dict[Any, int] = dict.fromkeys(KEYS, 0)
        self.meanwhile: Any = None
        self.lazy = LazyInvalidation(
            self.cache, self, max_marks=most, max_stamps=stamps, start=False
        )
        self.walk = self.lazy._walk()

    # --- The source ---

    def fetch(self, key: Any) -> Any:
        version = self.versions[key]
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return None if version % 7 == 3 else Value(key, version)

    def change(self, covers: Any) -> None:
        """Raise the versions of what is about to be marked."""
        for key in KEYS:
            if covers(key):
                self.versions[key] += 1

    def promise(self, covers: Any) -> None:
        for key in KEYS:
            if covers(key):
                self.promised[key] = self.versions[key]

    # --- Reading ---

    def look(self, key: Any, tagged: bool) -> None:
        promised, before = self.promised[key], self.versions[key]
        value = self.lazy.get(key, ABSENT, tags=[TAGS[key]] if tagged else ())
        if value is ABSENT:
            assert before % 7 == 3 or self.versions[key] != before
        else:
            assert value.key == key
            assert value.version >= promised

    @rule(key=keys, tagged=st.booleans())
    def get(self, key: Any, tagged: bool) -> None:
        self.look(key, tagged)

    @rule(key=keys, tagged=st.booleans())
    def get_twice(self, key: Any, tagged: bool) -> None:
        """The second time nothing is loaded, unless there is nothing or stamps are forgotten."""
        self.look(key, tagged)
        loads = self.lazy.stats().loads
        self.look(key, tagged)
        kept = key in self.cache
        assert self.lazy.stats().loads == loads or not kept or self.versions[key] % 7 == 3

    @rule(key=keys, pattern=st.none() | st.sampled_from(PATTERNS))
    def failing_load(self, key: Any, pattern: Any) -> None:
        """Old values may be served on then, but none that was marked, not even meanwhile."""

        def meanwhile() -> None:
            if pattern is not None:
                self.mark_pattern(pattern)
            raise OSError("the source is down")

        self.meanwhile = meanwhile
        try:
            promised = self.promised[key]
            value = self.lazy.get(key, ABSENT)
            assert value is not ABSENT
            assert value.version >= (self.promised[key] if self.meanwhile is None else promised)
        except OSError:
            pass
        self.meanwhile = None

    @rule(key=keys)
    def change_unnoticed(self, key: Any) -> None:
        self.versions[key] += 1

    # --- Marking ---

    def mark(self, covers: Any, make: Any) -> None:
        self.change(covers)
        make()
        self.promise(covers)

    @rule(key=keys)
    def mark_key(self, key: Any) -> None:
        self.mark(lambda k: k == key, lambda: self.lazy.mark_for_invalidation(key))

    @rule(pattern=st.sampled_from(PATTERNS))
    def mark_pattern(self, pattern: Any) -> None:
        self.mark(
            lambda k: matches(pattern, k), lambda: self.lazy.mark_pattern_for_invalidation(pattern)
        )

    @rule(table=st.sampled_from(TABLES))
    def mark_table(self, table: Any) -> None:
        prefix = table + (b":" if isinstance(table, bytes) else ":")
        self.mark(
            lambda k: isinstance(k, type(prefix)) and k.startswith(prefix),
            lambda: self.lazy.mark_table_for_invalidation(table),
        )

    @rule(tag=st.sampled_from([*sorted(set(TAGS.values())), NO_TAG]))
    def mark_tag(self, tag: str) -> None:
        bearing = {key for key in KEYS if tag in self.cache._kept_tags(key)}
        self.mark(lambda k: k in bearing, lambda: self.lazy.mark_tag_for_invalidation(tag))

    @rule()
    def mark_all(self) -> None:
        self.mark(lambda k: True, self.lazy.mark_all_for_invalidation)

    @rule(key=keys, pattern=st.sampled_from(PATTERNS), by_key=st.booleans())
    def mark_during_a_load(self, key: Any, pattern: Any, by_key: bool) -> None:
        """What had begun is not stored."""
        self.meanwhile = (
            (lambda: self.mark_key(key)) if by_key else (lambda: self.mark_pattern(pattern))
        )
        self.look(key, True)
        self.meanwhile = None

    # --- The cache, past the object ---

    @rule(key=keys, tagged=st.booleans())
    def set_by_others(self, key: Any, tagged: bool) -> None:
        tags = [TAGS[key]] if tagged else []
        self.cache.set(key, Value(key, self.versions[key]), tags=tags)

    @rule(key=keys)
    def load_by_others(self, key: Any) -> None:
        self.cache.get_or_load(key, lambda key: Value(key, self.versions[key]), tags=[TAGS[key]])

    @rule(key=keys)
    def delete(self, key: Any) -> None:
        self.cache.delete(key)

    @rule()
    def soft_clear(self) -> None:
        self.cache.soft_clear(4)

    @rule(step=st.sampled_from([0.5, 3, 9]))
    def advance(self, step: float) -> None:
        self.clock.advance(step)

    # --- The walker ---

    @rule(steps=st.integers(1, 3))
    def walk_on(self, steps: int) -> None:
        for _ in range(steps):
            self.walk.step()

    @rule()
    def reclaim(self) -> None:
        """What is left then is as new as was promised."""
        self.lazy.reclaim()
        assert self.lazy.stats().marks == 0
        for key in self.cache._kept():
            assert self.cache._look_kept(key, None).version >= self.promised[key]

    @invariant()
    def sound(self) -> None:
        stats = self.lazy.stats()
        assert stats.marks <= self.lazy._marks._most
        assert stats.marks == self.lazy._marks.count

    def teardown(self) -> None:
        if hasattr(self, "lazy"):
            self.reclaim()
            assert self.cache._check()
            self.lazy.close()


@pytest.mark.parametrize("name", KINDS)
def test_nothing_older_than_its_mark_is_served(name: str) -> None:
    """Whatever the sequence of calls, from whatever kind of cache."""
    machine = type("Machine", (Machine,), {"kind": name})
    run_state_machine_as_test(machine, settings=STEPS)
