"""Threads that outlive a shortage of memory: it ends a step of theirs, never the thread.

keep_going() is the target of such a thread, not called by one: memory may be short for a call, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["keep_going"]

PAUSE = 0.05  # seconds before the next step when memory was short


def keep_going(step: Callable[[], bool]) -> None:
    """Call `step` until it answers False. Where memory was too short, the next comes later."""
    going = True
    while going:
        try:
            going = step()
        except MemoryError:
            time.sleep(PAUSE)
