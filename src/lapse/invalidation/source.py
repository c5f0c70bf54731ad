"""What every origin of invalidations looks like from here: an iterator of batches.

    source ──► Batch(invalidations, changes, commit)   what has stopped being true, in order
           ──► Resync(reason, commit)                  something may have been lost: unknown what

A source receives and parses. It applies nothing: a receiver (receiver.py) iterates it in a thread
of its own, and hands what comes to the queue. A new transport or database is one file with one such
class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from lapse.invalidation.message import Invalidation

__all__ = ["Batch", "Delivery", "MessagesLost", "Resync", "Source", "SourceCounts"]

Delivery = Literal["at-most-once", "at-least-once"]


class Batch(NamedTuple):
    """What came at once; empty: nothing did, and the source is well."""

    invalidations: Sequence[Invalidation] = ()
    #: Rows of a database that have changed, mappings with a "table"; or messages of a type of the
    #: caller's own. For listeners and for whoever translates them.
    changes: Sequence[Mapping[str, Any]] = ()
    #: Called when all of it is in force: the source may forget it then. None: it has already.
    commit: Callable[[], object] | None = None


class Resync(NamedTuple):
    """Something may have been lost: whatever came from this source may be outdated."""

    reason: str
    #: As for a batch.
    commit: Callable[[], object] | None = None


class MessagesLost(Exception):
    """Raised by a transport that knows that it has lost messages; it goes on afterwards."""


@dataclass(slots=True)
class SourceCounts:
    """What a source has met. One thread counts; any may read."""

    #: Messages that came, whatever they were.
    messages: int = 0
    #: Messages that are known to be missing, counted once for each hole.
    gaps: int = 0
    #: Messages that had come before.
    duplicates: int = 0
    #: Own messages that came back.
    echoes: int = 0
    #: Messages that could not be read.
    poison: int = 0
    #: Well-formed messages of an unknown type.
    unknown: int = 0


@runtime_checkable
class Source(Protocol):
    """An origin of invalidations. One thread iterates it; any thread may close it.

    It may have `counts`, a `SourceCounts`: they are shown in the receiver's statistics.
    """

    #: "at-most-once": what is sent while the link is down is lost.
    #: "at-least-once": it may come twice.
    delivery: Delivery
    #: Does what one origin sends come in its order?
    ordered: bool
    #: Does what was sent while the link was down come when it is up again?
    replay: bool
    #: Does every process get everything?
    broadcast: bool

    def __iter__(self) -> Iterator[Batch | Resync]:
        """Wait for what comes, and yield it; at the latest after half a second an empty batch.

        May raise: the receiver then iterates anew, after a pause, and takes it that what was sent
        meanwhile is lost, unless the source can replay.
        """
        ...

    def close(self) -> None:
        """End the iteration within a second. Idempotent, from any thread."""
        ...
