"""What the classes that stand between a cache and its data source have in common.

A data source is any object with the methods that a class needs, plain or asynchronous (sources.py
lists them). A class has each of its methods in two forms: `write()` calls a source of plain
methods; `awrite()` is for coroutines and takes either kind, calling a plain one in place, so that
it holds the event loop for as long as it takes. An asynchronous source behind `write()` is a
TypeError.
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lapse import forks

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Backed", "answer", "awaited"]


class Backed:
    """A cache, a data source, counters, and an end. Thread-safe."""

    __slots__ = ("__weakref__", "_closed", "_counts", "_lock", "cache", "data_source")

    def __init__(self, cache: Any, data_source: Any) -> None:
        self.cache = cache
        self.data_source = data_source
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()  # re-entrant: a finalizer may count in its midst
        forks.watch(self)

    def close(self) -> None:
        """Refuse what comes from now on with RuntimeError. The cache and the source stay open.

        Idempotent.
        """
        self._closed = True

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{type(self).__name__} is closed")

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _after_fork(self) -> None:
        """In a forked child no other thread holds the lock, whatever it looks like."""
        self._lock = threading.RLock()


def answer(result: Any) -> Any:
    """What a plain method of a source gave; TypeError if that is still to be awaited."""
    if not inspect.isawaitable(result):
        return result
    if inspect.iscoroutine(result):
        result.close()
    raise TypeError("the data source is asynchronous: use the method that begins with `a`")


async def awaited(result: Any) -> Any:
    """What a method of a source gave, of either kind."""
    return await result if inspect.isawaitable(result) else result
