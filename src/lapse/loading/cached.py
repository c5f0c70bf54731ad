"""@cached: results of functions and methods, kept until they expire or are invalidated.

    @cached(ttl=60, tags=lambda user: [f"user:{user}"])
    def profile(user): ...

    profile(7)                     one call of the function for all who ask at once
    profile.cache_invalidate(7)    or profile.cache.delete_tag("user:7")

What becomes of a

    function             a CachedFunction, whose call is native (_fast.h)
    coroutine function   a coroutine function, compiled for its parameters; a hit costs hardly more
                         than awaiting any coroutine
    method               a CachedFunction; the results of an instance go when it dies
    class method         a CachedClassMethod; the same for the class
    static method        a static method

Invariants
    1. A call has one key, however its arguments are given (keys.py), and whoever asks: a hit, a
       load, cache_invalidate().
    2. In a cache that was given, an entry bears the function's name as a tag, by which
       cache_clear() finds it.
    3. In the key of a method stands the instance's id(), and its entries bear a tag of the
       instance. They are gone before another object can have that id: the weak reference to the
       instance sees to it. A load holds the instance, so none is stored later.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from functools import WRAPPER_ASSIGNMENTS, update_wrapper
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from lapse._core import Cache, called_natively
from lapse.caches import TTLCache
from lapse.loading.functions import CONTROLS, KeptFunction, P, R
from lapse.loading.keys import NO_PLAN, Parameters
from lapse.loading.methods import BoundMethod, CachedClassMethod

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CachedFunction", "CachedInfo", "cached"]

Seconds = float | timedelta
Tags = Iterable[str]
SWEEP_INTERVAL = 300.0  # seconds between sweeps of what has expired
NUMBERS = itertools.count(1)

#: What a coroutine function takes on by assignment. To assign __annotations__, __defaults__ or
#: __code__ would keep CPython 3.13 for ever from specializing its calls.
DESCRIBED = tuple(name for name in WRAPPER_ASSIGNMENTS if name != "__annotations__")

#: The body of a coroutine function that looks a key up, and loads what is missing. On a line of its
#: own `try` would be an instruction.
COROUTINE = """\
    try: return _lapse_cache[{key}]
    except KeyError:
        pass
    return await _lapse_load({same_key}, {args}, {kwargs})
"""


class CachedInfo(NamedTuple):
    """Figures of a cached function: those of its cache.

    In a cache of its own hits and misses count from the last cache_clear().
    """

    hits: int
    misses: int
    maxsize: int | None
    currsize: int
    #: Results that have expired; that made way for others; that were outdated when they came.
    expirations: int
    evictions: int
    fenced_stores: int


class Options(NamedTuple):
    """The arguments of cached() that are about single calls."""

    ttl: Seconds | Callable[[Any], Seconds | None] | None
    tags: Iterable[str] | Callable[..., Iterable[str]]
    key: Callable[..., Any] | None
    typed: bool
    skip: Callable[[Any], object] | None
    timeout: float | None

    def lifetime(self, value: Any) -> Seconds | None:
        """For how long a result is kept; 0 = not at all."""
        if self.skip is not None and self.skip(value):
            return 0
        return self.ttl(value) if callable(self.ttl) else self.ttl

    def tags_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """The tags of the result of a call."""
        return _listed(self.tags(*args, **kwargs) if callable(self.tags) else self.tags)


class Instance(weakref.ref[Any]):
    """A weak reference to an instance of which there are results."""

    __slots__ = ("number",)

    number: int


@called_natively
class CachedFunction(KeptFunction[P, R]):
    """A function under @cached."""

    __slots__ = ("_coroutine", "_instances", "_is_method", "_life", "_name", "_options", "_shared")

    def __init__(
        self,
        function: Callable[P, R],
        cache: Cache[Any, Any] | None,
        maxsize: int | None,
        options: Options,
    ) -> None:
        self._wrap(function)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{_name_of(function)} is a generator function: it yields only once")
        self._options, self._shared, self._is_method = options, cache is not None, False
        self._instances: dict[int, Instance] | None = None
        self._coroutine: FunctionType | None = None
        self._name = _name_of(function)
        if "<" in self._name:  # <locals>, <lambda>: several functions may have it
            self._name += f"#{next(NUMBERS)}"
        self._life: Any = options.ttl if self._shared else None
        if options.skip or callable(options.ttl):
            self._life = options.lifetime
        self._arrange(_own_cache(options.ttl, maxsize, self._name) if cache is None else cache)

    def _arrange(self, cache: Cache[Any, Any]) -> None:
        """Say how keys are made, and let calls come."""
        key_of, bound = self._options.key, self._instances is not None
        prefixed, typed = self._shared and not key_of, self._options.typed and not key_of
        how = {"prefixed": prefixed, "typed": typed, "bound": bound}
        parameters = Parameters(self.__wrapped__, opaque=key_of is not None)
        key = (
            "_lapse_key_of(*{}, **{})".format(*parameters.call())
            if key_of
            else parameters.key(**how)
        )
        names = {"_lapse_prefix": self._name, "_lapse_key_of": key_of, "_lapse_cache": cache}
        if inspect.iscoroutinefunction(self.__wrapped__):
            self._coroutine = self._compiled(parameters, key, names)
        self._open(
            cache,
            self.__wrapped__,
            key_of or parameters.compiled(f"    return {key}", names),
            NO_PLAN if key_of else parameters.plan(**how),
            prefix=self._name if prefixed else None,
            typed=typed,
            bound=bound,
            target=self._coroutine,
        )

    def _compiled(self, parameters: Parameters, key: str, names: dict[str, Any]) -> FunctionType:
        """The coroutine function for coroutine functions."""
        once, again = (key, key) if key.isidentifier() else (f"_lapse_key := {key}", "_lapse_key")
        args, kwargs = parameters.call()
        body = COROUTINE.format(key=once, same_key=again, args=args, kwargs=kwargs)
        names = names | {"_lapse_load": self._await_miss}
        made = parameters.compiled(body, names, awaits=True)
        for name in ("__name__", "__code__", "__defaults__", "__kwdefaults__"):
            self.__dict__[name] = getattr(made, name)  # what inspect.iscoroutinefunction() looks at
        return made

    # --- Misses ---

    def _miss(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *old: Any) -> Any:
        tags = self._tags_of(key, args, kwargs)
        return self._load(key, args, kwargs, self._life, tags, self._options.timeout, *old)

    def _await_miss(
        self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        tags = self._tags_of(key, args, kwargs)
        return self._aload(key, args, kwargs, self._life, tags, self._options.timeout)

    def _tags_of(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        tags = self._options.tags_of(args, kwargs)
        if self._shared:
            tags = (*tags, self._name)
        if self._instances is not None:
            number = key[1] if self._shared else key[0]
            owner = next(arg for arg in (*args, *kwargs.values()) if id(arg) == number)
            tags = (*tags, self._watched(owner, self._instances))
        return tags

    # --- Methods ---

    def __set_name__(self, owner: type, name: str) -> None:
        """What the body of a class defines is a method, unless it is wrapped in something else."""
        if _name_of(self.__wrapped__).startswith(f"{owner.__module__}.{owner.__qualname__}."):
            self._become_method()

    def _become_method(self) -> None:
        if self._is_method:
            return
        self._is_method = True
        if self._options.key is None and Parameters(self.__wrapped__).take_instance():
            self._instances = {}
            self._name = f"{_name_of(self.__wrapped__)}#{next(NUMBERS)}"
            self._arrange(self.cache)

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> BoundMethod[R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return BoundMethod(self, instance) if self._is_method else MethodType(self, instance)

    def _instance_tag(self, number: int) -> str:
        return f"{self._name}@{number:x}"

    def _watched(self, instance: Any, instances: dict[int, Instance]) -> str:
        """The tag of an instance's entries, after it has been seen to that they go when it dies."""
        number = id(instance)
        if number not in instances:
            try:
                watch = Instance(instance, self._forget)
            except TypeError:
                raise TypeError(
                    f"{self._name}: a {type(instance).__name__} cannot be weakly referenced: add "
                    "'__weakref__' to the __slots__ of its class, or give @cached a key="
                ) from None
            watch.number = number
            instances.setdefault(number, watch)
        return self._instance_tag(number)

    def _forget(self, watch: Instance) -> None:
        """An instance dies."""
        if self._instances is not None:
            self._instances.pop(watch.number, None)
        if not self.cache.closed:
            self.cache.delete_tag(self._instance_tag(watch.number))

    def _clear_instance(self, instance: Any) -> None:
        if self._instances is None:
            self.cache_clear()
        else:
            self.cache.delete_tag(self._instance_tag(id(instance)))

    # --- What users ask ---

    def cache_info(self) -> CachedInfo:
        """Figures; the first four are those of functools. O(segments)."""
        counts = self._counts()
        return CachedInfo(
            maxsize=self.cache._options["maxsize"],
            currsize=len(self.cache),
            **{name: counts[name] for name in CachedInfo._fields if name in counts},
        )

    def cache_clear(self) -> None:
        """Drop all results of this function, those of calls that are under way too."""
        if self._shared:
            self.cache.delete_tag(self._name)
        else:
            self._reset()

    def _as_coroutine_function(self) -> Any:
        """The coroutine function itself: calls reach it without a detour."""
        function: Any = self._coroutine
        update_wrapper(function, self.__wrapped__, DESCRIBED)
        function.__annotations__.update(getattr(self.__wrapped__, "__annotations__", {}))
        for name in CONTROLS:
            if hasattr(self, name):
                setattr(function, name, getattr(self, name))
        return function


def _name_of(function: Callable[..., Any]) -> str:
    qualname = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None)}.{qualname}"


def _own_cache(ttl: Any, maxsize: int | None, name: str) -> Cache[Any, Any]:
    interval = None if ttl is None else SWEEP_INTERVAL
    return TTLCache(None if callable(ttl) else ttl, interval, maxsize=maxsize, name=name)


def _listed(tags: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tags, (str, bytes)):
        raise TypeError(f"tags must be an iterable of str, not one {type(tags).__name__}")
    return tuple(tags)


def _decorated(
    function: Any, cache: Cache[Any, Any] | None, maxsize: int | None, options: Options
) -> Any:
    """What `function` becomes."""
    if isinstance(function, staticmethod):
        return staticmethod(_decorated(function.__func__, cache, maxsize, options))
    if isinstance(function, classmethod):
        made = CachedFunction(function.__func__, cache, maxsize, options)
        made._become_method()
        return CachedClassMethod(made)
    made = CachedFunction(function, cache, maxsize, options)
    is_direct = made._coroutine is not None and not _is_in_class(function)
    return made._as_coroutine_function() if is_direct else made


def _is_in_class(function: Any) -> bool:
    """Was it defined in the body of a class?"""
    scope = _name_of(function).rpartition(".")[0]
    return not scope.endswith("<locals>") and scope != function.__module__


@overload
def cached(function: Callable[P, R], /) -> CachedFunction[P, R]: ...
@overload
def cached(
    ttl: Seconds | None = None,
    maxsize: int | None = None,
    tags: Tags | Callable[..., Tags] = (),
    key: Callable[..., Any] | None = None,
    cache: Cache[Any, Any] | None = None,
    *,
    typed: bool = False,
    skip: Callable[[Any], object] | None = None,
    timeout: float | None = None,
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]: ...
@overload
def cached(
    *,
    ttl: Callable[[Any], Seconds | None],
    maxsize: int | None = None,
    tags: Tags | Callable[..., Tags] = (),
    key: Callable[..., Any] | None = None,
    cache: Cache[Any, Any] | None = None,
    typed: bool = False,
    skip: Callable[[Any], object] | None = None,
    timeout: float | None = None,
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]: ...
def cached(
    function_or_ttl: Any = None,
    /,
    maxsize: int | None = None,
    tags: Tags | Callable[..., Tags] = (),
    key: Callable[..., Any] | None = None,
    cache: Cache[Any, Any] | None = None,
    *,
    ttl: Seconds | Callable[[Any], Seconds | None] | None = None,
    typed: bool = False,
    skip: Callable[[Any], object] | None = None,
    timeout: float | None = None,
) -> Any:
    """Keep what a function returns until it expires or is invalidated: `@cached`, `@cached(...)`.

    Args:
        ttl: seconds (int, float or timedelta) that a result is kept, or, as `ttl=`, a function of
            the result that gives them (0: it is not kept). None = for ever, or as `cache` has it.
        maxsize: results kept at most. None = no bound.
        tags: str by which results can be removed, `f.cache.delete_tag(tag)`, or a function of the
            arguments that gives them.
        key: a function of the arguments that makes the key. None = all arguments, which must then
            be hashable, and so must their defaults.
        cache: where results are kept; None = in a cache of the function's own. Several functions
            may share one: each key begins with its function's name, unless there is a `key`.
        typed: are 3 and 3.0 different arguments?
        skip: a function of the result; what it is true of is returned, not kept.
        timeout: seconds that a call waits at most while another one loads; then TimeoutError.

    One call loads a missing result; those that come meanwhile wait for it, as get_or_load() has it.
    What a call returns that began before an invalidation is not kept, nor is an exception.

    It is for functions, coroutine functions (tasks share one load too), methods, static and class
    methods. Results of a method are its instance's: they do not keep it alive, they go when it
    dies, and `instance.method.cache_clear()` drops only them. Instances must be weakly
    referenceable, and need not be hashable. With a `key`, self is an argument like others. Put
    @cached above @classmethod; below it, the class is an argument like others.

    The function gets `cache_info()`, `cache_clear()`, `cache_invalidate(*args, **kwargs) -> bool`,
    `cache_key(*args, **kwargs)`, `cache` and `__wrapped__`. Thread-safe. A hit is one native call.
    Raises TypeError for a generator function and for a lone str as tags, ValueError for a wrong ttl
    or maxsize.
    """
    options = Options(ttl, tags if callable(tags) else _listed(tags), key, typed, skip, timeout)
    if cache is not None and maxsize is not None:
        raise ValueError("maxsize= is for a function's own cache: give it to the one in cache=")
    if callable(function_or_ttl) or isinstance(function_or_ttl, (staticmethod, classmethod)):
        return _decorated(function_or_ttl, cache, maxsize, options)
    if function_or_ttl is not None:
        if ttl is not None:
            raise TypeError("ttl is given twice")
        options = options._replace(ttl=function_or_ttl)
    return lambda function: _decorated(function, cache, maxsize, options)
