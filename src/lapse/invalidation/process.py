"""What becomes of receivers, channels and mailboxes when the process forks, and when it ends.

A forked child has none of the threads, and locks that threads may have held that it does not have.
First everything here gets locks of its own, then whatever had a thread starts one. The queues of
queue.py are in order by then: their hook is registered before this one.

At the interpreter's exit everything is asked to finish before the queues apply what still waits.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Any

import lapse.invalidation.queue  # noqa: F401  its hooks come first after a fork, last at the exit
from lapse.forks import alive, tell_all

__all__ = ["watch"]

_watched: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id()


def watch(it: Any) -> None:
    """Remember `it`, weakly. In a forked child it is renewed, then restarted; at the exit it ends.

    It has what it needs of `_renew_in_child()`, `_restart_in_child()` and `_finish_at_exit()`.
    """
    _watched[id(it)] = it


def _after_fork() -> None:
    tell_all(alive(_watched), "_renew_in_child")
    tell_all(alive(_watched), "_restart_in_child")


@atexit.register
def _at_exit() -> None:
    tell_all(alive(_watched), "_finish_at_exit")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
