"""Lazy invalidation: what is marked is loaded anew when it is asked for, and not served before."""

from __future__ import annotations

import asyncio
import json
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lapse import ManualClock, TTLCache
from lapse.loading.lazy import LazyInvalidation, LazyStats
from lapse.loading.lazy_marks import Marks
from lapse.loading.sources import MappingSource, SQLiteSource
from lapse.loading.write_through import WriteThroughInvalidation
from loads import AsyncCalls, everything_lands
from support import Key

_ = pytest.fixture(autouse=True, scope="module")(everything_lands)


class Source:
    """A source that logs the keys that it is asked for, and runs `during` once inside a fetch()."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.asked: list[Any] = []
        self.during: Callable[[], Any] = lambda: None

    def fetch(self, key: Any) -> Any:
        self.asked.append(key)
        value = self.rows.get(key)
        during, self.during = self.during, lambda: None
        during()
        return value

    def calls(self) -> list[Any]:
        """What it was asked for since the last time."""
        asked, self.asked = self.asked, []
        return asked


class AsyncSource(Source):
    """The same, of coroutines."""

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
    """Makes a LazyInvalidation of the cache and the source, without a walker."""

    def make(**options: Any) -> Any:
        made = LazyInvalidation(cache, source, **{"start": False, **options})
        return made if form == "sync" else AsyncCalls(made)

    return make


@pytest.fixture
def lazy(make: Callable[..., Any]) -> Any:
    """One of the default options."""
    return make()


MARKS: dict[str, Any] = {
    "key": lambda lazy: lazy.mark_for_invalidation("t:1"),
    "pattern": lambda lazy: lazy.mark_pattern_for_invalidation("t:*"),
    "literal pattern": lambda lazy: lazy.mark_pattern_for_invalidation("t:1"),
    "table": lambda lazy: lazy.mark_table_for_invalidation("t"),
    "tag": lambda lazy: lazy.mark_tag_for_invalidation("g"),
    "all": lambda lazy: lazy.mark_all_for_invalidation(),
}
BESIDE: dict[str, Any] = {
    "another key": lambda lazy: lazy.mark_for_invalidation("t:2"),
    "another pattern": lambda lazy: lazy.mark_pattern_for_invalidation("t:1?"),
    "a bytes pattern": lambda lazy: lazy.mark_pattern_for_invalidation(b"*"),
    "another table": lambda lazy: lazy.mark_table_for_invalidation("t:1"),
    "a table with a star": lambda lazy: lazy.mark_table_for_invalidation("*"),
    "another tag": lambda lazy: lazy.mark_tag_for_invalidation("G"),
    "a key as a tag": lambda lazy: lazy.mark_tag_for_invalidation("t:1"),
}


class TestReading:
    def test_a_miss_loads(self, cache, source, lazy):
        """What is missing is fetched once, and stands in the cache as a plain value."""
        source.rows["t:1"] = "one"
        assert lazy.get("t:1") == "one"
        assert cache.get("t:1") == "one"
        assert lazy.get("t:1") == "one"
        assert source.calls() == ["t:1"]

    @pytest.mark.parametrize("mark", MARKS)
    def test_a_marked_entry_is_loaded_anew(self, cache, source, lazy, mark):
        """Once, whatever marked it, and the new value is stored; the mark touches no entry."""
        source.rows["t:1"] = "old"
        lazy.get("t:1", tags=["g"])
        source.calls()
        source.rows["t:1"] = "new"
        MARKS[mark](lazy)
        assert cache._look("t:1", None) == "old"
        assert [lazy.get("t:1") for _ in range(3)] == ["new"] * 3
        assert cache.get("t:1") == "new"
        assert source.calls() == ["t:1"]

    @pytest.mark.parametrize("mark", MARKS)
    def test_every_mark_counts(self, source, lazy, mark):
        """A mark that is made again marks again what has been loaded meanwhile."""
        for n in range(5):
            source.rows["t:1"] = n
            MARKS[mark](lazy)
            assert lazy.get("t:1", tags=["g"]) == n
        assert source.calls() == ["t:1"] * 5

    @pytest.mark.parametrize("mark", BESIDE)
    def test_what_is_not_marked_is_read(self, source, lazy, mark):
        """Marks of others cost nothing but a test."""
        source.rows["t:1"] = "one"
        lazy.get("t:1", tags=["g", "h"])
        source.calls()
        BESIDE[mark](lazy)
        assert [lazy.get("t:1") for _ in range(3)] == ["one"] * 3
        assert source.calls() == []
        assert lazy.stats().tested == 1

    @pytest.mark.parametrize("mark", MARKS)
    def test_a_failing_reload_leaves_the_mark(self, cache, source, lazy, mark):
        """The error reaches the caller, the next call tries again; the old value never shows."""
        source.rows["t:1"] = "old"
        lazy.get("t:1", tags=["g"])
        source.rows["t:1"] = "new"
        MARKS[mark](lazy)
        for _ in range(2):
            source.during = lambda: 1 / 0
            with pytest.raises(ZeroDivisionError):
                lazy.get("t:1")
        assert cache._look("t:1", None) == "old"
        assert lazy.get("t:1") == "new"

    def test_no_value(self, cache, source, lazy):
        """None from the source means that there is none: nothing is stored."""
        assert lazy.get("t:1") is None
        assert lazy.get("t:1", "default") == "default"
        assert "t:1" not in cache
        assert source.calls() == ["t:1"] * 2

    @pytest.mark.parametrize("mark", MARKS)
    def test_a_vanished_value(self, source, lazy, mark):
        """A marked entry that the source has no more is never served again."""
        source.rows["t:1"] = "old"
        lazy.get("t:1", tags=["g"])
        del source.rows["t:1"]
        MARKS[mark](lazy)
        assert [lazy.get("t:1", "default") for _ in range(2)] == ["default"] * 2

    @pytest.mark.parametrize("value", [0, "", False, ()])
    def test_false_values(self, source, lazy, value):
        """They are values."""
        source.rows["t:1"] = value
        assert [lazy.get("t:1", "default") for _ in range(2)] == [value] * 2
        assert source.calls() == ["t:1"]

    def test_a_none_that_somebody_else_has_stored(self, cache, source, lazy):
        """It is a cached value like others, and can be marked."""
        cache.set("t:1", None)
        assert lazy.get("t:1", "default") is None
        source.rows["t:1"] = "new"
        lazy.mark_for_invalidation("t:1")
        assert lazy.get("t:1", "default") == "new"

    def test_the_same_object_again(self, source, lazy):
        """A value that has not changed is loaded once for each mark, too."""
        source.rows["t:1"] = 7
        for _ in range(3):
            lazy.mark_for_invalidation("t:1")
            assert [lazy.get("t:1") for _ in range(3)] == [7] * 3
        assert source.calls() == ["t:1"] * 3

    def test_ttl_and_tags(self, cache, source, lazy):
        """What is loaded lives for its ttl and bears its tags."""
        source.rows["t:1"] = "one"
        lazy.get("t:1", None, 5, tags=["g"])
        assert (cache.expires_in("t:1"), cache.tags("t:1")) == (5, {"g"})
        lazy.mark_for_invalidation("t:1")
        lazy.get("t:1", tags=["h"])
        assert (cache.expires_in("t:1"), cache.tags("t:1")) == (60, {"h"})

    def test_a_reload_keeps_the_tags(self, cache, source, lazy):
        """If the caller names none, so that the next mark of a tag finds the entry again."""
        source.rows["t:1"] = "one"
        cache.set("t:1", "old", tags=["g"])
        for n in range(3):
            source.rows["t:1"] = n
            lazy.mark_tag_for_invalidation("g")
            assert lazy.get("t:1") == n
        lazy.mark_for_invalidation("t:1")
        lazy.get("t:1", tags=[])
        assert cache.tags("t:1") == set()

    @pytest.mark.parametrize("wrong", [{"ttl": 0}, {"ttl": "x"}, {"tags": "g"}, {"tags": [1]}])
    def test_wrong_arguments(self, source, lazy, wrong):
        """They are told of before anything is fetched."""
        with pytest.raises((TypeError, ValueError)):
            lazy.get("t:1", **wrong)
        assert source.calls() == []

    def test_unhashable_keys(self, lazy):
        """TypeError, with and without a mark."""
        for _ in range(2):
            with pytest.raises(TypeError):
                lazy.get([])
            with pytest.raises(TypeError):
                lazy.mark_for_invalidation([])
            lazy.mark_for_invalidation("x")

    def test_equal_keys_are_one(self, source, lazy):
        """A key is marked by any equal one; different keys of one hash are reloaded at worst."""
        first, second = Key("a"), Key("b")
        source.rows |= {first: 1, second: 2}
        lazy.get(first), lazy.get(second)
        source.rows |= {first: 3, second: 4}
        lazy.mark_for_invalidation(Key("a"))
        lazy.mark_for_invalidation(Key("b"))
        assert (lazy.get(first), lazy.get(second)) == (3, 4)

    def test_equal_hashes_count_as_equal_keys(self, source, lazy):
        """A str and its bytes have one hash: where one is marked, the other is loaded in vain."""
        source.rows |= {"t:1": 1, b"t:1": 2}
        lazy.get("t:1"), lazy.get(b"t:1")
        source.calls()
        lazy.mark_for_invalidation("t:1")
        assert [lazy.get(b"t:1") for _ in range(2)] == [2, 2]
        assert source.calls() in ([b"t:1"], [])

    def test_what_others_store_after_a_mark(self, cache, source, lazy):
        """It is loaded in vain, once."""
        source.rows["t:1"] = "theirs"
        lazy.mark_for_invalidation("t:1")
        cache.set("t:1", "theirs")
        assert [lazy.get("t:1") for _ in range(3)] == ["theirs"] * 3
        assert source.calls() == ["t:1"]

    def test_what_others_store_over_a_loaded_value(self, cache, source, lazy):
        """It is believed: set() says that it is true now."""
        source.rows["t:1"] = "ours"
        lazy.mark_for_invalidation("t:1")
        lazy.get("t:1")
        cache.set("t:1", "theirs")
        assert lazy.get("t:1") == "theirs"
        lazy.mark_for_invalidation("t:1")
        assert lazy.get("t:1") == "ours"

    def test_expiry(self, clock, source, lazy):
        """An expired entry is loaded like a missing one, and is not marked any more."""
        source.rows["t:1"] = 1
        lazy.get("t:1")
        lazy.mark_for_invalidation("t:1")
        clock.advance(60)
        assert [lazy.get("t:1") for _ in range(2)] == [1, 1]
        assert source.calls() == ["t:1"] * 2

    def test_deletions_of_the_cache(self, cache, source, lazy):
        """What was removed is loaded, with a mark and without."""
        for change in (lambda: cache.delete("t:1"), lambda: cache.delete_pattern("*"), cache.clear):
            for mark in (lambda: None, lambda: lazy.mark_pattern_for_invalidation("t:*")):
                source.rows["t:1"] = object()
                mark()
                change()
                assert lazy.get("t:1") is source.rows["t:1"]


class Proxy:
    """An object in front of another one, of which some methods are replaced."""

    def __init__(self, target: Any, **methods: Any) -> None:
        self.target, self.methods = target, methods

    def __getattr__(self, name: str) -> Any:
        return self.methods.get(name) or getattr(self.target, name)


class TestOrder:
    @pytest.mark.parametrize("mark", MARKS)
    def test_loads_are_outdated_first(self, cache, mark):
        """A mark that could be read before might give its number to what a load has stored."""
        seen: list[tuple[int, int]] = []
        lazy = LazyInvalidation(cache, Source(), start=False)

        def outdate(name: str) -> Any:
            def method(*args: Any) -> Any:
                seen.append((lazy._marks.newest, lazy._marks.count))
                return getattr(cache, name)(*args)

            return method

        names = [f"_outdate_{kind}" for kind in ("key", "pattern", "tag", "all")]
        lazy.cache = Proxy(cache, **{name: outdate(name) for name in names})
        MARKS[mark](lazy)
        assert seen == [(0, 0)]
        assert (lazy._marks.newest, lazy._marks.count) == (1, 1)

    @pytest.mark.parametrize("mark", MARKS)
    def test_the_number_comes_last(self, lazy, mark, monkeypatch):
        """Who reads it without the lock finds everything else up to date."""
        note, seen = Marks._note, []

        def noted(self: Any) -> None:
            seen.append(self.newest)
            note(self)

        monkeypatch.setattr(Marks, "_note", noted)
        MARKS[mark](lazy)
        assert seen == [0]
        assert lazy._marks.newest == 1

    @pytest.mark.parametrize("mark", MARKS)
    def test_a_mark_right_after_a_test(self, cache, source, lazy, mark, monkeypatch):
        """A stamp is no higher than what the test was asked about."""
        source.rows["t:1"] = "old"
        lazy.get("t:1", tags=["g"])
        lazy.mark_for_invalidation("other")
        cover, once = Marks.cover, [1]

        def then_mark(self: Any, *args: Any) -> bool:
            covered = cover(self, *args)
            if once:
                once.clear()
                MARKS[mark](lazy)
            return covered

        monkeypatch.setattr(Marks, "cover", then_mark)
        assert lazy.get("t:1") == "old"  # it was asked for before
        source.rows["t:1"] = "new"
        assert lazy.get("t:1") == "new"

    @pytest.mark.parametrize("mark", MARKS)
    def test_a_mark_right_after_a_fill(self, cache, source, lazy, mark):
        """A stamp is no higher than what was marked before the fill."""
        source.rows["t:1"] = "old"
        lazy.mark_for_invalidation("other")

        def fill(*args: Any) -> bool:
            stored = cache.fill(*args)
            MARKS[mark](lazy)
            return stored

        lazy._unmarked.cache = Proxy(cache, fill=fill)
        assert lazy.get("t:1", tags=["g"]) == "old"
        lazy._unmarked.cache = cache
        source.rows["t:1"] = "new"
        assert lazy.get("t:1") == "new"

    @pytest.mark.parametrize("mark", MARKS)
    def test_a_read_between_a_fill_and_its_stamp(self, cache, source, form, mark):
        """Nothing is loaded twice: what is about to be filled is known."""
        lazy = LazyInvalidation(cache, source, start=False)
        source.rows["t:1"] = "old"
        cache.set("t:1", "old", tags=["g"])
        MARKS[mark](lazy)
        source.rows["t:1"] = "new"

        def fill(*args: Any) -> bool:
            assert lazy._unmarked.is_marked("t:1")
            stored = cache.fill(*args)
            assert not lazy._unmarked.is_marked("t:1")
            assert cache.get("t:1") == "new"
            return stored

        lazy._unmarked.cache = Proxy(cache, fill=fill)
        got = lazy.get("t:1") if form != "async" else asyncio.run(lazy.aget("t:1"))
        assert got == "new"
        assert source.calls() == ["t:1"]

    def test_the_same_object_before_and_after_a_mark(self, cache, source, lazy):
        """A load that a mark overtakes leaves no stamp, though the cache holds its value."""
        source.rows["t:1"] = 5
        lazy.get("t:1")
        lazy.mark_for_invalidation("t:1")
        source.during = lambda: lazy.mark_for_invalidation("t:1")

        def fill(*args: Any) -> bool:
            assert lazy._unmarked.is_marked("t:1")
            return cache.fill(*args)

        lazy._unmarked.cache = Proxy(cache, fill=fill)
        assert lazy.get("t:1") == 5
        assert lazy._unmarked.is_marked("t:1")
        source.rows["t:1"] = 6
        lazy._unmarked.cache = cache
        assert lazy.get("t:1") == 6

    def test_tags_of_an_entry_that_is_replaced_after_the_test(self, cache, source, lazy):
        """What is read is not older than what was tested."""
        source.rows["t:1"] = "new"
        cache.set("t:1", "old", tags=["g"])
        lazy.mark_tag_for_invalidation("g")

        def tags_of(key: Any) -> Any:
            cache.set("t:1", "theirs")
            return cache._kept_tags(key)

        lazy._unmarked.cache = Proxy(cache, _kept_tags=tags_of)
        assert lazy.get("t:1") == "theirs"


class TestStale:
    @pytest.fixture
    def cache(self, clock):
        """A cache that keeps old values to be served while they are reloaded."""
        with TTLCache(60, None, clock=clock, stale_ttl=100) as cache:
            yield cache

    @pytest.mark.parametrize("mark", BESIDE)
    def test_old_values_are_served_on(self, clock, source, lazy, mark):
        """If the reload fails, as by get_or_load()."""
        source.rows["t:1"] = "old"
        lazy.get("t:1", tags=["g"])
        BESIDE[mark](lazy)
        clock.advance(60)
        source.during = lambda: 1 / 0
        assert lazy.get("t:1") == "old"
        source.rows["t:1"] = "new"
        assert lazy.get("t:1") == "new"

    @pytest.mark.parametrize("mark", MARKS)
    @pytest.mark.parametrize("late", [False, True])
    def test_marked_ones_are_not(self, clock, source, lazy, mark, late):
        """Whether they were marked before their deadline or after it."""
        source.rows["t:1"] = "old"
        lazy.get("t:1", tags=["g"])
        if late:
            clock.advance(60)
        MARKS[mark](lazy)
        if not late:
            clock.advance(60)
        for _ in range(2):
            source.during = lambda: 1 / 0
            with pytest.raises(ZeroDivisionError):
                lazy.get("t:1")
        source.rows["t:1"] = "new"
        assert lazy.get("t:1") == "new"

    @pytest.mark.parametrize("mark", MARKS)
    def test_a_mark_while_one_is_reloaded(self, clock, source, lazy, mark):
        """The reload is not stored, and if it fails nothing old is served."""
        source.rows["t:1"] = "old"
        lazy.get("t:1", tags=["g"])
        clock.advance(60)

        def mark_and_fail() -> None:
            MARKS[mark](lazy)
            raise ZeroDivisionError

        source.during = mark_and_fail
        with pytest.raises(ZeroDivisionError):
            lazy.get("t:1")
        source.rows["t:1"] = "new"
        assert lazy.get("t:1") == "new"

    def test_a_value_that_has_vanished(self, cache, clock, source, lazy):
        """Where the source has none any more, the old one is not served."""
        source.rows["t:1"] = "old"
        lazy.get("t:1")
        clock.advance(60)
        del source.rows["t:1"]
        assert [lazy.get("t:1", "default") for _ in range(2)] == ["default"] * 2
        assert cache._look_kept("t:1", None) is None

    def test_a_soft_clear(self, cache, source, lazy):
        """It ends the lives of entries, and leaves the old values to be served on."""
        source.rows["t:1"] = "old"
        lazy.get("t:1")
        cache.soft_clear(50)
        source.during = lambda: 1 / 0
        assert lazy.get("t:1") == "old"
        lazy.mark_all_for_invalidation()
        source.rows["t:1"] = "new"
        assert lazy.get("t:1") == "new"


class TestRaces:
    @pytest.mark.parametrize("mark", MARKS)
    def test_a_mark_during_a_load(self, cache, source, lazy, mark):
        """What the load brings goes to its caller, and is not stored."""
        source.rows["t:1"] = "old"
        source.during = lambda: MARKS[mark](lazy)
        assert lazy.get("t:1", tags=["g"]) == "old"
        assert "t:1" not in cache
        source.rows["t:1"] = "new"
        assert lazy.get("t:1", tags=["g"]) == "new"

    @pytest.mark.parametrize("mark", MARKS)
    def test_a_mark_during_a_reload(self, source, lazy, mark):
        """The entry stays marked."""
        source.rows["t:1"] = "old"
        lazy.get("t:1", tags=["g"])
        lazy.mark_for_invalidation("t:1")
        source.during = lambda: MARKS[mark](lazy)
        assert lazy.get("t:1") == "old"
        source.rows["t:1"] = "new"
        assert [lazy.get("t:1") for _ in range(2)] == ["new"] * 2
        assert source.calls() == ["t:1"] * 3

    @pytest.mark.parametrize("mark", MARKS)
    def test_loads_of_others_are_outdated(self, cache, lazy, mark):
        """Whatever loads through the cache: a lease from before the mark can't be filled."""
        lease, other = cache.lease("t:1", tags=["g"]), cache.lease("u", tags=["h"])
        MARKS[mark](lazy)
        assert cache.fill(lease, "old") is False
        assert cache.fill(other, "u") is (mark != "all")

    def test_a_write_through_the_cache(self, cache, source, lazy):
        """A write that a mark overtakes leaves no entry."""

        class Slow(MappingSource):
            def write(self, key: Any, value: Any) -> bool:
                lazy.mark_for_invalidation(key)
                return super().write(key, value)

        assert WriteThroughInvalidation(cache, Slow()).write("t:1", "one")
        assert "t:1" not in cache

    def test_two_objects_on_one_cache(self, cache, source, lazy):
        """Each knows its own marks."""
        other = LazyInvalidation(cache, MappingSource({"t:1": "other"}), start=False)
        source.rows["t:1"] = "one"
        lazy.get("t:1")
        other.mark_for_invalidation("t:1")
        assert lazy.get("t:1") == "one"
        assert other.get("t:1") == "other"
        assert lazy.get("t:1") == "other"


class TestBounds:
    def test_marks_merge_into_tables(self, source, make):
        """Keys with a literal table become a pattern of it; those without stay."""
        lazy = make(max_marks=8)
        source.rows |= {f"t:{n}": n for n in range(9)} | {"u:1": 1, 5: 5, "lone": 6, b"b:1": 7}
        for key in source.rows:
            lazy.get(key)
        source.calls()
        for key in ("u:1", 5, *(f"t:{n}" for n in range(8))):
            lazy.mark_for_invalidation(key)
        stats = lazy.stats()
        assert (stats.key_marks, stats.pattern_marks, stats.all_marks) == (3, 1, 0)
        assert stats.merged == 7
        for key in source.rows:
            lazy.get(key)
        assert sorted(source.calls(), key=str) == [5, *(f"t:{n}" for n in range(9)), "u:1"]

    def test_a_table_is_taken_literally(self, make):
        """What means something in a pattern is escaped; bytes keep to bytes."""
        lazy = make(max_marks=4)
        for n in range(3):
            lazy.mark_for_invalidation(f"*[a]:{n}")
            lazy.mark_for_invalidation(b"\\?:%d" % n)
        assert lazy.stats().all_marks == 0
        covered = lambda key: lazy._marks.cover(key, (), 0)  # noqa: E731
        assert all(covered(key) for key in ("*[a]:0", "*[a]:x", b"\\?:0", b"\\?:x"))
        assert not any(covered(key) for key in ("xa:0", "a:0", b"\\x:0", b"?:0", "\\?:0", "*[a]"))

    @pytest.mark.parametrize("kind", ["lone keys", "tables", "patterns", "tags", "numbers"])
    def test_what_has_no_table_becomes_all(self, cache, source, make, kind):
        """When merging does not help, everything is marked; nothing is ever unmarked."""
        lazy = make(max_marks=8)
        mark = {
            "lone keys": lambda n: lazy.mark_for_invalidation(f"k{n}"),
            "tables": lambda n: lazy.mark_for_invalidation(f"k{n}:1"),
            "patterns": lambda n: lazy.mark_pattern_for_invalidation(f"*k{n}"),
            "tags": lambda n: lazy.mark_tag_for_invalidation(f"k{n}"),
            "numbers": lambda n: lazy.mark_for_invalidation(n),
        }[kind]
        source.rows["other"] = 1
        for n in range(9):
            cache.set(f"k{n}", "old", tags=[f"k{n}"])
            mark(n)
            assert lazy.stats().marks <= 8
        stats = lazy.stats()
        assert (stats.all_marks, stats.marks, stats.merged) == (1, 1, 9)
        lazy.get("other")
        source.calls()
        lazy.get("other")
        assert source.calls() == []
        assert all(lazy._marks.cover(f"k{n}", (), 8) for n in range(9))

    @pytest.mark.parametrize("most", [1, 2, 3, 10, 1000])
    def test_the_bound_holds(self, make, most):
        """Whatever is marked, there are never more marks; everything marked stays covered."""
        lazy = make(max_marks=most)
        for n in range(300):
            lazy.mark_for_invalidation(f"t{n % 7}:{n}")
            lazy.mark_for_invalidation(n)
            lazy.mark_pattern_for_invalidation(f"p{n}*")
            lazy.mark_tag_for_invalidation(f"g{n}")
            stats = lazy.stats()
            assert stats.marks <= most
            assert stats.marked == 4 * (n + 1)
        for n in range(300):
            for key, tags in ((f"t{n % 7}:{n}", ()), (n, ()), (f"p{n}q", ()), ("x", [f"g{n}"])):
                assert lazy._marks.cover(key, tags, 0), key

    def test_many_keys_of_one_hash(self, source, make):
        """They are told apart up to a few; then everything is marked."""
        lazy = make()
        for n in range(20):
            lazy.mark_for_invalidation(Key(n))
        assert lazy.stats().all_marks == 1
        assert lazy.stats().marks <= 2

    def test_repeated_marks_are_one(self, make):
        """A key, equal or the same, a pattern and a tag that are marked again move to the end."""
        lazy = make()
        for _ in range(50):
            for key in ("a", 1, (1, "a"), Key("k")):
                lazy.mark_for_invalidation(key)
            lazy.mark_pattern_for_invalidation("a*")
            lazy.mark_tag_for_invalidation("a")
        stats = lazy.stats()
        assert (stats.marks, stats.marked, stats.repeated) == (6, 300, 294)

    def test_all_takes_the_place_of_the_rest(self, lazy):
        """Other marks go when everything is marked."""
        for n in range(5):
            lazy.mark_for_invalidation(n)
        lazy.mark_all_for_invalidation()
        stats = lazy.stats()
        assert (stats.marks, stats.all_marks, stats.merged) == (1, 1, 5)

    def test_forgotten_stamps(self, source, make):
        """What was loaded and then forgotten is loaded in vain, but never served when it is old."""
        lazy = make(max_stamps=2)
        source.rows |= {f"t:{n}": n for n in range(5)}
        lazy.mark_pattern_for_invalidation("t:*")
        for _ in range(3):
            assert [lazy.get(f"t:{n}") for n in range(5)] == list(range(5))
        assert lazy.stats().stamps == 2
        assert len(source.calls()) == 15

    @pytest.mark.parametrize("option", ["max_marks", "max_stamps", "pause"])
    @pytest.mark.parametrize("wrong", [0, -1, float("nan")])
    def test_wrong_options(self, cache, option, wrong):
        """ValueError for what is not positive."""
        with pytest.raises(ValueError, match=option):
            LazyInvalidation(cache, Source(), **{option: wrong})


class TestCost:
    def test_marking_enumerates_nothing(self):
        """A mark of 100,000 entries costs about what one of ten costs."""

        class Closed(TTLCache[Any, Any]):
            """A cache that can't be listed."""

            def __iter__(self) -> Any:
                raise AssertionError("listed")

            keys = items = values = _walk = __iter__  # type: ignore[assignment]
            get_keys_matching_pattern = delete_pattern = __iter__  # type: ignore[assignment]
            _keys_with_tag = delete_tag = invalidate_table = clear = __iter__  # type: ignore

        def seconds(count: int) -> float:
            cache = Closed(None, None)
            cache.set_many(((f"t:{n}", n) for n in range(count)), tags=["g"])
            lazy = LazyInvalidation(cache, Source(), start=False)
            marks = [lambda m=m: m(lazy) for m in MARKS.values()]
            return min(timeit.repeat(lambda: [mark() for mark in marks], number=20, repeat=5))

        few, many = seconds(10), seconds(100_000)
        assert many < 10 * few

    def test_without_marks_nothing_is_tested(self, source, lazy):
        """No stamp is kept, and no mark is asked for."""
        source.rows["t:1"] = 1
        lazy.get("t:1"), lazy.get("t:1")
        assert (lazy.stats().tested, lazy.stats().stamps) == (0, 0)

    def test_a_key_is_tested_once_for_each_mark(self, source, lazy):
        """Then its stamp is as new as the newest mark."""
        source.rows["t:1"] = 1
        lazy.get("t:1")
        for n in range(5):
            lazy.mark_for_invalidation(f"other {n}")
            lazy.get("t:1"), lazy.get("t:1")
            assert lazy.stats().tested == n + 1
        assert source.calls() == ["t:1"]


class TestManners:
    def test_stats(self, source, lazy):
        """They count what was done."""
        source.rows |= {"t:1": 1, "t:2": 2}
        lazy.get("t:1", tags=["g"]), lazy.get("t:2"), lazy.get("none")
        for mark in MARKS.values():
            mark(lazy)
        lazy.mark_for_invalidation("t:1")
        lazy.get("t:1"), lazy.get("t:3")
        assert lazy.stats() == LazyStats(
            loads=5, reloads=1, marked=7, repeated=1, merged=4, retired=0, tested=6, reclaimed=0,
            key_marks=1, pattern_marks=0, tag_marks=0, all_marks=1, stamps=1, errors=0,
        )  # fmt: skip
        assert json.loads(json.dumps(lazy.get_stats())) == {
            **lazy.stats()._asdict(), "marks": 2, "name": None, "class": "LazyInvalidation",
        }  # fmt: skip

    @pytest.mark.parametrize(
        "wrong", [lambda lz: lz.mark_pattern_for_invalidation(5),
                  lambda lz: lz.mark_pattern_for_invalidation("a" * 1025),
                  lambda lz: lz.mark_table_for_invalidation(5),
                  lambda lz: lz.mark_tag_for_invalidation(b"g")],
    )  # fmt: skip
    def test_wrong_marks(self, lazy, wrong):
        """TypeError or ValueError, and nothing is marked."""
        with pytest.raises((TypeError, ValueError)):
            wrong(lazy)
        assert lazy.stats().marked == 0

    @pytest.mark.parametrize(
        "call", [*MARKS.values(), lambda lz: lz.get("t:1"), lambda lz: lz.reclaim(),
                 lambda lz: lz.start_walker()]
    )  # fmt: skip
    def test_closed(self, cache, lazy, call):
        """RuntimeError, but for close() and the figures; the cache stays open."""
        lazy.close()
        lazy.close()
        with pytest.raises(RuntimeError, match="closed"):
            call(lazy)
        assert lazy.stats().marks == 0
        assert not cache.closed

    def test_a_block(self, cache, source):
        """`with` closes, whatever happens, and what was marked is gone then."""
        cache.set_many({"t:1": 1, "u:1": 2})
        with LazyInvalidation(cache, source) as lazy:
            lazy.mark_pattern_for_invalidation("t:*")
        assert dict(cache.items()) == {"u:1": 2}
        with pytest.raises(RuntimeError, match="closed"), lazy:
            pass

    def test_a_closed_cache(self, cache, lazy):
        """RuntimeError; the object can still be closed."""
        lazy.mark_for_invalidation("t:1")
        cache.close()
        for call in (lambda: lazy.get("t:1"), lambda: lazy.mark_for_invalidation("t:2")):
            with pytest.raises(RuntimeError, match="closed"):
                call()
        assert lazy.reclaim() == 0
        lazy.close()

    def test_an_asynchronous_source_behind_get(self, cache):
        """TypeError; the entry stays marked."""
        lazy = LazyInvalidation(cache, AsyncSource(), start=False)
        cache.set("t:1", "old")
        lazy.mark_for_invalidation("t:1")
        with pytest.raises(TypeError, match="asynchronous"):
            lazy.get("t:1")
        assert lazy._marks.cover("t:1", (), 0)

    def test_over_sqlite(self, cache, tmp_path):
        """Over a real table."""
        source = SQLiteSource(tmp_path / "rows.db")
        lazy = LazyInvalidation(cache, source, start=False)
        source.write("t:1", "old")
        assert lazy.get("t:1") == "old"
        source.write("t:1", "new")
        lazy.mark_table_for_invalidation("t")
        assert lazy.get("t:1") == "new"
        source.delete("t:1")
        lazy.mark_for_invalidation("t:1")
        assert lazy.get("t:1", "default") == "default"
        source.close()
