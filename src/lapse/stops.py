"""Stops of all threads: none is under way at a fork, or when the process ends.

A table that gives memory back on a free-threaded CPython stops all threads for a moment
(csrc/release.c). A thread that is about to do so when the interpreter begins to end is halted for
good, with a lock that the end then waits for: python/cpython#137433, which 3.13.5 has. atexit
functions run before any thread is halted: after the one here no stop begins, and none is under way.

A child that is forked in the midst of another thread's stop would have the interpreter's lock of
it, and nobody to open that: its own next stop would wait for ever. So who forks holds stops
meanwhile. A table that is refused one keeps its memory until the next time.
"""

from __future__ import annotations

import atexit
import time

from lapse._core import end_stops, forget_stops, hold_stops

__all__ = ["forget_stops", "hold", "let_go"]

PATIENCE = 1.0  # seconds that the exit waits: one thread's stop comes after another's


def hold(until: float) -> None:
    """No stop begins before let_go(); none is under way, or it is `until` (monotonic seconds)."""
    under_way = hold_stops(1)
    while under_way and time.monotonic() < until:
        time.sleep(0.001)
        under_way = hold_stops(0)


def let_go() -> None:
    """Once for each hold(), by whom it has held."""
    hold_stops(-1)


@atexit.register
def _end() -> None:
    until = time.monotonic() + PATIENCE
    while end_stops() and time.monotonic() < until:
        time.sleep(0.001)
