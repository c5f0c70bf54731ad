"""Who has said that what was sent is in force, and who is there to say so.

    heard(origin)          ──►  present(): the origins heard of within the window
    confirmed(who, number) ──►  missing(members, number): who of them has not yet confirmed it

A confirmation of a number is one of all numbers below it, too. Both tables are bounded: what was
noted longest ago is forgotten, and costs at most a wait in vain.

Any thread may call any method; one lock, held for a few dict operations, and re-entrant: a
finalizer or a signal may ask in their midst.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

__all__ = ["Confirmations"]

MOST = 4096  # members that are remembered


class Confirmations:
    """What the members of a bus have confirmed, by their names or origins.

    Args:
        window: seconds since a member was last heard of, up to which it counts as present.
        clock: monotonic seconds.
    """

    def __init__(self, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Forget everything: what was confirmed to another incarnation means nothing."""
        self._changed = threading.Condition(threading.RLock())
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._confirmed: OrderedDict[str, int] = OrderedDict()
        self._began = self._clock()

    def heard(self, origin: str) -> None:
        """Note that an origin is there."""
        with self._changed:
            _note(self._heard, origin, self._clock())

    def confirmed(self, who: str, number: int) -> None:
        """Note that everything up to `number` is in force at `who`."""
        with self._changed:
            _note(self._confirmed, who, max(number, self._confirmed.get(who, -1)))
            self._changed.notify_all()

    def present(self) -> frozenset[str]:
        """The origins that were heard of within the window."""
        oldest = self._clock() - self._window
        with self._changed:
            return frozenset(origin for origin, at in list(self._heard.items()) if at >= oldest)

    @property
    def listened(self) -> float:
        """Seconds for which this object has been able to hear of others."""
        return self._clock() - self._began

    def missing(self, members: Iterable[str], number: int, seconds: float = 0.0) -> frozenset[str]:
        """Which of `members` have not confirmed `number`, after at most `seconds` of waiting."""
        expected = frozenset(members)

        def late() -> frozenset[str]:
            return frozenset(who for who in expected if self._confirmed.get(who, -1) < number)

        with self._changed:
            self._changed.wait_for(lambda: not late(), seconds)
            return late()


def _note(table: OrderedDict[str, float] | OrderedDict[str, int], who: str, what: float) -> None:
    table[who] = what  # type: ignore[assignment]
    table.move_to_end(who)
    if len(table) > MOST:
        table.popitem(last=False)
