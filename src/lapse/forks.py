"""Caches across os.fork().

Another thread of the parent may have been removing entries by a pattern or a tag at the moment of
the fork, and will not go on in the child: the child empties such a cache, so that nothing stays
that was to go. On a free-threaded build a thread may also have been waiting for a lock, and be
handed that lock without ever running in the child: the child makes the locks of every cache that it
inherited free again (`lapse_after_fork()` in csrc/steps.c says why that is safe).
"""

from __future__ import annotations

import os
import weakref
from typing import Any

__all__ = ["watch"]

_caches: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id()


def watch(cache: Any) -> None:
    """Remember a cache, weakly, for the children of this process."""
    _caches[id(cache)] = cache


def _after_fork() -> None:
    for cache in list(_caches.values()):
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
