"""The last stop of all threads: the end of the process waits for it.

A table that gives memory back on a free-threaded CPython stops all threads for a moment
(csrc/release.c). A thread that is about to do so when the interpreter begins to end is halted for
good, with a lock that the end then waits for: python/cpython#137433, which 3.13.5 has. atexit
functions run before any thread is halted: after the one here no stop begins, and none is under way.
In the child of a fork the stops of threads that have not come along are none any more.
"""

from __future__ import annotations

import atexit
import time

from lapse._core import end_stops, forget_stops

__all__ = ["forget_stops"]

PATIENCE = 1.0  # seconds that the exit waits: one thread's stop comes after another's


@atexit.register
def _end() -> None:
    until = time.monotonic() + PATIENCE
    while end_stops() and time.monotonic() < until:
        time.sleep(0.001)
