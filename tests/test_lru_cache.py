"""lapse.lru_cache and lapse.cache: what functools' do, and what is added to it."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.loading.lru import LruFunction, cache, lru_cache
from support import PATIENCE, check

# --- As functools' do ---

values = st.one_of(
    st.integers(0, 3),
    st.sampled_from([0.0, 1.0, True, False, "a", "b", None, (0,), (1, "a"), "1"]),
)
steps = st.one_of(
    st.tuples(st.just("call"), st.lists(values, max_size=3), st.lists(
        st.tuples(st.sampled_from("xyz"), values), max_size=3, unique_by=lambda pair: pair[0])),
    st.tuples(st.just("raise"), st.lists(values, min_size=1, max_size=2)),
    st.tuples(st.just("unhashable")),
    st.tuples(st.just("nested"), values, values),
    st.tuples(st.just("clear")),
)  # fmt: skip


class Subject:
    """A function under one of the two decorators, which logs what is called."""

    def __init__(self, decorator: Any):
        self.log: list[Any] = []
        self.within: Any = None
        self.f = decorator(self.function)

    def function(self, *args: Any, **kwargs: Any) -> Any:
        self.log.append((args, kwargs))
        if kwargs.get("error"):
            raise LookupError(len(self.log))
        if self.within is not None:
            inner, self.within = self.within, None
            self.f(inner)
        return len(self.log)

    def do(self, step: Any) -> Any:
        """What comes of one step: a result, or the kind of an exception."""
        try:
            if step[0] == "call":
                return self.f(*step[1], **dict(step[2]))
            if step[0] == "raise":
                return self.f(*step[1], error=True)
            if step[0] == "unhashable":
                return self.f([])
            if step[0] == "nested":
                self.within = step[2]
                return self.f(step[1])
            return self.f.cache_clear()
        except (LookupError, TypeError) as error:
            return repr(error)
        finally:
            self.within = None


@settings(deadline=None, max_examples=400)
@given(
    maxsize=st.sampled_from([None, -1, 0, 1, 2, 3, 5, 128, "bare", "cache"]),
    typed=st.booleans(),
    script=st.lists(steps, max_size=40),
)
def test_everything_is_as_with_functools(maxsize, typed, script):
    """Results, what is called and in which order, errors, counts, sizes, parameters: all equal."""
    pair = []
    for both in ((lru_cache, cache), (functools.lru_cache, functools.cache)):
        if maxsize == "bare":
            pair.append(Subject(both[0]))
        elif maxsize == "cache":
            pair.append(Subject(both[1]))
        else:
            pair.append(Subject(both[0](maxsize, typed)))
    ours, theirs = pair
    for step in script:
        assert ours.do(step) == theirs.do(step), step
        assert ours.log == theirs.log
        assert tuple(ours.f.cache_info()) == tuple(theirs.f.cache_info())
    assert ours.f.cache_parameters() == theirs.f.cache_parameters()
    check(ours.f.cache)


def test_a_long_run_keeps_the_order_of_use():
    """20,000 calls, three times as many keys as places: every hit and miss is functools'."""
    draw = random.Random(7)
    ours, theirs = Subject(lru_cache(500)), Subject(functools.lru_cache(500))
    for _ in range(20_000):
        step = ("call", [f"k{draw.randrange(1500)}"], [])
        assert ours.do(step) == theirs.do(step)
    assert tuple(ours.f.cache_info()) == tuple(theirs.f.cache_info())


@pytest.mark.parametrize("name", ["lru_cache", "cache"])
def test_signatures(name):
    """What the standard library takes is taken, in its order, with its defaults."""
    ours = inspect.signature({"lru_cache": lru_cache, "cache": cache}[name]).parameters
    for parameter in inspect.signature(getattr(functools, name)).parameters.values():
        assert ours[parameter.name].kind == parameter.kind
        assert ours[parameter.name].default == parameter.default


def test_the_function_behind():
    """Name, documentation, `__wrapped__`, and the parameters that were given."""

    @lru_cache(maxsize=7, typed=True)
    def f(a, *, b=1):
        """Adds."""
        return a + b

    assert (f.__name__, f.__doc__, f.__wrapped__(1)) == ("f", "Adds.", 2)
    assert str(inspect.signature(f)) == "(a, *, b=1)"
    assert f.cache_parameters() == {"maxsize": 7, "typed": True}
    f.cache_parameters()["maxsize"] = 0
    assert f.cache_parameters()["maxsize"] == 7
    assert repr(f.cache_info()) == "CacheInfo(hits=0, misses=0, maxsize=7, currsize=0)"
    assert copy.copy(f) is copy.deepcopy(f) is f


@lru_cache
def by_name(a):
    return a


def test_pickling_by_name():
    """As functions are."""
    if __name__ not in sys.modules:  # not so under every import mode of pytest
        pytest.skip("this module cannot be imported by its name")
    assert pickle.loads(pickle.dumps(by_name)) is by_name


def test_wrong_arguments():
    """TypeError for what is no size, and for what is no function."""
    for wrong in ("7", 7.0, []):
        with pytest.raises(TypeError, match="first argument"):
            lru_cache(wrong)
    with pytest.raises(TypeError, match="callable"):
        lru_cache()(7)
    with pytest.raises(ValueError, match="ttl"):
        lru_cache(ttl=0)(len)


def test_deep_recursion():
    """One frame a level, as with functools."""

    @cache
    def depth(n):
        return 0 if n == 0 else 1 + depth(n - 1)

    assert depth(sys.getrecursionlimit() // 2) == sys.getrecursionlimit() // 2
    with pytest.raises(RecursionError):
        depth(10**6)
    assert depth(3) == 3


def test_an_argument_is_hashed_once():
    """A hit or a miss, as with functools."""

    class Key:
        hashed = 0

        def __hash__(self):
            self.hashed += 1
            return 7

    key = Key()
    f = lru_cache(maxsize=1)(lambda a: a)
    assert f(key) is key
    assert key.hashed == 1
    assert f(key) is key
    assert key.hashed == 2


def test_two_calls_that_miss_at_once_both_run():
    """And each gets what it computed."""
    both = threading.Barrier(2)

    @lru_cache
    def f(a):
        both.wait(PATIENCE)
        return object()

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(f, (1, 1))
    assert one is not other
    assert f(1) in (one, other)
    assert f.cache_info()[:2] == (1, 2)


def test_methods():
    """They bind as functions do, and the instance is an argument like others."""

    class Owner:
        @lru_cache
        def method(self, a):
            return self, a

        @staticmethod
        @lru_cache
        def static(a):
            return a

        @classmethod
        @lru_cache
        def of_class(cls, a):
            return cls, a

    one, other = Owner(), Owner()
    assert one.method(1) == (one, 1)
    assert other.method(1) == (other, 1)
    assert Owner.method(one, 1) == (one, 1)
    assert one.method.cache_info()[:2] == (1, 2)
    assert Owner.static(1) == one.static(1) == 1
    assert Owner.of_class(1) == one.of_class(1) == (Owner, 1)
    assert Owner.of_class.cache_info()[:2] == (1, 1)


def test_threads():
    """Many threads, few places: right answers, never too many entries."""
    f = lru_cache(maxsize=20)(lambda a, b=0: (a, b))

    def work(seed):
        for n in range(3000):
            a = (n * seed) % 41
            assert f(a) == (a, 0)
            assert f(a, b=n % 2) == (a, n % 2)
            if n % 500 == 0:
                f.cache_clear()
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, (1, 3, 5, 7)))
    assert len(f.cache) <= 20
    check(f.cache)


# --- What is added ---


def test_invalidating_one_result():
    """By the arguments of the call, spelt as the call was."""
    calls: list[int] = []
    f = lru_cache(lambda *args, **kwargs: calls.append(1) or len(calls))
    assert [f(1), f(1.0), f(1, b=2), f("1")] == [1, 2, 3, 4]
    assert f.cache_invalidate(1, b=2) is True
    assert f.cache_invalidate(1, b=2) is False
    assert [f(1), f(1.0), f(1, b=2), f("1")] == [1, 2, 5, 4]
    assert f.cache_invalidate(1) is True
    assert [f(1), f(1.0)] == [6, 2]


@pytest.mark.parametrize("single_flight", [False, True])
@pytest.mark.parametrize("name", ["invalidate", "clear"])
def test_an_invalidation_during_the_call_is_not_undone(name, single_flight):
    """The call returns what it read; it is not kept, and the next call reads anew."""
    source = {"value": "old"}

    @lru_cache(single_flight=single_flight)
    def f(a):
        value = source["value"]
        if value == "old":
            source["value"] = "new"
            f.cache_invalidate(a) if name == "invalidate" else f.cache_clear()
        return value

    assert [f(1), f(1), f(1)] == ["old", "new", "new"]


def test_an_invalidation_by_another_thread():
    """While the function runs: not undone either."""
    entered, go, source = threading.Event(), threading.Event(), {"value": "old"}

    @cache
    def f():
        value = source["value"]
        if value == "old":
            entered.set()
            assert go.wait(PATIENCE)
        return value

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(f)
        assert entered.wait(PATIENCE)
        source["value"] = "new"
        f.cache_invalidate()
        assert f() == "new"
        go.set()
        assert slow.result(PATIENCE) == "old"
    assert f() == "new"


def test_ttl():
    """A result is kept for `ttl` seconds, whatever its place in the order."""
    calls: list[int] = []
    f = lru_cache(maxsize=None, ttl=1000)(lambda a: calls.append(a) or len(calls))
    assert [f(1), f(1)] == [1, 1]
    assert 1000 - PATIENCE < f.cache.expires_in(f.cache_key(1)) <= 1000
    f.cache.touch(f.cache_key(1), 1e-9)
    assert f(1) == 2
    assert cache(len).cache.default_ttl is None


def test_single_flight():
    """One call for all who miss at once."""
    calls: list[int] = []
    entered, go = threading.Event(), threading.Event()

    @lru_cache(single_flight=True)
    def f(a, b=1):
        entered.set()
        assert go.wait(PATIENCE)
        return calls.append(a) or len(calls)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(f, 1)]
        assert entered.wait(PATIENCE)
        asked += [pool.submit(f, 1) for _ in range(3)]
        go.set()
        assert {future.result(PATIENCE) for future in asked} == {1}
    assert f(1, b=1) == 2


def test_a_function_that_closes_its_cache():
    """Its result is returned; later calls are refused."""

    @cache
    def f():
        f.cache.close()
        return 1

    assert f() == 1
    with pytest.raises(RuntimeError, match="closed"):
        f()


def test_coroutine_functions_are_for_cached():
    """As with functools a coroutine is kept, which can be awaited once."""

    @lru_cache
    async def f():
        return 1

    assert asyncio.run(f()) == 1
    with pytest.raises(RuntimeError, match="reuse"):
        asyncio.run(f())
    assert isinstance(f, LruFunction)
