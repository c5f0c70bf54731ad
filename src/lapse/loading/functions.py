"""What functions whose results are kept have in common: @cached, lru_cache and cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from lapse._core import Memo

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CONTROLS", "KeptFunction", "P", "R"]

P = ParamSpec("P")
R = TypeVar("R")

#: What such a function has besides what every function has.
CONTROLS = (
    "cache", "cache_clear", "cache_info", "cache_invalidate", "cache_key", "cache_parameters",
)  # fmt: skip


class KeptFunction(Memo, Generic[P, R]):
    """A function whose results are kept in a cache; calling it is native. Thread-safe.

    It has the name and the like of the function that it wraps, is pickled by that name, and is its
    own copy.
    """

    __slots__ = ("_past",)

    if TYPE_CHECKING:
        __qualname__: str
        __wrapped__: Callable[P, R]

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def _wrap(self, function: Callable[..., Any]) -> None:
        """Take on the function's name and the like."""
        if not callable(function):
            raise TypeError(f"what is to be cached must be callable, not {function!r}")
        update_wrapper(self, function)
        for name in CONTROLS:  # the function may be such a one itself
            self.__dict__.pop(name, None)
        self._past = {"hits": 0, "misses": 0}

    def cache_invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Drop the result of the call with these arguments; True if there was one.

        What such a call returns that is under way is not kept. Atomic; O(1).
        """
        return self.cache.delete(self.cache_key(*args, **kwargs))

    def _reset(self) -> None:
        """Empty the cache, and count hits and misses from zero."""
        self.cache.clear()
        self._past = self.cache._counters()

    def _counts(self) -> dict[str, int]:
        """The native counters; hits and misses since the last _reset()."""
        counters = self.cache._counters()
        return counters | {name: counters[name] - self._past[name] for name in ("hits", "misses")}

    def __reduce__(self) -> str:
        return self.__qualname__

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.function!r}>"
