"""Who has sent what: the sender's incarnation and numbers, and what a receiver has seen of others.

    Origin   here:       web-1/4711/9f2c61aa55d0e3b7   0, 1, 2, ...
    Ledger   elsewhere:  origin ──► last sequence      a hole in the numbers is a gap

Invariants
    1. An incarnation never comes again: a restarted process, and a forked child, is another one and
       counts from 0.
    2. Every number reported "new" is reported so once. What is missing is reported as a "gap" once.
    3. An incarnation that is first seen at a number above 0 may have sent what did not come: a gap.
    4. An unordered transport has `grace` seconds to bring what is missing; then it is `overdue()`.

Neither class has a lock. An origin is advanced by one thread at a time (the outbox sees to that), a
ledger belongs to the thread that receives.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Ledger", "Origin", "Verdict"]

Verdict = Literal["new", "duplicate", "gap"]

MOST_ORIGINS = 1024
REORDERED = 64  # numbers of one origin that may be missing at a time before that is a gap
HOST_LENGTH = 64


class Origin:
    """One incarnation of a sender, and the numbers of its messages."""

    __slots__ = ("id", "last")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Become another incarnation, that has sent nothing yet."""
        host = socket.gethostname()[:HOST_LENGTH]
        #: Unique: host, process, random.
        self.id = f"{host}/{os.getpid()}/{secrets.token_hex(8)}"
        #: The number given last; -1 before the first.
        self.last = -1

    def next(self) -> int:
        """The number of the next message, from 0 on."""
        self.last += 1
        return self.last

    def __repr__(self) -> str:
        return f"Origin({self.id!r}, last={self.last})"


@dataclass(slots=True)
class _Seen:
    """What is known of one origin."""

    last: int
    #: Numbers below `last` that have not come, and until when they may.
    missing: dict[int, float] = field(default_factory=dict)


class Ledger:
    """The last sequence of each foreign origin.

    Args:
        ordered: whether the transport keeps the order of one origin's messages.
        grace: seconds that an unordered transport has to bring what is missing.
        most: origins that are remembered; the one that was heard longest ago is forgotten, and is
            unknown when it comes again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        ordered: bool = True,
        grace: float = 1.0,
        most: int = MOST_ORIGINS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ordered = ordered
        self._grace = grace
        self._most = most
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def see(self, origin: str, sequence: int) -> Verdict:
        """Note a message that has come. O(1), but for what an unordered transport is missing."""
        seen = self._of(origin)
        if sequence <= seen.last:
            return "duplicate" if seen.missing.pop(sequence, None) is None else "new"
        return self._advance(seen, sequence, range(seen.last + 1, sequence))

    def reach(self, origin: str, sequence: int | None) -> bool:
        """Note that the origin has sent everything up to `sequence`; whether that is a gap.

        None: it has sent nothing yet.
        """
        seen = self._of(origin)
        if sequence is None or sequence <= seen.last:
            return False
        missing = range(seen.last + 1, sequence + 1)
        return self._advance(seen, sequence, missing) == "gap"

    def overdue(self) -> int:
        """How many origins still miss what had its time; they are given up, so reported once."""
        now = self._clock()
        late = [
            seen
            for seen in self._seen.values()
            if seen.missing and min(seen.missing.values()) <= now
        ]
        for seen in late:
            seen.missing.clear()
        return len(late)

    def lacks(self, origin: str) -> bool:
        """Whether something of the origin is missing that may still come."""
        seen = self._seen.get(origin)
        return seen is not None and bool(seen.missing)

    def __len__(self) -> int:
        return len(self._seen)

    def _of(self, origin: str) -> _Seen:
        seen = self._seen.get(origin)
        if seen is None:
            seen = self._seen[origin] = _Seen(-1)
            if len(self._seen) > self._most:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(origin)
        return seen

    def _advance(self, seen: _Seen, last: int, missing: range) -> Verdict:
        """Go on to `last`, without the numbers that are missing."""
        seen.last = last
        if not missing:
            return "new"
        if self._ordered or missing.stop - missing.start + len(seen.missing) > REORDERED:
            seen.missing.clear()
            return "gap"
        until = self._clock() + self._grace
        seen.missing.update(dict.fromkeys(missing, until))
        return "new"
