"""Caches across os.fork() on a free-threaded build.

There a thread may be waiting for a lock of a table at the moment of the fork, and be handed that
lock without ever running in the child. The child makes the locks of every cache that it inherited
free again (`lapse_after_fork()` in csrc/steps.c says why that is safe). A GIL build has no locks.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

from lapse._core import build

__all__ = ["watch"]

_caches: dict[int, weakref.ref[Any]] = {}


def watch(cache: Any) -> None:
    """Remember a cache, weakly, for the children of this process."""
    if build["threads"]:
        number = id(cache)
        _caches[number] = weakref.ref(cache, lambda ref: _forget(number, ref))


def _forget(number: int, ref: weakref.ref[Any]) -> None:
    if _caches.get(number) is ref:  # the number may belong to another cache by now
        del _caches[number]


def _free_locks() -> None:
    for ref in list(_caches.values()):
        cache = ref()
        if cache is not None:
            cache._after_fork()


if build["threads"] and hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)
