"""@cached on methods: each instance has its own results, and takes them along when it dies."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

import lapse
from lapse.loading.cached import cached
from support import FREE_THREADED, needs_real_memory

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    calls.clear()


def note(*call: Any) -> int:
    """Counts a call."""
    calls.append(call)
    return len(calls)


class Plain:
    """A class with a cached method of every kind."""

    @cached
    def method(self, a: int = 1) -> int:
        """Counts."""
        return note("method", a)

    @cached(tags=lambda self, a: [f"a:{a}"], maxsize=100)
    async def awaited(self, a):
        return note("awaited", a)

    @cached
    @classmethod
    def of_class(cls, a):
        return note("of_class", cls, a)

    @classmethod
    @cached
    def of_class_inside(cls, a):
        return note("of_class_inside", cls, a)

    @cached
    @staticmethod
    def static(a):
        return note("static", a)

    @staticmethod
    @cached
    def static_inside(a):
        return note("static_inside", a)

    @staticmethod
    @cached
    async def static_awaited(a):
        return note("static_awaited", a)

    @cached
    @classmethod
    async def of_class_awaited(cls, a):
        return note("of_class_awaited", a)

    @cached(key=lambda self, a: f"k:{a}")
    def keyed(self, a):
        return note("keyed", a)

    @cached
    def anything(*args):
        return note("anything", len(args))


@pytest.fixture(autouse=True)
def _clear() -> None:
    for name in ("method", "awaited", "of_class", "of_class_inside", "static", "static_inside",
                 "static_awaited", "of_class_awaited", "keyed", "anything"):  # fmt: skip
        getattr(Plain, name).cache.clear()


# --- Results of an instance ---


def test_instances_do_not_share_results():
    """Nor does one instance run the function twice, however it is called."""
    one, other = Plain(), Plain()
    assert [one.method(), one.method(1), one.method(a=1), Plain.method(one)] == [1] * 4
    assert Plain.method(self=one, a=1) == 1
    assert [other.method(), other.method(2)] == [2, 3]
    assert len(Plain.method.cache) == 3


def test_invalidation_by_the_instance():
    """`instance.method.cache_invalidate()` and `cache_clear()` touch no other instance."""
    one, other = Plain(), Plain()
    assert [one.method(1), one.method(2), other.method(1)] == [1, 2, 3]
    assert one.method.cache_invalidate(1) is True
    assert one.method.cache_invalidate(a=1) is False
    assert [one.method(1), one.method(2), other.method(1)] == [4, 2, 3]
    one.method.cache_clear()
    assert [one.method(1), one.method(2), other.method(1)] == [5, 6, 3]
    assert Plain.method.cache_invalidate(other, 1) is True
    Plain.method.cache_clear()
    assert len(Plain.method.cache) == 0


def test_an_instance_is_not_kept_alive():
    """Neither by its results nor by bound methods that are gone; its results go with it."""
    one, other = Plain(), Plain()
    one.method(1), one.method(2), other.method(1)
    reference = weakref.ref(one)
    del one
    gc.collect()
    assert reference() is None
    assert len(Plain.method.cache) == 1
    assert other.method(1) == 3


def test_an_instance_in_a_cycle_takes_its_results_along():
    """When the collector finds it."""
    one = Plain()
    one.itself = one
    one.method()
    del one
    gc.collect()
    assert len(Plain.method.cache) == 0


def test_a_bound_method_keeps_its_instance():
    """As every bound method does: it may be the only one that has it."""
    method = Plain().method
    gc.collect()
    assert [method(1), method(1), method.__self__.method(1)] == [1, 1, 1]
    assert Plain().method(1) == 2


@needs_real_memory
def test_a_new_instance_at_the_address_of_an_old_one_has_no_results():
    """An id() may be used again at once; what was kept under it is gone by then."""
    seen = set()
    for n in range(1, 1000):
        one = Plain()
        seen.add(id(one))
        assert one.method() == n
    assert len(seen) < 999, "no address was used again: the test shows nothing"


def test_instances_need_not_be_hashable():
    """Nor does their equality matter."""

    @dataclass
    class Point:
        x: int

        @cached
        def method(self):
            return note(self.x)

    one, equal = Point(1), Point(1)
    assert [one.method(), equal.method(), one.method()] == [1, 2, 1]
    with pytest.raises(TypeError):
        hash(one)


def test_slots():
    """Instances must be weakly referenceable, unless there is a key; if not, that is told."""

    class Slots:
        __slots__ = ("__weakref__",)

        @cached
        def method(self):
            return note()

    class Bare:
        __slots__ = ()

        @cached
        def method(self):
            return note()

        @cached(key=lambda self: "all")
        def keyed(self):
            return note()

    assert Slots().method() == 1
    with pytest.raises(TypeError, match=r"Bare cannot be weakly referenced.*__weakref__"):
        Bare().method()
    bare = Bare()
    assert bare.keyed() == Bare().keyed() == 2


def test_dataclass_with_slots():
    """Which makes the class a second time."""

    if sys.version_info < (3, 11):
        pytest.skip("weakref_slot= came with 3.11")

    @dataclass(slots=True, weakref_slot=True)
    class Point:
        x: int

        @cached
        def method(self, a):
            return note(a)

    point = Point(1)
    assert [point.method(1), point.method(1)] == [1, 1]


def test_a_key_of_ones_own():
    """It gets the instance like any argument, and instances share what has the same key."""
    one, other = Plain(), Plain()
    assert [one.keyed(1), other.keyed(1), one.keyed(2)] == [1, 1, 2]
    assert other.keyed.cache_invalidate(1) is True
    assert one.keyed(1) == 3
    one.keyed.cache_clear()
    assert len(Plain.keyed.cache) == 0


def test_methods_that_share_a_cache():
    """Each has its entries; clearing one instance or method leaves the others."""
    cache = lapse.TTLCache(cleanup_interval=None)

    class Shared:
        @cached(cache=cache)
        def f(self, a):
            return note("f", a)

        @cached(cache=cache)
        def g(self, a):
            return note("g", a)

    one, other = Shared(), Shared()
    assert [one.f(1), one.g(1), other.f(1), one.f(1)] == [1, 2, 3, 1]
    one.f.cache_clear()
    assert [one.f(1), one.g(1), other.f(1)] == [4, 2, 3]
    Shared.f.cache_clear()
    assert len(cache) == 1
    del one
    gc.collect()
    assert len(cache) == 0


def test_a_method_without_named_parameters():
    """Its first argument is the instance all the same."""
    one = Plain()
    assert [one.anything(), one.anything(1), one.anything(1)] == [1, 2, 2]
    assert calls[-1] == ("anything", 2)
    with pytest.raises(TypeError, match="without its instance"):
        Plain.anything()


def test_a_method_called_without_its_instance():
    """TypeError with the function's own message."""
    with pytest.raises(
        TypeError, match=r"Plain\.method\(\) missing 1 required positional argument"
    ):
        Plain.method()


@pytest.mark.parametrize("name", ["invalidate", "clear instance", "clear all", "key", "tag"])
def test_an_invalidation_during_the_call_is_not_undone(name):
    """By whatever means: the result is returned, not kept."""
    source = {"value": "old"}

    class Reader:
        @cached(tags=["t"])
        def read(self, a):
            value = source["value"]
            if value == "old":
                source["value"] = "new"
                {
                    "invalidate": lambda: self.read.cache_invalidate(a),
                    "clear instance": lambda: self.read.cache_clear(),
                    "clear all": lambda: Reader.read.cache_clear(),
                    "key": lambda: Reader.read.cache.delete(self.read.cache_key(a)),
                    "tag": lambda: Reader.read.cache.delete_tag("t"),
                }[name]()
            return value

    reader = Reader()
    assert [reader.read(1), reader.read(1), reader.read(1)] == ["old", "new", "new"]


def test_clearing_another_instance_outdates_nothing():
    """Only the loads of the instance that is cleared are outdated."""

    class Reader:
        other: Any = None

        @cached
        def read(self):
            if self.other is not None:
                self.other.read.cache_clear()
            return note()

    one, other = Reader(), Reader()
    one.other = other
    assert [one.read(), one.read()] == [1, 1]


# --- Being a method ---


def test_a_bound_method_looks_like_one():
    """Name, signature, equality, repr, and the function's own figures."""
    one, other = Plain(), Plain()
    assert one.method.__name__ == "method"
    assert one.method.__self__ is one
    assert one.method.__wrapped__(5) == 1
    assert str(inspect.signature(one.method)) == "(a: 'int' = 1) -> 'int'"
    assert str(inspect.signature(Plain.method)) == "(self, a: 'int' = 1) -> 'int'"
    assert one.method == one.method != other.method
    assert len({one.method, one.method, other.method}) == 2
    assert one.method != functools.partial(one.method)
    assert "method" in repr(one.method)
    assert one.method.cache is Plain.method.cache
    assert one.method.cache_info() == Plain.method.cache_info()
    with pytest.raises(AttributeError):
        _ = one.method.nothing


def test_copies_of_an_instance_have_results_of_their_own():
    """Nothing of the cache is in the instance."""
    one = Plain()
    one.method()
    assert vars(one) == {}
    assert [copy.copy(one).method(), copy.deepcopy(one).method(), one.method()] == [2, 3, 1]


def test_bound_methods_are_pickled_with_their_instance():
    """As those of the language are."""
    if __name__ not in sys.modules:  # not so under every import mode of pytest
        pytest.skip("this module cannot be imported by its name")
    method = pickle.loads(pickle.dumps(Plain().method))
    assert isinstance(method.__self__, Plain)
    assert method(1) == method(1) == 1


def test_inheritance():
    """A method that is not overridden keeps results of instances of both; super() works."""

    class Child(Plain):
        @cached
        def static_like(self):
            return super().method(7)

        @cached
        def method(self, a=1):
            return -super().method(a)

    child = Child()
    assert [child.method(), child.method(), Plain.method(child)] == [-1, -1, 1]
    assert child.static_like() == child.static_like() == 2


def test_a_cached_function_as_an_attribute_stays_a_function():
    """Only what the body of a class defines becomes a method of it."""

    @cached
    def function(*args):
        return note(*args)

    class Holder:
        borrowed = function

    holder = Holder()
    assert holder.borrowed(1) == 1
    assert calls == [(holder, 1)]
    assert function(1) == 2
    assert holder.borrowed(1) == 1
    assert function.cache_key(1) == (1,)


# --- Class methods, static methods ---


class Heir(Plain):
    """Inherits all."""


@pytest.mark.parametrize("name", ["of_class", "of_class_inside"])
def test_class_methods(name):
    """Each class has results of its own, from an instance too; in either order of decorators."""
    of_plain, of_heir = getattr(Plain, name), getattr(Heir, name)
    assert [of_plain(1), of_plain(1), getattr(Plain(), name)(1), of_heir(1), of_heir(1)] == [
        1,
        1,
        1,
        2,
        2,
    ]
    assert calls == [(name, Plain, 1), (name, Heir, 1)]
    of_plain.cache_clear()


def test_class_methods_know_their_class():
    """With @cached above, `cache_invalidate()` needs no class; below, it is an argument."""
    Plain.of_class(1), Heir.of_class(1), Plain.of_class_inside(1)
    assert isinstance(inspect.getattr_static(Plain, "of_class"), classmethod)
    assert Plain.of_class.cache_invalidate(1) is True
    assert Heir().of_class.cache_invalidate(1) is True
    assert Plain.of_class_inside.cache_invalidate(Plain, 1) is True


@pytest.mark.skipif(
    FREE_THREADED and sys.version_info < (3, 14),
    reason="3.13t keeps every class for ever: python/cpython#117783",
)
def test_a_class_is_not_kept_alive():
    """By a class method with @cached above."""

    class Passing(Plain):
        pass

    Passing.of_class(1)
    reference = weakref.ref(Passing)
    del Passing
    calls.clear()
    gc.collect()
    assert reference() is None
    assert len(Plain.of_class.cache) == 0


@pytest.mark.parametrize("name", ["static", "static_inside"])
def test_static_methods(name):
    """They are functions, in either order of decorators; the arguments may be anything hashable."""
    function = getattr(Plain, name)
    assert [function(1), getattr(Plain(), name)(1), function(a=1), function("a")] == [1, 1, 1, 2]
    assert function.cache_invalidate(1) is True
    assert function.cache_info()[:2] == (2, 2)
    function.cache_clear()


# --- Coroutine functions ---


def test_coroutine_methods():
    """They are coroutine functions, bound or not, with results of each instance."""
    one, other = Plain(), Plain()
    for function in (Plain.awaited, one.awaited, Plain.static_awaited, Plain.of_class_awaited):
        assert inspect.iscoroutinefunction(function)

    async def main(one: Plain, other: Plain) -> None:
        assert [await one.awaited(1), await one.awaited(a=1), await other.awaited(1)] == [1, 1, 2]
        assert await asyncio.gather(Plain.awaited(one, 1), one.awaited(1)) == [1, 1]
        assert one.awaited.cache_invalidate(1) is True
        assert await asyncio.create_task(one.awaited(1)) == 3
        other.awaited.cache_clear()
        assert [await one.awaited(1), await other.awaited(1)] == [3, 4]
        assert Plain.awaited.cache.delete_tag("a:1") == 2
        assert [await one.awaited(1), await one.static_awaited(1)] == [5, 6]
        assert [await Plain.static_awaited(1), await Plain.of_class_awaited(1)] == [6, 7]
        assert [await one.of_class_awaited(1), await Heir.of_class_awaited(1)] == [7, 8]
        assert Plain.of_class_awaited.cache_invalidate(1) is True

    asyncio.run(main(one, other))
    reference = weakref.ref(one)
    del one, function
    gc.collect()
    assert reference() is None
    assert len(Plain.awaited.cache) == 0


def test_an_invalidation_during_an_awaited_method_is_not_undone():
    """The load of that instance is outdated, and only that."""
    source = {"value": "old"}

    class Reader:
        @cached
        async def read(self):
            value, self.entered = source["value"], True
            await self.go.wait()
            return value

    async def main() -> None:
        one, other = Reader(), Reader()
        one.go = other.go = asyncio.Event()
        tasks = [asyncio.create_task(reader.read()) for reader in (one, other)]
        while not (hasattr(one, "entered") and hasattr(other, "entered")):
            await asyncio.sleep(0)
        source["value"] = "new"
        one.read.cache_clear()
        one.go.set()
        assert await asyncio.gather(*tasks) == ["old", "old"]
        assert [await one.read(), await other.read()] == ["new", "old"]

    asyncio.run(main())


def test_instances_that_come_and_go_in_threads():
    """No instance ever gets another one's result, whatever addresses are used again."""

    class Owner:
        def __init__(self, number):
            self.number = number

        @cached
        def own(self, a):
            return self.number, a

    def work(seed):
        for n in range(1500):
            owner = Owner((seed, n))
            assert owner.own(1) == owner.own(1) == (owner.number, 1)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    gc.collect()
    assert len(Owner.own.cache) == 0
