"""@cached on coroutine functions: real ones, one load for all tasks, nothing stale."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
import sys
import threading
from typing import Any

import pytest

import lapse
from lapse.flight import LoadCycleError
from lapse.loading.cached import cached
from support import PATIENCE


def run(main: Any) -> Any:
    """Runs a coroutine, for a bounded time."""
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


class Source:
    """A coroutine function that counts its calls and, once `hold` is called, waits in each."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.value: Any = "old"
        self.go: asyncio.Event | None = None
        self.entered: asyncio.Event | None = None

    def hold(self) -> None:
        self.go, self.entered = asyncio.Event(), asyncio.Event()

    async def read(self, *args: Any) -> Any:
        value = self.value
        self.calls.append(args)
        if self.go is not None and self.entered is not None:
            self.entered.set()
            await self.go.wait()
        return value


@pytest.fixture
def source() -> Source:
    return Source()


@cached(ttl=60)
async def documented(a: int, b: int = 2) -> int:
    """Adds."""
    return a + b


SHAPES: dict[str, tuple[Any, list[Any]]] = {}


def shape(*same: Any) -> Any:
    """Keeps a coroutine function with calls that mean the same, and one that does not."""

    def keep(function: Any) -> Any:
        SHAPES[str(inspect.signature(function))] = function, list(same)
        return function

    return keep


def call(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@shape(call(1), call(a=1))
async def lone(a):
    return a


@shape(call(), call(1), call(a=1))
async def lone_with_default(a=1):
    return a


@shape(call(1), call(1, 2), call(b=2, a=1), call(a=1))
async def two(a, b=2):
    return a, b


@shape(call(1, 2, 3), call(1, 2, 3, c=4))
async def everything(a, /, b=2, *rest, c=4, **more):
    return a, b, rest, c, more


@shape(call(c=1, d=2), call(d=2, c=1))
async def names(*, c, d=3):
    return c, d


@shape(call(x=1, y=2), call(y=2, x=1))
async def any_names(**more):
    return more


@shape(call())
async def none():
    return 0


@shape(call(1, 2))
async def shadows(id, frozenset, *type, key=0, cache=1, **tuple):
    return id, frozenset


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_calls_that_mean_the_same_share_a_result(name, shared, typed):
    """Whatever the signature; the coroutine function and cache_key() agree on the key."""
    function, same = SHAPES[name]
    cache = lapse.TTLCache(cleanup_interval=None) if shared else None
    f = cached(typed=typed, cache=cache)(function)

    async def main() -> None:
        for args, kwargs in same:
            assert await f(*args, **kwargs) == await function(*args, **kwargs)
            assert f.cache_key(*args, **kwargs) in f.cache
        assert f.cache_info()[:4] == (len(same) - 1, 1, None, 1)
        assert f.cache_invalidate(*same[0][0], **same[0][1]) is True

    run(main())


def test_it_is_a_coroutine_function(source):
    """To inspect and asyncio, on every version; what it returns is a coroutine."""
    f = cached(source.read)
    assert inspect.iscoroutinefunction(f)
    assert inspect.iscoroutinefunction(documented)
    coroutine = f(1)
    assert asyncio.iscoroutine(coroutine)
    assert inspect.iscoroutine(coroutine)
    run(coroutine)


def test_it_looks_like_the_function():
    """Name, documentation, signature, `__wrapped__`; it is pickled by name."""
    assert documented.__name__ == documented.__qualname__ == "documented"
    assert documented.__doc__ == "Adds."
    assert str(inspect.signature(documented)) == "(a: 'int', b: 'int' = 2) -> 'int'"
    assert inspect.iscoroutinefunction(documented.__wrapped__)
    assert documented.__code__.co_name == "documented"
    if __name__ in sys.modules:  # not so under every import mode of pytest
        assert pickle.loads(pickle.dumps(documented)) is documented


def test_wrong_arguments_are_refused_by_the_call():
    """TypeError before anything is awaited, with the function's own message."""
    with pytest.raises(
        TypeError, match=r"documented\(\) missing 1 required positional argument: 'a'"
    ):
        documented()


def test_tasks_gather_and_timeouts(source):
    """Its coroutines go wherever coroutines go, hit or miss."""
    f = cached(source.read)

    async def main() -> None:
        for _ in range(2):
            assert await asyncio.create_task(f(1)) == "old"
            assert await asyncio.gather(f(1), f(2), f(1)) == ["old"] * 3
            assert await asyncio.wait_for(f(3), PATIENCE) == "old"

    run(main())
    assert sorted(source.calls) == [(1,), (2,), (3,)]
    assert f.cache_info()[:4] == (7, 3, None, 3)


def test_one_load_for_all_tasks(source):
    """1,000 tasks, one call."""
    f = cached(source.read)

    async def main() -> None:
        source.hold()
        tasks = [asyncio.create_task(f("k")) for _ in range(1000)]
        await source.entered.wait()
        source.go.set()
        assert set(await asyncio.gather(*tasks)) == {"old"}

    run(main())
    assert source.calls == [("k",)]


def test_a_cancelled_task_cancels_nobody_else(source):
    """Not even the one that came first."""
    f = cached(source.read)

    async def main() -> None:
        source.hold()
        first, second = asyncio.create_task(f()), asyncio.create_task(f())
        await source.entered.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        source.go.set()
        assert await second == "old"

    run(main())
    assert len(source.calls) == 1


INVALIDATIONS: dict[str, Any] = {
    "invalidate": lambda f: f.cache_invalidate(1),
    "clear": lambda f: f.cache_clear(),
    "clear the cache": lambda f: f.cache.clear(),
    "tag": lambda f: f.cache.delete_tag("t"),
    "pattern": lambda f: f.cache.delete_pattern("k:*"),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", INVALIDATIONS)
def test_an_invalidation_during_the_load_is_not_undone(name, shared, source):
    """Who waited gets what was read; who comes later does not wait for it, and reads anew."""
    cache = lapse.TTLCache(cleanup_interval=None) if shared else None
    f = cached(key=lambda a: f"k:{a}", tags=["t"], cache=cache)(source.read)

    async def main() -> None:
        source.hold()
        slow = asyncio.create_task(f(1))
        await source.entered.wait()
        go, source.go, source.value = source.go, None, "new"
        INVALIDATIONS[name](f)
        assert await f(1) == "new"
        go.set()
        assert await slow == "old"
        assert await f(1) == "new"

    run(main())
    assert len(source.calls) == 2


def test_exceptions_are_not_kept(source):
    """Each waiter gets them; the next call runs anew."""

    @cached
    async def f():
        await source.read()
        if len(source.calls) == 1:
            raise KeyError("once")
        return "well"

    async def main() -> None:
        source.hold()
        tasks = [asyncio.create_task(f()) for _ in range(3)]
        await source.entered.wait()
        source.go.set()
        for task in tasks:
            with pytest.raises(KeyError, match="once"):
                await task
        assert await f() == "well"

    run(main())


def test_a_key_error_within_is_not_a_miss():
    """The function's own KeyError is its caller's."""

    @cached
    async def f():
        return {}["a"]

    with pytest.raises(KeyError, match="a"):
        run(f())


def test_a_key_of_ones_own_gets_the_arguments_as_they_came(source):
    """By position and by name, in whatever order it names them."""
    seen: list[Any] = []

    def key(verbose=False, user=0):
        seen.append((verbose, user))
        return f"user:{user}"

    @cached(key=key)
    async def f(user, verbose=False):
        return await source.read(user)

    async def main() -> None:
        await f(user=1, verbose=True)
        await f(verbose=False, user=1)

    run(main())
    assert list(f.cache) == ["user:1"]
    assert seen == [(True, 1), (False, 1)]
    assert source.calls == [(1,)]


def test_lifetimes_tags_and_skip(source, clock):
    """The options mean what they mean for functions."""
    cache = lapse.TTLCache(60, None, clock=clock)
    options = {"ttl": lambda value: 5, "skip": lambda value: value == "old"}
    f = cached(cache=cache, tags=lambda a: [f"a:{a}"], **options)(source.read)

    async def main() -> None:
        await f(1)
        assert len(cache) == 0
        source.value = "new"
        await f(1)
        assert cache.expires_in(f.cache_key(1)) == 5
        assert cache.delete_tag("a:1") == 1

    run(main())


def test_arguments_must_be_hashable(source):
    """TypeError when it is awaited."""
    with pytest.raises(TypeError, match="unhashable"):
        run(cached(source.read)([]))
    assert source.calls == []


def test_recursion_on_the_same_key():
    """A load that would wait for itself is an error, not a deadlock."""

    @cached
    async def f(a):
        return await f(a)

    with pytest.raises(LoadCycleError):
        run(f(1))


def test_several_loops_and_threads(source):
    """What one loop loaded another one hits."""
    f = cached(source.read)
    assert [run(f(1)), run(f(1))] == ["old", "old"]
    thread = threading.Thread(target=lambda: run(f(1)))
    thread.start()
    thread.join(PATIENCE)
    assert f.cache_info()[:2] == (2, 1)


def test_partials_and_a_timeout(source):
    """A partial of a coroutine function is one; `timeout` bounds the wait of each caller."""

    async def read(a, b):
        return await source.read(a, b)

    f = cached(timeout=0.01)(functools.partial(read, 1))

    async def main() -> None:
        assert await f(2) == "old"
        source.hold()
        with pytest.raises(TimeoutError):
            await f(3)

    run(main())
    assert inspect.iscoroutinefunction(f)


def test_a_closed_cache(source):
    """RuntimeError when it is awaited."""
    f = cached(source.read)
    f.cache.close()
    with pytest.raises(RuntimeError, match="closed"):
        run(f(1))
