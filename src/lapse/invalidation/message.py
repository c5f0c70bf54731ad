"""One invalidation, whatever brought it: an immutable value, checked when it is made.

    kind      target                  what goes
    key       any key                 the entry of that key; None is a key like any other
    pattern   str or bytes            every entry whose key matches the glob
    table     str or bytes            every entry whose key begins with the target and a ':'
    tag       str                     every entry that carries the tag
    all       none                    every entry

The other fields say where it comes from. Each may be None: not known.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["KINDS", "Invalidation", "Kind"]

Kind = Literal["key", "pattern", "table", "tag", "all"]

#: Every kind.
KINDS: tuple[Kind, ...] = get_args(Kind)

_LATEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What has stopped being true, and where that was noticed.

    Immutable, compared by value and hashable if its target is; so safe to share between threads.
    Raises ValueError for an unknown kind, a target of `all`, a negative sequence or a sent_at that
    is not finite, and TypeError for a field of the wrong type. A key is taken as it is: whether it
    is hashable shows when it is applied.
    """

    kind: Kind
    target: Any = None
    #: Version that the target now has, in its origin's own terms (a counter, an LSN, an ETag).
    version: int | str | None = None
    #: One incarnation of the publisher; another one after a restart or a fork.
    origin: str | None = None
    #: Number of the message among those of its origin, from 0 on; a gap means that one was lost.
    sequence: int | None = None
    #: Unix seconds by the origin's clock. For display and latency, never for order.
    sent_at: float | None = None

    def __post_init__(self) -> None:
        _check_target(self.kind, self.target)
        if self.version is not None:
            _check_type("version", self.version, int, str)
        if self.origin is not None:
            _check_type("origin", self.origin, str)
        if self.sequence is not None:
            _check_type("sequence", self.sequence, int)
            if self.sequence < 0:
                raise ValueError(f"sequence must not be negative, but is {self.sequence}")
        if self.sent_at is not None:
            _check_type("sent_at", self.sent_at, float, int)
            if not -_LATEST <= self.sent_at <= _LATEST:
                raise ValueError("sent_at must be a finite number of seconds")
            object.__setattr__(self, "sent_at", float(self.sent_at))


def _check_target(kind: str, target: Any) -> None:
    if kind == "key":
        return
    if kind == "pattern" or kind == "table":
        _check_type(f"target of a {kind}", target, str, bytes)
    elif kind == "tag":
        _check_type("target of a tag", target, str)
    elif kind != "all":
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    elif target is not None:
        raise ValueError(f"an invalidation of all takes no target, not {target!r}")


def _check_type(what: str, value: Any, *allowed: type) -> None:
    if not isinstance(value, allowed) or isinstance(value, bool):
        names = " or ".join(each.__name__ for each in allowed)
        raise TypeError(f"{what} must be {names}, not {type(value).__name__}")
