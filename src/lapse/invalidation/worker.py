"""The thread of one queue: it drains what is due, and sleeps until more may be.

It holds the queue only while it drains, so it may be the last to do so: then the queue dies in this
thread, which applies what waited there. await_all() gives such a thread its time when the
interpreter ends.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from lapse.shortage import keep_going

if TYPE_CHECKING:
    from lapse.invalidation.queue import OptimizedInvalidation

__all__ = ["Worker", "await_all"]

log = logging.getLogger("lapse.invalidation")
ERROR_PAUSE = 1.0  # seconds, at most, before the thread goes on after an error


class Worker(threading.Thread):
    """Drains the queue that `ref` names, whenever `alarm` says so; ends with it.

    Args:
        ref: a weak reference, whose callback puts an alarm.
        alarm: what the queue puts something into when there is something to do, or it is closed.
        name: the thread's.
    """

    def __init__(
        self,
        ref: weakref.ref[OptimizedInvalidation],
        alarm: queue.SimpleQueue[None],
        name: str | None = None,
    ) -> None:
        super().__init__(target=keep_going, args=(self._run_once,), name=name, daemon=True)
        self._ref, self._alarm = ref, alarm

    def is_ending(self) -> bool:
        """Does it run still, though its queue has ended? False of one that is about to start."""
        owner = self._ref()
        return self.is_alive() and (owner is None or owner._stopping)

    def _run_once(self) -> bool:
        """Drain what is due, and sleep until more may be; False: the queue has ended."""
        owner = self._ref()
        if owner is None or owner._stopping:
            return False
        try:
            seconds = owner._turn()
        except Exception:
            log.exception("applying invalidations failed")
            seconds = min(owner.batch_timeout, ERROR_PAUSE)
            with suppress(queue.Empty):
                self._alarm.get_nowait()  # the one for what has been put back
        del owner
        with suppress(queue.Empty):
            self._alarm.get(timeout=seconds)
        return True


def await_all(seconds: float) -> None:
    """Wait for the threads of queues that have ended, so many seconds at most."""
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if isinstance(thread, Worker) and thread.is_ending():
            thread.join(max(0.0, until - time.monotonic()))
