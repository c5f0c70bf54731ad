"""What a full queue does: everything that waits gives way to a few operations that cover it.

A policy turns (kind, target) pairs into groups that remove at least as much:

    "all"       everything goes
    "table"     the tables of keys and patterns that begin with one, the tables and tags that wait;
                everything if something else waits
    callable    what it answers for a list of `Invalidation`; everything if it raises or answers
                nothing
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from lapse._queue import PATTERN_MAX, TABLE_MAX, NativeQueue
from lapse.invalidation.message import KINDS, Invalidation, Kind
from lapse.invalidation.targets import Groups, grouped

__all__ = ["Covered", "Policy", "cover", "policy_of"]

log = logging.getLogger("lapse.invalidation")

Pairs = list[tuple[Kind, Any]]
Policy = Callable[[Pairs], Iterable[tuple[Kind, Any]]]

EVERYTHING: Pairs = [("all", None)]
MOST = {"pattern": PATTERN_MAX, "table": TABLE_MAX}  # units


@dataclass(frozen=True, eq=False)
class Covered:
    """Operations that stand for items of the queue."""

    what: Groups
    #: How many items they stand for.
    count: int
    #: When the oldest of these was queued, in nanoseconds of the queue's clock.
    oldest: int

    def __len__(self) -> int:
        return self.count

    def groups(self) -> Groups:
        """The operations by kind."""
        return self.what

    def record(self, queue: NativeQueue) -> None:
        """Count each item as applied now, all of them at the age of the oldest."""
        queue._record(self.oldest, self.count)

    def of(self, count: int) -> Covered:
        """The same operations for `count` items."""
        return replace(self, count=count)

    def joined(self, other: Covered | None, most: int) -> Covered:
        """Both in one; more than `most` operations become the one that covers all."""
        if other is None:
            return self
        what = grouped([*_pairs(other.what), *_pairs(self.what)])
        if what.all or what.size > most:
            what = grouped(EVERYTHING)
        return Covered(what, self.count + other.count, min(self.oldest, other.oldest))


def policy_of(overflow: str | Callable[[list[Invalidation]], Iterable[Invalidation]]) -> Policy:
    """The policy that an `overflow=` argument names. ValueError if it names none."""
    if overflow == "all":
        return lambda pairs: EVERYTHING
    if overflow == "table":
        return lambda pairs: [_table_of(kind, target) for kind, target in pairs]
    if callable(overflow):
        return lambda pairs: _asked(overflow, pairs)
    raise ValueError(f"overflow must be 'all', 'table' or a callable, not {overflow!r}")


def _asked(overflow: Callable[[list[Invalidation]], Iterable[Invalidation]], pairs: Pairs) -> Pairs:
    answer = overflow([Invalidation(kind, target) for kind, target in pairs])
    return [(item.kind, item.target) for item in answer]


def cover(policy: Policy, pairs: Pairs, oldest: int) -> Covered:
    """What covers all pairs by this policy. Never raises."""
    try:
        what = grouped(policy(pairs))
    except Exception:
        log.exception("the overflow policy failed: everything is invalidated")
        what = grouped(EVERYTHING)
    if what.all or what.size == 0 or _is_too_long(what):
        what = grouped(EVERYTHING)
    return Covered(what, len(pairs), oldest)


def _is_too_long(groups: Groups) -> bool:
    """Is there a pattern or a table that no cache would take?"""
    return any(len(text) > most for kind, most in MOST.items() for text in getattr(groups, kind))


def _pairs(groups: Groups) -> Pairs:
    return [(kind, target) for kind in KINDS for target in getattr(groups, kind)]


def _table_of(kind: Kind, target: Any) -> tuple[Kind, Any]:
    """The table that covers an item, or all."""
    if kind == "table" or kind == "tag":
        return kind, target
    if kind == "all" or not isinstance(target, (str, bytes)):
        return "all", None
    table, colon, _ = _halves(target)
    literal = kind == "key" or not set(table) & set("*?[\\" if isinstance(table, str) else b"*?[\\")
    return ("table", table) if colon and literal else ("all", None)


def _halves(text: str | bytes) -> tuple[str | bytes, str | bytes, str | bytes]:
    return text.partition(":") if isinstance(text, str) else text.partition(b":")
