"""@cached on functions: keys, lifetimes, tags, shared caches, and what invalidation outdates."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import math
import pickle
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lapse
from lapse.flight import LoadCycleError
from lapse.loading.cached import CachedFunction, cached
from support import FREE_THREADED, PATIENCE, Dying


class Calls:
    """A function that remembers its calls and returns how many there were."""

    def __init__(self) -> None:
        self.args: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> int:
        self.args.append((args, kwargs))
        return len(self.args)


@cached(ttl=60)
def documented(a: int, /, b: int = 2, *, c: int = 3) -> int:
    """Adds."""
    return a + b + c


@cached
def plain(a):
    return a


# --- Keys ---


def shapes() -> dict[str, Any]:
    """Functions of every shape of signature, which return what each parameter is."""
    made: dict[str, Any] = {}
    for signature in (
        "", "a", "a=1", "a, /", "a, b", "a, b=2", "a=1, b=2", "a, /, b=2", "*rest", "a, *rest",
        "a=1, *rest", "*, c", "*, c=3", "a, *, c=3", "a=1, b=2, *rest, c=3, d=4", "**more",
        "a, **more", "a=1, /, b=2, *rest, c=3, **more", "a, *, c, **more",
    ):  # fmt: skip
        exec(f"def f({signature}): return locals()", namespace := {})
        made[signature] = namespace["f"]
    return made


SHAPES = shapes()
arguments = st.tuples(
    st.lists(st.integers(0, 3), max_size=4),
    st.dictionaries(st.sampled_from("abcdx"), st.integers(0, 3), max_size=3),
)


def meaning(function: Any, call: Any) -> Any:
    """What the arguments mean to the function; None: it does not take them."""
    try:
        return function(*call[0], **call[1])
    except TypeError:
        return None


@pytest.mark.parametrize("options", [{}, {"typed": True}, {"cache": 1}], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=40)
@given(arguments, arguments)
def test_calls_that_mean_the_same_have_the_same_key(shape, options, one, other):
    """Two calls have one key exactly if they give every parameter the same value."""
    function = SHAPES[shape]
    if "cache" in options:
        options = {"cache": lapse.TTLCache(cleanup_interval=None)}
    f = cached(**options)(function)
    meanings, keys = [meaning(function, call) for call in (one, other)], []
    for (args, kwargs), means in zip((one, other), meanings, strict=True):
        if means is None:
            with pytest.raises(TypeError):
                f.cache_key(*args, **kwargs)
        else:
            keys.append(f.cache_key(*args, **kwargs))
            assert f(*args, **kwargs) == means
            assert keys[-1] in f.cache
    if len(keys) == 2:
        assert (keys[0] == keys[1]) == (meanings[0] == meanings[1])


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=40)
@given(arguments)
def test_wrong_arguments_are_refused_as_the_function_refuses_them(shape, call):
    """TypeError with the very message that the function itself would give."""
    function, (args, kwargs) = SHAPES[shape], call
    if meaning(function, call) is None:
        with pytest.raises(TypeError) as own:
            function(*args, **kwargs)
        with pytest.raises(TypeError) as ours:
            cached(function)(*args, **kwargs)
        assert str(ours.value) == str(own.value)


def test_keyword_calls_hit_what_positional_calls_stored():
    """Each way to spell a call finds the one entry, and hits are counted."""
    calls = Calls()

    @cached
    def f(a, b=2, *, c=3):
        return calls(a, b, c)

    assert f(1) == f(1, 2) == f(b=2, a=1) == f(a=1) == f(1, c=3) == f(1, b=2, c=3) == 1
    assert f(1, 3) == 2
    assert f.cache_info()[:4] == (5, 2, None, 2)
    assert calls.args == [((1, 2, 3), {}), ((1, 3, 3), {})]


def test_the_function_gets_what_the_caller_gave():
    """Defaults are for the key; the call is passed on as it came."""
    calls = Calls()
    f = cached(functools.partial(calls, 1))
    assert f(2, x=3) == 1
    assert calls.args == [((1, 2), {"x": 3})]


def test_a_lone_argument_is_its_own_key():
    """A function of one parameter keeps its results under the argument itself."""
    plain(("a", 1))
    assert plain.cache_key(("a", 1)) == ("a", 1)
    assert plain.cache_invalidate(a=("a", 1)) is True


def test_typed():
    """With `typed`, equal arguments of different types are different, by keyword too."""
    calls = Calls()
    f = cached(typed=True)(lambda a, **more: calls())
    assert [f(1), f(1.0), f(True), f(1, b=1), f(1, b=1.0), f(a=1), f(a=1.0)] == [
        1,
        2,
        3,
        4,
        5,
        1,
        2,
    ]
    g = cached(lambda a: calls())
    assert g(1) == g(1.0) == g(True)


def test_arguments_must_be_hashable():
    """TypeError, as from functools; nothing is called."""
    calls = Calls()
    for f in (
        cached(lambda a: calls()),
        cached(lambda a, b: calls()),
        cached(key=lambda a: [a])(lambda a: calls()),
    ):
        with pytest.raises(TypeError, match="unhashable"):
            f(*[[]] * len(inspect.signature(f).parameters))
    assert calls.args == []


def test_a_key_of_ones_own():
    """`key` gets the arguments as they came, and what it returns is the key, whatever it is."""
    cache = lapse.TTLCache(cleanup_interval=None)
    f = cached(key=lambda user, verbose=False: f"user:{user}", cache=cache)(Calls())
    assert f(7) == f(7, True) == f(user=7, verbose=True) == 1
    assert list(cache) == ["user:7"] == [f.cache_key(7)]
    assert cache.delete_pattern("user:*") == 1
    assert f(7) == 2


# --- Lifetimes ---


def test_ttl(clock):
    """A result is kept for `ttl` seconds."""
    f = cached(ttl=5, cache=lapse.TTLCache(60, None, clock=clock))(Calls())
    assert f(1) == f(1) == 1
    clock.advance(4.9)
    assert f(1) == 1
    clock.advance(0.2)
    assert f(1) == 2


def test_ttl_without_one_is_the_caches(clock):
    """None leaves it to the cache that was given; a cache of one's own keeps for ever."""
    f = cached(cache=lapse.TTLCache(60, None, clock=clock))(Calls())
    f(1)
    assert f.cache.expires_in(f.cache_key(1)) == 60
    plain(1)
    assert plain.cache.default_ttl is None
    assert cached(7)(Calls()).cache.default_ttl == 7


def test_ttl_as_a_function_of_the_result(clock):
    """It gives the seconds for each result; None = the cache's, 0 = it is not kept."""
    cache = lapse.TTLCache(60, None, clock=clock)
    f = cached(ttl=lambda result: result, cache=cache)(lambda result: result)
    assert [f(0), f(5), f(None)] == [0, 5, None]
    assert {key[1]: cache.expires_in(key) for key in cache} == {5: 5, None: 60}


def test_a_ttl_function_that_raises_keeps_nothing():
    """Its exception reaches the caller."""
    f = cached(ttl=lambda result: 1 / result)(lambda result: result)
    with pytest.raises(ZeroDivisionError):
        f(0)
    assert len(f.cache) == 0


@pytest.mark.parametrize("ttl", [None, 5, lambda result: 5])
def test_skip(ttl):
    """What `skip` is true of is returned and not kept, whatever the ttl."""
    calls = Calls()
    f = cached(ttl=ttl, skip=lambda result: result % 2 == 1)(calls)
    assert [f(), f(), f(), f()] == [1, 2, 2, 2]
    assert len(f.cache) == 1


def test_maxsize_bounds_what_is_kept():
    """One result makes way for another, and what is kept is not computed again."""
    calls = Calls()
    f = cached(maxsize=2)(lambda a: calls(a))
    for a in (1, 2, 3):
        f(a)
    assert len(f.cache) == 2
    kept = [args for args in (1, 2, 3) if f.cache.get(f.cache_key(args)) is not None]
    before = len(calls.args)
    for a in kept:
        f(a)
    assert 3 in kept
    assert len(calls.args) == before


def test_exceptions_are_not_kept():
    """They reach the caller each time."""
    calls = Calls()

    @cached
    def f():
        if calls() == 1:
            raise KeyError("once")
        return "well"

    with pytest.raises(KeyError, match="once"):
        f()
    assert f() == f() == "well"


def test_none_is_a_result():
    """It is kept like others."""
    calls = Calls()
    f = cached(lambda: calls() and None)
    assert f() is f() is None
    assert len(calls.args) == 1


# --- Tags, shared caches ---


def test_tags():
    """Values, or a function of the arguments: what bears the tag goes."""
    f = cached(tags=["all"])(Calls())
    calls = Calls()
    g = cached(tags=lambda a, b=0: [f"a:{a}", f"b:{b}"])(lambda a, b=0: calls())
    assert [f(1), g(1), g(2, b=1)] == [1, 1, 2]
    assert f.cache.tags(f.cache_key(1)) == {"all"}
    assert g.cache.delete_tag("b:1") == 1
    assert [g(1), g(2, 1)] == [1, 3]
    assert f.cache.delete_tag("all") == 1
    assert f(1) == 2


def test_tags_may_come_from_an_iterator():
    """An iterator is read once, for all calls."""
    f = cached(tags=iter(["x"]))(Calls())
    f(1), f(2)
    assert f.cache.delete_tag("x") == 2


def test_a_lone_str_is_no_tags():
    """TypeError, when it is decorated or when the function returns it."""
    with pytest.raises(TypeError, match="iterable of str"):
        cached(tags="user")
    f = cached(tags=lambda: "user")(Calls())
    with pytest.raises(TypeError, match="iterable of str"):
        f()


def test_functions_that_share_a_cache():
    """They have entries of their own, and cache_clear() drops only theirs."""
    cache = lapse.TTLCache(cleanup_interval=None)
    cache["k"] = "mine"
    one, two = Calls(), Calls()
    f, g = cached(cache=cache)(lambda a: one()), cached(cache=cache)(lambda a: 10 + two())
    assert [f("k"), g("k"), f("k"), g("k")] == [1, 11, 1, 11]
    assert f.cache is g.cache is cache
    assert f.cache_info()[:4] == (2, 2, None, 3)
    f.cache_clear()
    assert [f("k"), g("k"), cache["k"]] == [2, 11, "mine"]
    assert f.cache_invalidate("k") is True
    assert [f("k"), g("k")] == [3, 11]


def test_the_keys_of_a_named_function_in_a_shared_cache_are_the_same_in_every_process():
    """Its name stands before the arguments; nothing depends on addresses or order."""
    cache = lapse.TTLCache(cleanup_interval=None)
    f = cached(cache=cache)(documented.__wrapped__)
    assert f.cache_key(1) == (f"{__name__}.documented", 1, 2, 3)


@pytest.mark.parametrize("kind", [lapse.SlidingTTLCache, lapse.ProbabilisticTTLCache])
def test_other_kinds_of_cache(kind, clock):
    """Any cache will do, with a clock and a listener of its own."""
    gone: list[Any] = []
    options = {"clock": clock, "listener": lambda key, value, cause: gone.append((value, cause))}
    f = cached(cache=kind(60, cleanup_interval=None, **options))(Calls())
    assert [f(1), f(1), f(2)] == [1, 1, 2]
    assert f.cache_invalidate(1)
    assert gone == [(1, "deleted")]
    assert f.cache_info()[:2] == (1, 2)


def test_cache_info_counts_from_the_last_clear():
    """In a cache of one's own, as in functools."""
    f = cached(Calls())
    f(1), f(1), f(2)
    assert f.cache_info()[:4] == (1, 2, None, 2)
    f.cache_clear()
    assert f.cache_info()[:4] == (0, 0, None, 0)
    assert f.cache_info()._fields[:4] == ("hits", "misses", "maxsize", "currsize")


# --- What is under way ---

INVALIDATIONS: dict[str, Any] = {
    "invalidate": lambda f: f.cache_invalidate(1),
    "clear": lambda f: f.cache_clear(),
    "clear the cache": lambda f: f.cache.clear(),
    "tag": lambda f: f.cache.delete_tag("t"),
    "key": lambda f: f.cache.delete(f.cache_key(1)),
    "pattern": lambda f: f.cache.delete_pattern("k:*"),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", INVALIDATIONS)
def test_an_invalidation_during_the_call_is_not_undone(name, shared):
    """The call returns what it read; it is not kept, and the next call reads anew."""
    source = {"value": "old"}
    cache = lapse.TTLCache(cleanup_interval=None) if shared else None

    @cached(key=lambda a: f"k:{a}", tags=["t"], cache=cache)
    def f(a):
        value = source["value"]
        if value == "old":
            source["value"] = "new"
            INVALIDATIONS[name](f)
        return value

    assert [f(1), f(1), f(1)] == ["old", "new", "new"]
    assert f.cache_info().fenced_stores == 1


def test_callers_after_an_invalidation_do_not_wait_for_a_call_that_began_before():
    """They run the function anew, and what they read is kept."""
    source, entered, go = {"value": "old"}, threading.Event(), threading.Event()

    @cached
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


def test_one_call_for_all_who_ask_at_once():
    """Eight threads, one call."""
    calls, go, started = Calls(), threading.Event(), threading.Barrier(9)

    @cached
    def f(a):
        assert go.wait(PATIENCE)
        return calls(a)

    def ask():
        started.wait(PATIENCE)
        return f(1)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        started.wait(PATIENCE)
        go.set()
        assert {future.result(PATIENCE) for future in asked} == {1}


def test_timeout():
    """A call waits no longer for another one than it was told to."""
    entered, go = threading.Event(), threading.Event()

    @cached(timeout=0.01)
    def f():
        entered.set()
        assert go.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(f)
        assert entered.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            f()
        go.set()
        slow.result(PATIENCE)


def test_recursion():
    """A function may call itself, but not wait for the very call that is under way."""

    @cached
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    @cached
    def loop(n):
        return loop(n)

    assert fib(80) == 23416728348467685
    assert fib.cache_info().misses == 81
    with pytest.raises(LoadCycleError):
        loop(1)


# --- Being a function ---


def test_it_looks_like_the_function():
    """Name, documentation, signature, and the function itself behind `__wrapped__`."""
    assert documented(1) == 6
    assert documented.__name__ == documented.__qualname__ == "documented"
    assert documented.__doc__ == "Adds."
    assert documented.__module__ == __name__
    assert (
        str(inspect.signature(documented))
        == "(a: 'int', /, b: 'int' = 2, *, c: 'int' = 3) -> 'int'"
    )
    assert documented.__wrapped__(1) == 6
    assert callable(documented)
    assert "documented" in repr(documented)


def test_copies_and_pickles_are_the_function_itself():
    """By its name, as functions are pickled."""
    assert copy.copy(documented) is copy.deepcopy(documented) is documented
    if __name__ in sys.modules:  # not so under every import mode of pytest
        assert pickle.loads(pickle.dumps(documented)) is documented


@pytest.mark.parametrize("function", [math.hypot, max, int, functools.partial(pow, 2)])
def test_other_callables(function):
    """Builtins, classes and partials, whether or not they tell their signature."""
    f = cached(function)
    assert f(3, 4) == f(3, 4) == function(3, 4) if function is not int else f("3") == 3
    assert f.cache_info().currsize == 1


def test_a_wrapper_takes_what_it_takes():
    """What functools.wraps() says of the function within is not believed."""

    def inject(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function("injected", *args)

        return wrapper

    @cached
    @inject
    def f(extra, a):
        return extra, a

    assert f(1) == f(1) == ("injected", 1)


def test_cached_twice():
    """Each layer has its own cache and controls."""
    inner = cached(Calls())
    outer = cached(inner)
    assert [outer(1), outer(1), inner(1)] == [1, 1, 1]
    assert outer.cache is not inner.cache
    outer.cache_clear()
    assert (outer.cache_info().currsize, inner.cache_info().currsize) == (0, 1)


def test_generators_are_refused():
    """What they yield would be gone after the first caller."""

    def generator():
        yield 1

    async def asynchronous():
        yield 1

    for function in (generator, asynchronous, staticmethod(generator), classmethod(generator)):
        with pytest.raises(TypeError, match="generator"):
            cached(function)


def test_wrong_arguments_of_the_decorator():
    """Each is told when the function is decorated."""
    with pytest.raises(TypeError, match="callable"):
        cached()(1)
    with pytest.raises(TypeError, match="twice"):
        cached(1, ttl=2)
    with pytest.raises(ValueError, match="maxsize"):
        cached(maxsize=1, cache=lapse.TTLCache(cleanup_interval=None))
    for wrong in ({"ttl": 0}, {"ttl": -1}, {"maxsize": -1}):
        with pytest.raises(ValueError, match=r"ttl|maxsize"):
            cached(**wrong)(Calls())


def test_a_closed_cache():
    """RuntimeError, as from every call of a closed cache."""
    f = cached(Calls())
    f.cache.close()
    with pytest.raises(RuntimeError, match="closed"):
        f(1)


@pytest.mark.skipif(
    FREE_THREADED and sys.version_info < (3, 14),
    reason="3.13t keeps every function for ever: python/cpython#117783",
)
def test_a_function_that_nobody_has_any_more_is_freed():
    """Its cache and what is in it too, though a result refers to the function."""

    class Value:
        pass

    def make():
        f = cached(lambda: value)
        value = Value()
        value.function = f
        f()
        return weakref.ref(f), weakref.ref(value)

    function, value = make()
    gc.collect()
    assert function() is value() is None


def test_finalisers_may_call_it():
    """Those of results too, while the cache is emptied around them."""
    calls: list[int] = []
    f = cached(lambda a: Dying(lambda: calls.append(g(a))))
    g = cached(lambda a: a + 1)
    f(1), f(2)
    f.cache_clear()
    assert sorted(calls) == [2, 3]


def test_many_threads_many_keys():
    """Every thread gets right answers, while others invalidate."""
    f = cached(maxsize=50)(lambda a, b=0: (a, b))

    def work(seed):
        for n in range(2000):
            a = (n * seed) % 97
            assert f(a) == (a, 0)
            assert f(a, b=n % 3) == (a, n % 3)
            if n % 10 == 0:
                f.cache_invalidate(a)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, (1, 3, 5, 7)))
    assert len(f.cache) <= 50
    assert isinstance(f, CachedFunction)
