"""The lock under which figures are counted that several threads share.

One for all, as it is held for a few additions: a forked child needs only one new. Re-entrant,
because a finalizer that runs in the middle of them may count, too.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager

__all__ = ["counting"]

_lock = threading.RLock()


def counting() -> AbstractContextManager[object]:
    """`with counting():` nobody else counts."""
    return _lock


def _new_lock() -> None:
    """The lock that a forked child inherits may be held by a thread that it does not have."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
