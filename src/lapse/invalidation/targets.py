"""The cache that invalidations are applied to: lapse's own, in bulk, or any with the usual methods.

    Groups      what is to go, by kind
    Outcome     for each target of one kind: how many live entries went, or what it raised
    Target      a cache seen as four ways to remove: all, globs, tags, keys

A batch is applied strongest first: `all` covers everything; else tables and patterns in one pass
over the cache, then tags, then keys. So an entry that several of them name goes once, by the
strongest. A target that raises never keeps the others from being applied; but MemoryError, which is
no target's fault, is raised when the others have been: whoever has the batch applies it again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from lapse import _core
from lapse.invalidation.message import Kind

__all__ = ["Groups", "Outcome", "Outcomes", "Target", "apply_groups", "grouped", "target_of"]


class Groups(NamedTuple):
    """Targets by kind, strongest first. Those that grouped() makes differ, but for keys."""

    #: [None] or nothing.
    all: list[Any]
    table: list[str | bytes]
    pattern: list[str | bytes]
    tag: list[str]
    key: list[Any]

    @property
    def size(self) -> int:
        """How many targets."""
        return sum(map(len, self))


class Outcome(NamedTuple):
    """What became of the targets of one kind."""

    #: Live entries that each removed; 0 where it raised, or where the cache does not say.
    removed: Sequence[int]
    #: What was raised, by position.
    errors: dict[int, Exception]


class Outcomes(NamedTuple):
    """The outcomes of a batch, by kind as in Groups."""

    all: Outcome
    table: Outcome
    pattern: Outcome
    tag: Outcome
    key: Outcome


def grouped(pairs: Iterable[tuple[Kind, Any]]) -> Groups:
    """Targets by kind, from (kind, target) in any order."""
    groups = Groups([], [], [], [], [])
    seen: set[tuple[Kind, Hashable]] = set()
    for kind, target in pairs:
        if kind != "key":  # a key's comparison may be anybody's code, and the cache makes it anyway
            if (kind, target) in seen:
                continue
            seen.add((kind, target))
        getattr(groups, kind).append(target)
    return groups


def apply_groups(target: Target, groups: Groups) -> Outcomes:
    """Remove from the cache what the groups name."""
    if len(groups.key) == groups.size:  # by far the commonest
        nothing = Outcome(b"", {})
        return Outcomes(nothing, nothing, nothing, nothing, target.keys(groups.key))
    everything = _one_by_one(groups.all, lambda _: target.clear())
    if groups.all and not everything.errors:
        return Outcomes(everything, *(Outcome(bytes(len(group)), {}) for group in groups[1:]))
    globs, tags, keys = _all_of(
        lambda: target.globs([*map(_table_glob, groups.table), *groups.pattern]),
        lambda: _one_by_one(groups.tag, target.delete_tag),
        lambda: target.keys(groups.key),
    )
    tables, patterns = _split(globs, len(groups.table))
    return Outcomes(everything, tables, patterns, tags, keys)


def target_of(cache: Any) -> Target:
    """The target for a cache."""
    return NativeTarget(cache) if isinstance(cache, _core.Cache) else DuckTarget(cache)


class Target:
    """A cache to remove from."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def clear(self) -> int:
        """Remove everything."""
        raise NotImplementedError

    def globs(self, globs: list[str | bytes]) -> Outcome:
        """Remove what the globs match; an entry that several match counts for the first."""
        raise NotImplementedError

    def delete_tag(self, tag: str) -> int:
        """Remove what bears the tag."""
        return self.cache.delete_tag(tag)  # type: ignore[no-any-return]

    def keys(self, keys: list[Any]) -> Outcome:
        """Remove these keys; a duplicate removes nothing."""
        raise NotImplementedError


class NativeTarget(Target):
    """A cache of lapse: one call for all globs, one for all keys. A closed one holds nothing."""

    def clear(self) -> int:
        return 0 if self.cache.closed else self.cache._clear()

    def globs(self, globs: list[str | bytes]) -> Outcome:
        if not globs or self.cache.closed:
            return Outcome(bytes(len(globs)), {})
        try:
            return Outcome(self.cache._invalidate_patterns(globs), {})
        except Exception:  # one that is wrong is found out, and the others are applied
            return _one_by_one(globs, lambda glob: self.cache._invalidate_patterns([glob])[0])

    def delete_tag(self, tag: str) -> int:
        return 0 if self.cache.closed else self.cache.delete_tag(tag)

    def keys(self, keys: list[Any]) -> Outcome:
        if not keys or self.cache.closed:
            return Outcome(bytes(len(keys)), {})
        try:
            return Outcome(*self.cache._invalidate_keys(keys))
        except MemoryError:
            return _one_by_one(keys, self._key)

    def _key(self, key: Any) -> int:
        erased, errors = self.cache._invalidate_keys([key])
        if errors:
            raise errors[0]
        return int(erased[0])


class DuckTarget(Target):
    """Any object with `delete(key)` and `delete_pattern(pattern)`, asked item by item.

    `delete_tag(tag)` and `clear()` are used where it has them; without `clear()` the pattern "*"
    stands for all.
    """

    def clear(self) -> int:
        if hasattr(self.cache, "clear"):
            return _count(self.cache.clear())
        return _count(self.cache.delete_pattern("*"))

    def globs(self, globs: list[str | bytes]) -> Outcome:
        return _one_by_one(globs, lambda glob: self.cache.delete_pattern(glob))

    def delete_tag(self, tag: str) -> int:
        return _count(self.cache.delete_tag(tag))

    def keys(self, keys: list[Any]) -> Outcome:
        seen: set[Any] = set()
        return _one_by_one(keys, lambda key: self.cache.delete(key) if _is_new(key, seen) else 0)


def _is_new(key: Any, seen: set[Any]) -> bool:
    """Is the key not among those seen? One that cannot be compared is new."""
    try:
        if key in seen:
            return False
        seen.add(key)
    except Exception:
        return True
    return True


def _count(answer: Any) -> int:
    """How many entries a foreign method says that it removed."""
    return int(answer) if isinstance(answer, int) else 0


def _one_by_one(targets: Sequence[Any], remove: Callable[[Any], Any]) -> Outcome:
    removed = [0] * len(targets)
    errors: dict[int, Exception] = {}
    short = False
    for i, target in enumerate(targets):
        try:
            removed[i] = _count(remove(target))
        except MemoryError:  # not the target's fault
            short = True
        except Exception as error:
            errors[i] = error
    if short:
        raise MemoryError("lapse: no memory for all of a batch")
    return Outcome(removed, errors)


def _all_of(*calls: Callable[[], Outcome]) -> list[Outcome]:
    """What the calls answer; all are made before the MemoryError of one is raised."""
    outcomes: list[Outcome] = []
    for call in calls:
        with suppress(MemoryError):
            outcomes.append(call())
    if len(outcomes) < len(calls):
        raise MemoryError("lapse: no memory for all of a batch")
    return outcomes


def _split(outcome: Outcome, at: int) -> tuple[Outcome, Outcome]:
    """The outcome of the first `at` targets, and that of the rest."""
    removed, errors = outcome
    first = {i: error for i, error in errors.items() if i < at}
    rest = {i - at: error for i, error in errors.items() if i >= at}
    return Outcome(removed[:at], first), Outcome(removed[at:], rest)


def _table_glob(table: str | bytes) -> str | bytes:
    """The pattern of a table's keys."""
    if isinstance(table, str):
        return _core.escape(table) + ":*"
    return _core.escape(table) + b":*"
