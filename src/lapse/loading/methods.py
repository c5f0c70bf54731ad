"""Cached methods of one instance: what `instance.method` and `Class.class_method` are."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

from lapse.loading.functions import R

__all__ = ["BoundMethod", "CachedClassMethod"]


class BoundMethod(partial[R]):
    """A cached method of one instance, or of one class: what `instance.method` is."""

    __slots__ = ()

    func: Any

    @property
    def __self__(self) -> Any:
        return self.args[0]

    @property
    def __wrapped__(self) -> Any:
        return MethodType(self.func.__wrapped__, self.__self__)

    def cache_key(self, /, *args: Any, **kwargs: Any) -> Any:
        """The key under which the result of a call with these arguments is stored."""
        return self.func.cache_key(self.__self__, *args, **kwargs)

    def cache_invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """Drop the instance's result of the call with these arguments; True if there was one."""
        return self.func.cache_invalidate(self.__self__, *args, **kwargs)  # type: ignore[no-any-return]

    def cache_clear(self) -> None:
        """Drop the results of this instance; of all, if the function has a `key` of its own."""
        self.func._clear_instance(self.__self__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundMethod):
            return NotImplemented
        return self.func is other.func and self.__self__ is other.__self__

    def __hash__(self) -> int:
        return hash((id(self.func), id(self.__self__)))

    def __repr__(self) -> str:
        return f"<bound {self.func!r} of {self.__self__!r}>"


class CachedClassMethod(classmethod):  # type: ignore[type-arg]
    """A class method under @cached: each class that it is called on has results of its own."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return BoundMethod(self.__func__, type(instance) if owner is None else owner)
