"""Versions: what is served has the newest version known, and an older one never takes its place."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lapse import ManualClock, TTLCache
from lapse.loading.sources import MappingSource, SQLiteSource
from lapse.loading.versioned import VersionBasedInvalidation, VersionStats
from loads import AsyncCalls


class Source:
    """A versioned source that logs what it is asked, and runs `during` once inside a fetch()."""

    def __init__(self) -> None:
        self.rows: dict[Any, tuple[Any, Any]] = {}
        self.asked: list[str] = []
        self.during: Callable[[], Any] = lambda: None

    def get_version(self, key: Any) -> Any:
        self.asked.append("version")
        return self.rows.get(key, (None, None))[0]

    def fetch(self, key: Any) -> Any:
        self.asked.append("fetch")
        value = self.rows.get(key, (None, None))[1]
        during, self.during = self.during, lambda: None
        during()
        return value

    def calls(self) -> list[str]:
        """What it was asked since the last time."""
        asked, self.asked = self.asked, []
        return asked


class AsyncSource(Source):
    """The same, of coroutines."""

    async def get_version(self, key: Any) -> Any:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().get_version(key)

    async def fetch(self, key: Any) -> Any:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().fetch(key)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that only `advance` moves."""
    return ManualClock()


@pytest.fixture
def cache(clock: ManualClock) -> Iterator[Any]:
    """A cache on it."""
    with TTLCache(60, None, clock=clock) as cache:
        yield cache


@pytest.fixture(params=["sync", "async", "async over sync"])
def form(request: pytest.FixtureRequest) -> str:
    """In which form the methods are called, over which kind of source."""
    return request.param


@pytest.fixture
def source(form: str) -> Source:
    """An empty source of the kind that fits."""
    return AsyncSource() if form == "async" else Source()


@pytest.fixture
def make(form: str, cache: Any, source: Source) -> Callable[..., Any]:
    """Makes a VersionBasedInvalidation of the cache and the source."""

    def make(**options: Any) -> Any:
        made = VersionBasedInvalidation(cache, source, **options)
        return made if form == "sync" else AsyncCalls(made)

    return make


@pytest.fixture(params=[False, True], ids=["asking", "trusting"])
def trust(request: pytest.FixtureRequest) -> bool:
    """Whether versions are trusted."""
    return request.param


class TestReading:
    def test_a_miss_loads(self, cache, source, make, trust):
        """What is missing is fetched once, and stands in the cache as a plain value."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=trust)
        assert versioned.get("a") == "one"
        assert cache.get("a") == "one"
        assert source.calls().count("fetch") == 1
        assert versioned.get("a") == "one"
        assert source.calls() == ([] if trust else ["version"])

    def test_the_version_is_asked_before_the_value(self, source, make, trust):
        """A value that changes in between is newer than its version says, never older."""
        source.rows["a"] = 1, "one"
        make(trust_versions=trust).get("a")
        assert source.calls()[-2:] == ["version", "fetch"]

    def test_a_newer_version_at_the_source(self, cache, source, make):
        """Unless versions are trusted, each read asks, and fetches what has a newer version."""
        source.rows["a"] = 1, "one"
        versioned = make()
        versioned.get("a")
        source.rows["a"] = 2, "two"
        assert versioned.get("a") == "two"
        assert cache.get("a") == "two"
        source.calls()
        assert versioned.get("a") == "two"
        assert source.calls() == ["version"]

    def test_trusted_versions_ask_nothing(self, source, make):
        """Trusting, a change that nobody has told of is not noticed; one that is told of is."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=True)
        versioned.get("a")
        source.rows["a"] = 2, "two"
        assert versioned.get("a") == "one"
        assert versioned.invalidate_by_version("a", 2) is True
        assert versioned.get("a") == "two"

    def test_no_such_key(self, cache, source, make, trust):
        """A key that the source has not gives the default, and is not stored."""
        versioned = make(trust_versions=trust)
        assert versioned.get("a") is None
        assert versioned.get("a", "default") == "default"
        assert "a" not in cache
        assert "fetch" not in source.calls()

    def test_a_vanished_key(self, cache, source, make):
        """A key that the source has no more is dropped, and may come back with any version."""
        source.rows["a"] = 7, "seven"
        versioned = make()
        versioned.get("a")
        del source.rows["a"]
        assert versioned.get("a", "default") == "default"
        assert "a" not in cache
        source.rows["a"] = 1, "again"
        assert versioned.get("a") == "again"
        assert cache.get("a") == "again"

    def test_a_key_that_vanishes_during_a_load(self, cache, source, make, trust):
        """A value of None is stored only if the key is still there."""
        source.rows["a"] = 1, None
        versioned = make(trust_versions=trust)
        source.during = source.rows.clear
        assert versioned.get("a", "default") == "default"
        assert "a" not in cache

    @pytest.mark.parametrize("value", [None, 0, "", False])
    def test_any_value(self, source, make, trust, value):
        """None and other false values are values."""
        source.rows["a"] = 1, value
        versioned = make(trust_versions=trust)
        assert versioned.get("a", "default") is value
        source.calls()
        assert versioned.get("a", "default") is value
        assert "fetch" not in source.calls()

    @pytest.mark.parametrize(
        "versions",
        [(1, 2), (0.5, 0.75), ("2026-01", "2026-02"), ((1, 9), (2, 0)), (b"a", b"b"), (-1, 0)],
        ids=repr,
    )
    def test_any_ordered_version(self, source, make, trust, versions):
        """Versions are whatever `<` orders."""
        old, new = versions
        source.rows["a"] = new, "new"
        versioned = make(trust_versions=trust)
        assert versioned.get("a") == "new"
        assert versioned.invalidate_by_version("a", old) is False
        assert versioned.invalidate_by_version("a", new) is False
        source.calls()
        assert versioned.get("a") == "new"
        assert "fetch" not in source.calls()

    def test_ttl_and_tags(self, cache, clock, source, make, trust):
        """What is loaded lives for its ttl and bears its tags, and its version is known as long."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=trust)
        assert versioned.get("a", None, 300, tags=["t"]) == "one"
        assert (cache.expires_in("a"), cache.tags("a")) == (300, {"t"})
        clock.advance(299)
        source.calls()
        assert versioned.get("a") == "one"
        assert "fetch" not in source.calls()
        cache.delete_tag("t")
        versioned.get("a", ttl=5)
        assert cache.expires_in("a") == 5

    def test_versions_that_cannot_be_compared(self, source, make, trust):
        """What `<` raises reaches the caller."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=trust)
        versioned.get("a")
        with pytest.raises(TypeError):
            versioned.invalidate_by_version("a", "two")
        assert versioned.get("a") == "one"

    def test_a_source_that_raises(self, cache, source, make, trust):
        """The error reaches the caller; nothing is stored; the next call tries again."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=trust)
        source.during = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            versioned.get("a")
        assert "a" not in cache
        assert versioned.get("a") == "one"


class TestInvalidation:
    def test_news_removes_the_entry(self, cache, source, make, trust):
        """A higher version removes the entry at once; the same or an older one does nothing."""
        source.rows["a"] = 3, "three"
        versioned = make(trust_versions=trust)
        versioned.get("a")
        assert versioned.invalidate_by_version("a", 2) is False
        assert versioned.invalidate_by_version("a", 3) is False
        assert cache.get("a") == "three"
        assert versioned.invalidate_by_version("a", 4) is True
        assert "a" not in cache

    def test_an_entry_of_unknown_version(self, cache, make, trust):
        """What somebody else has stored goes with the first version that is heard of."""
        cache.set("a", "unknown")
        assert make(trust_versions=trust).invalidate_by_version("a", 1) is True
        assert "a" not in cache

    def test_none_means_gone(self, cache, source, make, trust):
        """None as the new version drops the key, whatever version it had."""
        source.rows["a"] = 3, "three"
        versioned = make(trust_versions=trust)
        versioned.get("a")
        assert versioned.invalidate_by_version("a", None) is True
        assert versioned.invalidate_by_version("a", None) is False
        assert "a" not in cache
        source.rows["a"] = 1, "one"
        assert versioned.get("a") == "one"

    def test_a_source_that_is_behind(self, cache, source, make, trust):
        """What is older than what has been heard of is returned, but not stored."""
        versioned = make(trust_versions=trust)
        versioned.invalidate_by_version("a", 5)
        source.rows["a"] = 4, "four"
        assert versioned.get("a") == "four"
        assert "a" not in cache
        source.rows["a"] = 5, "five"
        assert versioned.get("a") == "five"
        assert cache.get("a") == "five"

    def test_news_during_a_load(self, cache, source, make, trust):
        """A load that is overtaken brings its value to its caller, and nothing to the cache."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=trust)
        source.during = lambda: versioned.invalidate_by_version("a", 2)
        versioned.get("a")
        assert cache.get("a") != "one"
        source.rows["a"] = 2, "two"
        assert versioned.get("a") == "two"

    def test_changes_of_the_cache_count(self, cache, source, make, trust):
        """Other invalidations of the cache work as ever: what they removed is loaded again."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=trust)
        for change in (lambda: cache.delete("a"), lambda: cache.delete_pattern("*"), cache.clear):
            versioned.get("a")
            source.rows["a"] = 1, object()
            change()
            assert versioned.get("a") is source.rows["a"][1]

    def test_what_others_store_is_not_believed(self, cache, source, make, trust):
        """A value that came by set() has no version, so it is loaded anew."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=trust)
        versioned.get("a")
        cache.set("a", "other")
        assert versioned.get("a") == "one"
        assert cache.get("a") == "one"


class TestBounds:
    def test_forgotten_versions_are_loaded_again(self, cache, source, make, trust):
        """Beyond max_versions the least recently used version goes, and its value is reloaded."""
        versioned = make(trust_versions=trust, max_versions=2)
        for n in range(3):
            source.rows[n] = 1, n
            versioned.get(n)
        assert versioned.stats().known == 2
        source.calls()
        assert [versioned.get(n) for n in (2, 1)] == [2, 1]
        assert "fetch" not in source.calls()
        assert versioned.get(0) == 0
        assert "fetch" in source.calls()

    def test_expired_entries_are_loaded_again(self, clock, source, make, trust):
        """An entry expires as it would; its version is forgotten no later than one ttl after."""
        source.rows["a"] = 1, "one"
        versioned = make(trust_versions=trust)
        versioned.get("a")
        clock.advance(59)
        assert versioned.get("a") == "one"
        source.calls()
        clock.advance(1)
        versioned.get("a")
        assert "fetch" in source.calls()
        clock.advance(120)
        assert versioned.stats().known == 0

    @pytest.mark.parametrize("most", [0, -1])
    def test_a_bound_is_needed(self, make, most):
        """There is always a bound, and it is positive."""
        with pytest.raises(ValueError, match="max_versions"):
            make(max_versions=most)

    def test_close_forgets_values(self, source, make, form):
        """After close() no value is kept alive, and the methods refuse."""

        class Value:
            pass

        source.rows["a"] = 1, Value()
        versioned = make()
        versioned.get("a")
        value = weakref.ref(source.rows.pop("a")[1])
        versioned.cache.clear()
        versioned.close()
        versioned.close()
        gc.collect()
        assert value() is None
        for call in (lambda: versioned.get("a"), lambda: versioned.invalidate_by_version("a", 1)):
            with pytest.raises(RuntimeError, match="closed"):
                call()


def test_figures(cache):
    """stats() counts calls under what came of them."""
    source = Source()
    with VersionBasedInvalidation(cache, source, trust_versions=True) as versioned:
        source.rows["a"] = 1, "one"
        versioned.get("a")
        versioned.get("a")
        versioned.get("b")
        versioned.invalidate_by_version("a", 2)
        versioned.get("a")
        expected = VersionStats(hits=1, loads=2, behind=1, vanished=1, raised=1, known=1)
        assert versioned.stats() == expected


def test_an_asynchronous_source_needs_await(cache):
    """get() refuses a source of coroutines, and leaves none of them open."""
    source = AsyncSource()
    source.rows["a"] = 1, "one"
    for trust in (False, True):
        with pytest.raises(TypeError, match="asynchronous"):
            VersionBasedInvalidation(cache, source, trust_versions=trust).get("a")


@pytest.mark.parametrize("kind", ["mapping", "sqlite"])
def test_with_the_sources_that_come_along(cache, kind, tmp_path):
    """Writes, deletions and returns of a key are told apart by the sources' versions."""
    source = MappingSource() if kind == "mapping" else SQLiteSource(tmp_path / "x.db")
    versioned = VersionBasedInvalidation(cache, source)
    source.write("a", "one")
    assert versioned.get("a") == "one"
    source.update("a", "two")
    assert versioned.get("a") == "two"
    source.delete("a")
    source.write("a", "three")
    assert versioned.get("a") == "three"
    source.delete("a")
    assert versioned.get("a") is None
    assert len(cache) == 0


class Version:
    """A version whose comparisons run `hook` once: what another thread may do just then."""

    hook: Callable[[], Any] | None = None

    def __init__(self, number: int) -> None:
        self.number = number

    def __lt__(self, other: Version) -> bool:
        hook, Version.hook = Version.hook, None
        if hook is not None:
            hook()
        return self.number < other.number


class TestBetween:
    """What comes while versions are compared."""

    def test_two_pieces_of_news(self, cache):
        """Of two versions that are brought at once the higher one stays known."""
        source = Source()
        versioned = VersionBasedInvalidation(cache, source, trust_versions=True)
        versioned.invalidate_by_version("a", Version(1))
        Version.hook = lambda: versioned.invalidate_by_version("a", Version(6))
        assert versioned.invalidate_by_version("a", Version(5)) is False
        source.rows["a"] = Version(5), "behind"
        versioned.get("a")
        assert "a" not in cache

    def test_a_fresh_value_is_not_dropped_for_the_old_one(self, cache):
        """Who finds an entry too old drops that one, and not what has taken its place."""
        source = Source()
        versioned = VersionBasedInvalidation(cache, source)
        source.rows["a"] = Version(1), "one"
        versioned.get("a")
        source.rows["a"] = Version(2), "two"
        source.calls()
        Version.hook = lambda: versioned.get("a")
        assert versioned.get("a") == "two"
        assert source.calls().count("fetch") == 1


class TestThreads:
    """Loads of several threads, stopped and let go by events."""

    def test_a_caller_that_knows_more_does_not_get_less(self, cache):
        """Who finds a newer version at the source while an older load runs gets the newer value."""
        source = Source()
        source.rows["a"] = 1, "one"
        versioned = VersionBasedInvalidation(cache, source)
        inside, go, found = threading.Event(), threading.Event(), {}

        def stop() -> None:
            inside.set()
            assert go.wait(60)

        source.during = stop
        first = threading.Thread(target=lambda: found.update(first=versioned.get("a")))
        first.start()
        assert inside.wait(60)
        source.rows["a"] = 2, "two"
        second = threading.Thread(target=lambda: found.update(second=versioned.get("a")))
        second.start()
        go.set()
        first.join(60)
        second.join(60)
        assert found["second"] == versioned.get("a") == "two"
        assert found["first"] in ("one", "two")

    def test_the_highest_version_wins(self, cache):
        """Of versions that many threads bring in any order the highest is kept."""
        source = Source()
        versioned = VersionBasedInvalidation(cache, source, trust_versions=True)
        start = threading.Barrier(4)

        def work(thread: int) -> None:
            start.wait(60)
            for version in range(thread, 2000, 4):
                versioned.invalidate_by_version("a", version)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        source.rows["a"] = 1998, "behind"
        versioned.get("a")
        assert "a" not in cache
        source.rows["a"] = 1999, "newest"
        versioned.get("a")
        assert cache.get("a") == "newest"

    @pytest.mark.parametrize("trust", [False, True], ids=["asking", "trusting"])
    def test_readers_beside_a_writer(self, cache, trust):
        """Who reads after a version was written and told of gets that one or a later one."""
        source = MappingSource({"a": 0})
        versioned = VersionBasedInvalidation(cache, source, trust_versions=trust)
        told, wrong = [0], []

        def read() -> None:
            while told[0] < 400:
                least = told[0]
                value = versioned.get("a")
                if value < least:
                    wrong.append((value, least))

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for n in range(1, 401):
            source.write("a", n)
            versioned.invalidate_by_version("a", source.get_version("a"))
            told[0] = n
        for reader in readers:
            reader.join(60)
        assert wrong == []
        assert versioned.get("a") == 400
        assert cache._check()
