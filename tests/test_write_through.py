"""Write-through: the source first, the cache only if that took it, and never an older value after.

The interleavings are driven by hand: a source whose methods are coroutines stops before and after
each change, so a test decides who goes next.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest

from lapse import ManualClock, SlidingTTLCache, TTLCache
from lapse.loading.sources import MappingSource, SQLiteSource
from lapse.loading.write_through import WriteThroughInvalidation, WriteThroughStats
from support import PATIENCE, switching

LONG = os.environ.get("LAPSE_LONG") == "1"


class Step:
    """Something to await that stops the coroutine once: until send() is called again."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class SteppingSource:
    """An asynchronous source that stops before and after each change, and logs what it stored."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}
        self.log: list[Any] = []

    async def write(self, key: Any, value: Any) -> bool:
        await Step()
        self.values[key] = value
        self.log.append(value)
        await Step()
        return True

    update = write

    async def delete(self, key: Any) -> bool:
        await Step()
        self.values.pop(key, None)
        self.log.append(None)
        await Step()
        return True


class HookedSource(MappingSource):
    """A source that runs `before` and `after` around every write."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], Any] = lambda: None
        self.after: Callable[[], Any] = lambda: None

    def write(self, key: Any, value: Any) -> bool:
        before, self.before = self.before, lambda: None
        before()
        done = super().write(key, value)
        after, self.after = self.after, lambda: None
        after()
        return done


class Refusing:
    """A source that does nothing and says so."""

    def write(self, key: Any, value: Any) -> bool:
        return False

    update = write

    def delete(self, key: Any) -> bool:
        return False


class Failing:
    """A source that stores and then raises: nobody knows."""

    error: type[BaseException] = OSError

    def write(self, key: Any, value: Any) -> bool:
        raise self.error("the line went dead")

    update = write

    def delete(self, key: Any) -> bool:
        raise self.error("the line went dead")


class Asynchronous:
    """Any source, with coroutines for methods."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        async def method(*args: Any) -> Any:
            await asyncio.sleep(0)
            return getattr(self.source, name)(*args)

        return method


@pytest.fixture(params=["mapping", "sqlite"])
def source(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """An empty source of either kind."""
    if request.param == "mapping":
        return MappingSource()
    return SQLiteSource(tmp_path / "data.db")


@pytest.fixture
def cache() -> Iterator[Any]:
    """A cache on a manual clock."""
    with TTLCache(60, None, clock=ManualClock()) as cache:
        yield cache


class Sync:
    """Calls the plain methods."""

    def __init__(self, through: Any) -> None:
        self.through = through

    def __getattr__(self, name: str) -> Any:
        return getattr(self.through, name)


class Async(Sync):
    """Calls the asynchronous ones, under the plain names."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.through, f"a{name}")

        def call(*args: Any, **options: Any) -> Any:
            return asyncio.run(method(*args, **options))

        return call


@pytest.fixture(params=["sync", "async", "async over sync"])
def wrap(request: pytest.FixtureRequest, cache: Any) -> Callable[[Any], Any]:
    """Makes a WriteThroughInvalidation over a plain source, called in one of three ways."""
    if request.param == "sync":
        return lambda source: Sync(WriteThroughInvalidation(cache, source))
    if request.param == "async":
        return lambda source: Async(WriteThroughInvalidation(cache, Asynchronous(source)))
    return lambda source: Async(WriteThroughInvalidation(cache, source))


class TestOneWriter:
    """What the reference's class does, in each of the forms."""

    def test_write(self, cache, source, wrap):
        """A written value is in the source and in the cache."""
        assert wrap(source).write("a", 1) is True
        assert (source.fetch("a"), cache.get("a")) == (1, 1)

    def test_update(self, cache, source, wrap):
        """An update changes both, and nothing where the source has nothing."""
        through = wrap(source)
        assert through.update("a", 1) is False
        assert (source.fetch("a"), cache.get("a")) == (None, None)
        through.write("a", 1)
        assert through.update("a", 2) is True
        assert (source.fetch("a"), cache.get("a")) == (2, 2)

    def test_delete(self, cache, source, wrap):
        """A deleted key is in neither."""
        through = wrap(source)
        through.write("a", 1)
        assert through.delete("a") is True
        assert (source.fetch("a"), "a" in cache) == (None, False)
        assert through.delete("a") is False

    def test_ttl_and_tags(self, cache, source, wrap):
        """The entry lives for its ttl and bears its tags; so it does after an update."""
        through = wrap(source)
        through.write("a", 1, 5, tags=["t"])
        assert (cache.expires_in("a"), cache.tags("a")) == (5, {"t"})
        through.update("a", 2, ttl=7)
        assert (cache.expires_in("a"), cache.tags("a")) == (7, frozenset())

    @pytest.mark.parametrize("value", [None, 0, False, ""])
    def test_any_value(self, cache, wrap, value):
        """None and other false values are values."""
        wrap(MappingSource()).write("a", value)
        assert cache.get("a", "absent") is value

    @pytest.mark.parametrize("method", ["write", "update", "delete"])
    def test_a_source_that_refuses(self, cache, wrap, method):
        """False means that nothing has changed, here neither."""
        cache.set("a", "kept")
        args = ("a",) if method == "delete" else ("a", 1)
        assert getattr(wrap(Refusing()), method)(*args) is False
        assert cache.get("a") == "kept"

    @pytest.mark.parametrize("method", ["write", "update", "delete"])
    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_a_source_that_raises(self, cache, wrap, method, error):
        """The error reaches the caller; the entry is gone, because nobody knows what is true."""
        cache.set("a", "old")
        failing = Failing()
        failing.error = error
        args = ("a",) if method == "delete" else ("a", 1)
        with pytest.raises(error):
            getattr(wrap(failing), method)(*args)
        assert "a" not in cache

    def test_many(self, cache, source, wrap):
        """Batch forms say of each key whether the source took it."""
        through = wrap(source)
        assert through.write_many({"a": 1, "b": 2}, 5, tags=iter(["t"])) == {"a": True, "b": True}
        assert cache.get_many("ab") == {"a": 1, "b": 2}
        assert cache.tags("a") == cache.tags("b") == {"t"}
        assert through.delete_many(["a", "a", "c"]) == {"a": True, "c": False}
        assert dict(cache) == {"b": 2}

    def test_a_batch_ends_at_the_first_error(self, cache, wrap):
        """What was written before stays, what failed is gone, what comes after is untouched."""

        class Third(MappingSource):
            def write(self, key: Any, value: Any) -> bool:
                if key == "b":
                    raise OSError("full")
                return super().write(key, value)

        source = Third()
        cache.set_many({"a": 0, "b": 0, "c": 0})
        with pytest.raises(OSError, match="full"):
            wrap(source).write_many({"a": 1, "b": 1, "c": 1})
        assert dict(cache) == {"a": 1, "c": 0}

    def test_wrong_arguments_never_reach_the_source(self, cache, source, wrap):
        """A wrong ttl, tag or key is refused before anything is written."""
        through = wrap(source)
        with pytest.raises(ValueError, match="ttl"):
            through.write("a", 1, 0)
        with pytest.raises(TypeError, match="tag"):
            through.write("a", 1, tags="t")
        with pytest.raises(TypeError, match="tag"):
            through.write_many({"a": 1}, tags="t")
        with pytest.raises(TypeError, match="hash"):
            through.write([], 1)
        assert source.fetch("a") is None

    def test_figures(self, cache, wrap):
        """stats() counts each call once, under what became of it."""
        source = HookedSource()
        through = wrap(source)
        through.write("a", 1)
        through.update("b", 1)
        through.delete("a")
        source.before = lambda: cache.delete("a")
        through.write("a", 2)
        source.after = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            through.write("a", 3)
        assert through.through.stats() == WriteThroughStats(
            applied=2, overtaken=1, refused=1, failed=1
        )


class TestTheObject:
    def test_an_asynchronous_source_needs_await(self, cache):
        """The plain methods refuse a source of coroutines; the entry is gone."""
        through = WriteThroughInvalidation(cache, Asynchronous(MappingSource()))
        cache.set("a", 1)
        for call in (lambda: through.write("a", 1), lambda: through.delete("a")):
            with pytest.raises(TypeError, match="asynchronous"):
                call()
        assert "a" not in cache

    def test_close(self, cache):
        """A closed object refuses its methods; the cache goes on. Closing again does nothing."""
        with WriteThroughInvalidation(cache, MappingSource()) as through:
            through.write("a", 1)
        through.close()
        for call in (lambda: through.write("a", 1), lambda: through.delete("a"), through.__enter__):
            with pytest.raises(RuntimeError, match="closed"):
                call()
        assert cache.get("a") == 1
        assert through.stats().applied == 1

    def test_no_memory_to_store_what_was_written(self):
        """The source has the new value, so the old one goes, though the new one cannot come."""

        class Short(TTLCache[Any, Any]):
            def fill(self, *args: Any, **options: Any) -> bool:
                raise MemoryError

        with Short(60, None) as cache:
            cache.set("a", 1)
            source = MappingSource({"a": 1})
            with pytest.raises(MemoryError):
                WriteThroughInvalidation(cache, source).write("a", 2)
            assert source.fetch("a") == 2
            assert "a" not in cache

    def test_any_kind_of_cache(self):
        """It stands before any cache of lapse."""
        with SlidingTTLCache(60, None, maxsize=1) as cache:
            through = WriteThroughInvalidation(cache, MappingSource())
            assert through.write("a", 1)
            assert through.write("b", 2)
            assert dict(cache) == {"b": 2}

    def test_a_cancelled_write(self, cache):
        """Who cancels a write leaves no entry: the source may have stored it."""
        source = SteppingSource()
        through = WriteThroughInvalidation(cache, source)
        cache.set("a", 0)
        writing = through.awrite("a", 1)
        writing.send(None)
        writing.send(None)
        with pytest.raises(asyncio.CancelledError):
            writing.throw(asyncio.CancelledError())
        assert ("a" in cache, source.values) == (False, {"a": 1})


CHANGES: dict[str, Callable[[Any], Any]] = {
    "set": lambda cache: cache.set("a", "other"),
    "delete": lambda cache: cache.delete("a"),
    "pattern": lambda cache: cache.delete_pattern("a*"),
    "tag": lambda cache: cache.delete_tag("t"),
    "clear": lambda cache: cache.clear(),
}


class TestBetween:
    """What other threads do while the source works; here they do it inside its write()."""

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_change_of_the_cache(self, cache, change, when):
        """A change that the write overlaps leaves no entry: which of them is newer is not known."""
        source = HookedSource()
        setattr(source, when, lambda: change(cache))
        assert WriteThroughInvalidation(cache, source).write("a", 1, tags=["t"]) is True
        assert "a" not in cache
        assert source.fetch("a") == 1

    def test_changes_of_other_keys(self, cache):
        """Other keys, patterns and tags stop nothing."""
        source = HookedSource()
        cache.set("b", 1, tags=["u"])

        def others() -> None:
            cache.set("c", 1)
            cache.delete_pattern("b*")
            cache.delete_tag("u")

        source.before = others
        WriteThroughInvalidation(cache, source).write("a", 1, tags=["t"])
        assert cache.get("a") == 1

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_load_that_read_the_old_value(self, cache, when):
        """A load that began before the write ended is not stored over what was written."""
        source = HookedSource()
        leases: list[Any] = []
        setattr(source, when, lambda: leases.append(cache.lease("a")))
        WriteThroughInvalidation(cache, source).write("a", "new")
        assert cache.fill(leases[0], "old") is False
        assert cache.get("a") == "new"

    def test_a_load_that_was_stored_meanwhile(self, cache):
        """A load that began and ended while the source wrote is overwritten."""
        source = HookedSource()
        source.before = lambda: cache.get_or_load("a", lambda key: "old")
        WriteThroughInvalidation(cache, source).write("a", "new")
        assert cache.get("a") == "new"

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_two_writers_in_each_other(self, cache, when):
        """Of two writers that overlap, none leaves its value: only the source knows the order."""
        source = HookedSource()
        through = WriteThroughInvalidation(cache, source)
        setattr(source, when, lambda: through.write("a", "inner"))
        assert through.write("a", "outer") is True
        assert "a" not in cache
        assert source.fetch("a") == ("outer" if when == "before" else "inner")
        through.write("a", "last")
        assert cache.get("a") == "last"


async def loading(cache: Any, source: SteppingSource) -> None:
    """A load by hand, in three steps: lease, read, fill."""
    lease = cache.lease("a")
    await Step()
    value = source.values.get("a")
    await Step()
    cache.fill(lease, value)


class Stage:
    """Some actors on one key, who go on when told to."""

    def __init__(self, make: Callable[[], Any], actors: str) -> None:
        self.cache = make()
        self.source = SteppingSource()
        self.source.values["a"] = 0
        self.source.log.append(0)
        self.through = WriteThroughInvalidation(self.cache, self.source)
        self.actors: list[Coroutine[Any, Any, Any]] = [
            self.actor(letter, n) for n, letter in enumerate(actors, 1)
        ]
        self.values = [n if letter == "w" else None for n, letter in enumerate(actors, 1)]
        self.letters = actors
        #: How many of the source's changes happened before a writer's end that everybody knows of.
        self.known = 0

    def actor(self, letter: str, n: int) -> Coroutine[Any, Any, Any]:
        if letter == "w":
            return self.through.awrite("a", n)
        return self.through.adelete("a") if letter == "d" else loading(self.cache, self.source)

    def go(self, n: int) -> None:
        """Let actor n go on to its next stop, and look at the cache."""
        try:
            self.actors[n].send(None)
        except StopIteration:
            if self.letters[n] in "wd":
                self.known = max(self.known, self.place(self.values[n]))
        value = self.cache.get("a", self)
        if value is not self:
            place = self.place(value)
            assert place >= self.known, (value, self.source.log, self.known)

    def place(self, value: Any) -> int:
        """Where in the source's log this value stands: each is there once."""
        return len(self.source.log) - 1 - self.source.log[::-1].index(value)


def orders(actors: str, rng: random.Random, most: int) -> Iterator[tuple[int, ...]]:
    """Every order in which they can take their three steps; `most` at random if there are more."""
    steps = [n for n in range(len(actors)) for _ in range(3)]
    if len(actors) <= 2:
        yield from sorted(set(itertools.permutations(steps)))
        return
    for _ in range(most):
        rng.shuffle(steps)
        yield tuple(steps)


@pytest.mark.parametrize("actors", ["ww", "wd", "wl", "dl", "www", "wwl", "wwd", "wdl", "wwll"])
def test_every_interleaving(actors: str) -> None:
    """Once a writer has returned nobody finds an older value; what is there in the end is true."""
    for order in orders(actors, random.Random(7), 20_000 if LONG else 1_500):
        stage = Stage(lambda: TTLCache(60, None), actors)
        for n in order:
            stage.go(n)
        left = stage.cache.get("a", stage)
        assert left is stage or left == stage.source.log[-1], (order, left, stage.source.log)
        stage.cache.close()


class Yielding(MappingSource):
    """A source that lets other threads run when it has stored a value."""

    __slots__ = ()

    def write(self, key: Any, value: Any) -> bool:
        done = super().write(key, value)
        time.sleep(0)
        return done


_switch_often = switching(2e-6, autouse=False)


@pytest.mark.usefixtures("_switch_often")
def test_threads_agree_in_the_end() -> None:
    """Whatever threads write, delete and load, the cache ends with the source's value, or none."""
    cache: Any = TTLCache(60, None)
    source = Yielding(dict.fromkeys(range(4), -1))
    through = WriteThroughInvalidation(cache, source)
    start = threading.Barrier(6)

    def work(thread: int) -> None:
        rng = random.Random(thread)
        for _ in range(20 if LONG else 4):
            start.wait(60)
            for turn in range(200):
                key = rng.randrange(4)
                if thread < 3:
                    through.write(key, (thread, turn))
                elif thread == 3:
                    through.delete(key)
                else:
                    cache.get_or_load(key, source.fetch)
            start.wait(60)
            for key in range(4):
                value = cache.get(key, source)
                wrong = value is not source and value != source.fetch(key)
                assert not wrong, (key, value, source.fetch(key))

    errors: list[BaseException] = []

    def guarded(thread: int) -> None:
        try:
            work(thread)
        except BaseException as error:
            errors.append(error)
            start.abort()

    end = time.monotonic() + PATIENCE
    while not errors and not through.stats().overtaken and time.monotonic() < end:
        threads = [threading.Thread(target=guarded, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert errors == []
    assert through.stats().overtaken > 0
    assert cache._check()
