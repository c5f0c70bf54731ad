"""Caches across os.fork().

Another thread of the parent may have been removing entries by a pattern or a tag at the moment of
the fork, and will not go on in the child: the child empties such a cache, so that nothing stays
that was to go. On a free-threaded build a thread may also have been waiting for a lock, and be
handed that lock without ever running in the child: the child makes the locks of every cache that it
inherited free again (`lapse_after_fork()` in csrc/steps.c says why that is safe).

What stands in front of caches has its own locks and threads to renew, after those of the caches.

What a fork must not find in the midst of something, because a library beneath would never get over
it in the child, is held meanwhile: see hold().
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

from lapse import stops

__all__ = ["alive", "hold", "tell_all", "watch"]

log = logging.getLogger("lapse")

T = TypeVar("T")

PATIENCE = 1.0  # seconds that a fork waits for what it is to hold

_caches: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id()


def watch(cache: Any) -> None:
    """Remember a cache, or what was made for one, weakly, for the children of this process.

    `_after_fork()` is called in the child, in the order of these calls.
    """
    _caches[id(cache)] = cache


def alive(table: weakref.WeakValueDictionary[Any, T]) -> list[T]:
    """What a table of weak references holds still, whatever other threads do to it meanwhile.

    Its own values() raises if something in it dies in another thread at the wrong moment.
    """
    found = [ref() for ref in table.valuerefs()]
    return [each for each in found if each is not None]


def tell_all(watched: Iterable[Any], method: str) -> None:
    """Call a method of each that has it. What one raises is logged: the others need it.

    A child may have no thread to spare for one, and must not wait for ever for another one.
    """
    for each in watched:
        act = getattr(each, method, None)
        if act is None:
            continue
        try:
            act()
        except Exception:
            log.exception("%s of a %s failed", method, type(each).__name__)


# --- Held while the process forks ---

_calm: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id()


class _Held(threading.local):
    """The locks, and the stops, that this thread holds for a fork."""

    locks: tuple[Any, ...] = ()
    stops = False


_held = _Held()


def hold(it: Any) -> None:
    """Remember `it`, weakly: whoever forks holds its `_lock`, an RLock, or has waited a second."""
    _calm[id(it)] = it


def _before_fork() -> None:
    end = time.monotonic() + PATIENCE
    _held.stops = True
    stops.hold(end)
    for each in alive(_calm):
        lock = each._lock
        if lock.acquire(timeout=max(0.0, end - time.monotonic())):
            _held.locks = (*_held.locks, lock)


def _let_go_in_parent() -> None:
    if _held.stops:
        _held.stops = False
        stops.let_go()
    _let_go()


def _let_go() -> None:
    locks, _held.locks = _held.locks, ()
    for lock in locks:
        lock.release()


def _after_fork() -> None:
    _held.stops = False
    stops.forget_stops()
    _let_go()
    tell_all(alive(_caches), "_after_fork")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_let_go_in_parent, after_in_child=_after_fork
    )
