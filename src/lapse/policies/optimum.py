"""The optimum (Belady 1966): who knows the future lets go of what is asked for latest.

Nothing that stores keys as they are asked for hits more often. The key that has just been missed
may be the one to go, so that it is not stored at all: policies with an admission filter do that,
and an optimum that may not would be no bound for them.

A key that is kept from one request to its next is an interval of time, and a hit. So what is chosen
is the most intervals of which no more than `capacity` overlap, and a kept key is known by the time
when its interval ends: `due` holds these.
"""

from __future__ import annotations

__all__ = ["NAME", "next_uses", "optimum"]

from array import array
from collections.abc import Callable, Hashable, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice

NAME = "OPT"

_SPARE = 1_024  # dates of the past that a heap may hold before it is made anew


def next_uses(requests: Sequence[Hashable]) -> array[int]:
    """For each request when its key comes again; if never, a time after the end, each another."""
    uses = array("q", range(len(requests), 2 * len(requests)))
    last: dict[Hashable, int] = {}
    for now, key in enumerate(requests):
        if key in last:
            uses[last[key]] = now
        last[key] = now
    return uses


def optimum(
    requests: Sequence[Hashable], *, bypass: bool = True
) -> Callable[[int], Callable[[Sequence[Hashable]], int]]:
    """A maker of optimal caches for these requests. O(n log n) of them.

    Made with a capacity, a cache is called with one stretch of the requests after the other, and
    returns how many of each it misses.

    Args:
        requests: The whole trace.
        bypass: Whether a missed key may stay out. If not, it is stored before all else, as the
            textbooks have it.
    """
    uses = next_uses(requests)

    def make(capacity: int) -> Callable[[Sequence[Hashable]], int]:
        coming = enumerate(uses)
        due: set[int] = set()
        latest: list[int] = []  # a heap of what is due, negative so that the latest is first

        def replay(keys: Sequence[Hashable]) -> int:
            hits = 0
            for now, again in islice(coming, len(keys)):
                if now in due:
                    due.remove(now)
                    hits += 1
                elif not bypass and len(due) == capacity:
                    due.remove(-heappop(latest))
                due.add(again)
                heappush(latest, -again)
                if len(due) > capacity:
                    due.remove(-heappop(latest))
                if len(latest) > 2 * capacity + _SPARE:
                    latest[:] = [-time for time in due]
                    heapify(latest)
            return len(keys) - hits

        return replay

    return make
