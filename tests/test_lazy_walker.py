"""The walker: marked entries that nobody asks for go, then their marks; it sleeps and wakes."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from lapse import ManualClock, MappingSource, TTLCache
from lapse.loading import lazy_walker
from lapse.loading.lazy import LazyInvalidation
from loads import PATIENCE
from support import FREE_THREADED, Key, check, wait_until
from test_process import in_child, needs_fork

STEP = lazy_walker.STEP


def walkers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("lapse-lazy")]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    """Every walker ends with its object."""
    yield
    gc.collect()
    assert wait_until(lambda: not walkers())


@pytest.fixture
def source() -> MappingSource:
    """A source in which every key has its own name as its value, in brackets."""
    return MappingSource({f"{t}:{n}": f"[{t}:{n}]" for t in "tu" for n in range(3 * STEP)})


@pytest.fixture
def lazy(source: MappingSource) -> Any:
    """Over a cache of old values for all keys of the source, without a walker."""
    cache: TTLCache[Any, Any] = TTLCache(None, None)
    cache.set_many(((key, "old") for key in source._mapping), tags=["all"])
    cache.delete_many([key for key in cache if key.startswith("t")])
    cache.set_many(((f"t:{n}", "old") for n in range(3 * STEP)), tags=["all", "t"])
    with LazyInvalidation(cache, source, start=False) as lazy:
        yield lazy


def left(lazy: Any) -> dict[str, int]:
    """How many entries there are of each table."""
    keys = list(lazy.cache)
    return {table: sum(key.startswith(table) for key in keys) for table in "tu"}


ALL = {"t": 3 * STEP, "u": 3 * STEP}
MARKS: dict[str, tuple[Any, dict[str, int]]] = {
    "key": (lambda lazy: lazy.mark_for_invalidation("t:1"), ALL | {"t": 3 * STEP - 1}),
    "absent key": (lambda lazy: lazy.mark_for_invalidation("t"), ALL),
    "pattern": (lambda lazy: lazy.mark_pattern_for_invalidation("t:*"), ALL | {"t": 0}),
    "no match": (lambda lazy: lazy.mark_pattern_for_invalidation("x*"), ALL),
    "table": (lambda lazy: lazy.mark_table_for_invalidation("t"), ALL | {"t": 0}),
    "tag": (lambda lazy: lazy.mark_tag_for_invalidation("t"), ALL | {"t": 0}),
    "no tag": (lambda lazy: lazy.mark_tag_for_invalidation("t:1"), ALL),
    "all": (lambda lazy: lazy.mark_all_for_invalidation(), {"t": 0, "u": 0}),
}


class TestReclaim:
    @pytest.mark.parametrize("mark", MARKS)
    def test_what_is_marked_goes(self, lazy, mark):
        """Exactly that, and the mark with it."""
        make_mark, expected = MARKS[mark]
        make_mark(lazy)
        assert left(lazy) == ALL
        assert lazy.reclaim() == sum(ALL.values()) - sum(expected.values())
        assert left(lazy) == expected
        stats = lazy.stats()
        assert (stats.marks, stats.retired, stats.stamps) == (0, 1, 0)
        assert stats.reclaimed == sum(ALL.values()) - sum(expected.values())
        assert lazy.reclaim() == 0
        check(lazy.cache)

    @pytest.mark.parametrize("mark", ["key", "pattern", "table", "tag", "all"])
    def test_what_was_loaded_since_stays(self, lazy, mark):
        """An entry that somebody has asked for is as new as the mark."""
        MARKS[mark][0](lazy)
        assert lazy.get("t:1") == "[t:1]"
        lazy.reclaim()
        assert lazy.cache._look("t:1", None) == "[t:1]"
        assert lazy.get("t:1") == "[t:1]"
        assert lazy.stats().loads == 1

    def test_what_was_tested_stays(self, lazy):
        """An entry that no mark covers is not touched."""
        lazy.mark_pattern_for_invalidation("t:1?")
        assert lazy.get("t:1") == "old"
        assert lazy.reclaim() == 10
        assert lazy.get("t:1") == "old"

    def test_what_others_have_stored_since(self, lazy):
        """It goes too: nobody knows that it is younger."""
        lazy.mark_for_invalidation("t:1")
        lazy.cache.set("t:1", "theirs")
        assert lazy.reclaim() == 1
        assert "t:1" not in lazy.cache

    def test_what_is_expired_does_not_count(self, source):
        """It is gone already."""
        clock = ManualClock()
        cache: TTLCache[Any, Any] = TTLCache(10, None, clock=clock)
        cache.set("t:1", "old")
        with LazyInvalidation(cache, source, start=False) as lazy:
            lazy.mark_for_invalidation("t:1")
            clock.advance(10)
            assert lazy.reclaim() == 0
            assert lazy.stats().retired == 1

    def test_keys_of_one_hash(self, lazy):
        """Each of those that are marked goes, and no other."""
        lazy.cache.update({Key(n): n for n in range(5)})
        for n in (1, 3):
            lazy.mark_for_invalidation(Key(n))
        assert lazy.reclaim() == 2
        assert sorted(key.name for key in lazy.cache if isinstance(key, Key)) == [0, 2, 4]

    @pytest.mark.parametrize("mark", ["key", "pattern", "table", "tag", "all"])
    def test_what_is_past_its_deadline(self, source, mark):
        """Old values that a cache keeps to be served while they are reloaded go, too."""
        clock = ManualClock()
        cache: TTLCache[Any, Any] = TTLCache(10, None, clock=clock, stale_ttl=100)
        cache.set("t:1", "old", tags=["t"])
        clock.advance(10)
        with LazyInvalidation(cache, source, start=False) as lazy:
            MARKS[mark][0](lazy)
            assert lazy.reclaim() == 0  # it was not live
            assert lazy.stats().marks == 0
        assert cache._look_kept("t:1", None) is None

    def test_loads_under_way_are_stored(self, lazy):
        """What the walker removes is older than them."""
        lazy.mark_for_invalidation("t:1")
        lease = lazy.cache.lease("t:1")
        lazy.reclaim()
        assert lazy.cache.fill(lease, "new")

    def test_the_listener_is_told(self, source):
        """As of deletions; it may use the object."""
        told: list[Any] = []

        def listener(*event: Any) -> None:
            told.append(event)
            lazy.mark_for_invalidation("u:1")
            assert lazy.get("u:1") == "[u:1]"

        cache: TTLCache[Any, Any] = TTLCache(None, None, listener=listener)
        cache.set_many({"t:1": 1, "u:2": 2})
        with LazyInvalidation(cache, source, start=False) as lazy:
            lazy.mark_for_invalidation("t:1")
            lazy.reclaim()
            assert told == [("t:1", 1, "deleted")]
            assert lazy.stats().marks == 1  # it was made meanwhile, and is not waited for

    def test_another_walk_at_the_same_time(self, lazy):
        """Two that meet the same mark are content."""
        lazy.mark_pattern_for_invalidation("t:*")
        walk = lazy._walk()
        assert walk.step()
        assert lazy.reclaim() == 2 * STEP
        assert walk.finish() == STEP
        assert left(lazy) == ALL | {"t": 0}
        assert lazy.stats().retired == 1


class TestSteps:
    def test_a_step_is_bounded(self, lazy):
        """A walk over many entries goes so many at a time."""
        lazy.mark_all_for_invalidation()
        walk, gone = lazy._walk(), []
        while walk.step():
            gone.append(walk.reclaimed - sum(gone))
        assert gone == [STEP] * 6
        assert left(lazy) == {"t": 0, "u": 0}

    def test_keys_share_a_step(self, lazy):
        """Many marks of keys are one step; a listing is one by itself."""
        for n in range(STEP - 1):
            lazy.mark_for_invalidation(f"t:{n}")
        lazy.mark_tag_for_invalidation("none")
        lazy.mark_pattern_for_invalidation("none*")
        walk = lazy._walk()
        assert [walk.step(), walk.step()] == [True, False]
        assert walk.reclaimed == STEP - 1

    def test_the_oldest_mark_comes_first(self, lazy):
        """Whatever its kind; what is marked again moves to the end."""
        lazy.mark_pattern_for_invalidation("u:1")
        lazy.mark_for_invalidation("u:2")
        lazy.mark_pattern_for_invalidation("u:3")
        lazy.mark_pattern_for_invalidation("u:1")
        gone = []
        walk = lazy._walk()
        while lazy.stats().marks:
            walk.step()
            gone.append([n for n in (1, 2, 3) if f"u:{n}" not in lazy.cache])
        assert gone == [[2, 3], [1, 2, 3]]

    def test_an_entry_that_changes_between_look_and_drop(self, lazy):
        """What is judged is what goes."""
        lazy.mark_for_invalidation("t:1")
        look = lazy.cache._look_kept

        class Changing:
            """The cache, in which the entry is replaced right after the look."""

            def _look_kept(self, key: Any, default: Any) -> Any:
                value = look(key, default)
                lazy.get("t:1")
                return value

            def __getattr__(self, name: str) -> Any:
                return getattr(lazy.cache, name)

        walk = lazy_walker.Walk(Changing(), lazy._marks, lazy._stamps)
        assert walk.finish() == 0
        assert lazy.cache._look("t:1", None) == "[t:1]"

    def test_a_mark_that_is_made_again_during_its_walk(self, lazy):
        """The walk retires the old one alone."""
        lazy.mark_pattern_for_invalidation("t:*")
        walk = lazy._walk(last=1)
        walk.step()
        assert lazy.get("t:1") == "[t:1]"
        lazy.mark_pattern_for_invalidation("t:*")
        assert walk.finish() >= 3 * STEP - 1  # it may have met the key before
        assert (lazy.stats().marks, lazy.stats().retired) == (1, 0)
        assert lazy.reclaim() == 1
        assert left(lazy) == ALL | {"t": 0}

    def test_a_step_that_fails(self, lazy):
        """The mark stays, and its walk begins anew."""
        broken = [True]

        def hook() -> None:
            if broken:
                raise OSError("eq")

        lazy.cache.set(Key("a"), 1)
        lazy.mark_for_invalidation(Key("a", hook=hook))
        with pytest.raises(OSError, match="eq"):
            lazy.reclaim()
        assert lazy.stats().marks == 1
        broken.clear()
        assert lazy.reclaim() == 1


class TestThread:
    def started(self, lazy: Any, **options: Any) -> Any:
        """The same cache with a walker."""
        return LazyInvalidation(lazy.cache, lazy.data_source, **{"pause": 1e-4, **options})

    @pytest.mark.parametrize("mark", MARKS)
    def test_marks_are_walked_off(self, lazy, mark):
        """In the background, with nobody asking."""
        with self.started(lazy) as walked:
            MARKS[mark][0](walked)
            assert wait_until(lambda: walked.stats().marks == 0)
            assert left(lazy) == MARKS[mark][1]

    def test_it_sleeps_and_wakes(self, lazy):
        """Between bursts of marks it waits without a timer."""
        with self.started(lazy) as walked:
            for n in range(5):
                assert wait_until(lambda: walked._walker._asleep)
                walked.mark_for_invalidation(f"t:{n}")
                assert wait_until(lambda: walked.stats().retired == n + 1)  # noqa: B023

    def test_it_pauses(self, lazy, monkeypatch):
        """After each step, so that it takes a share of the time only."""
        slept: list[Any] = []
        turn = lazy_walker.Walker.turn

        def noted(self: Any, walk: Any) -> Any:
            slept.append(turn(self, walk))
            return slept[-1]

        monkeypatch.setattr(lazy_walker.Walker, "turn", noted)
        with self.started(lazy, pause=0.002) as walked:
            walked.mark_pattern_for_invalidation("t:*")
            assert wait_until(lambda: walked.stats().marks == 0)
            assert wait_until(lambda: slept[-1] is None)
        assert slept.count(0.002) >= 3

    def test_its_name(self, lazy):
        """It is a daemon, named after its object."""
        with self.started(lazy, name="users"):
            assert [(t.name, t.daemon) for t in walkers()] == [("lapse-lazy-users", True)]
        assert wait_until(lambda: not walkers())
        with self.started(lazy) as walked:
            walked.start_walker()
            assert [t.name for t in walkers()] == ["lapse-lazy"]

    def test_it_ends_with_close(self, lazy):
        """Soon, in the midst of a walk and of a long pause; nothing marked stays."""
        for pause in (1e-4, 1000):
            walked = self.started(lazy, pause=pause)
            walked.mark_for_invalidation("t:1")
            walked.mark_pattern_for_invalidation("t:*")
            begun = time.monotonic()
            walked.close()
            assert wait_until(lambda: not walkers())
            assert time.monotonic() - begun < PATIENCE
            assert left(lazy)["t"] == 0

    def test_it_ends_with_its_object(self, lazy):
        """A forgotten one dies by its reference count, and what it had marked still goes."""
        gc.disable()
        try:
            objects = [self.started(lazy, pause=500)]
            gone = weakref.ref(objects[0])
            assert wait_until(lambda: objects[0]._walker._asleep)
            objects[0].mark_pattern_for_invalidation("t:*")
            objects.clear()
            assert wait_until(lambda: gone() is None)
            assert wait_until(lambda: not walkers())
        finally:
            gc.enable()
        assert left(lazy)["t"] == 0

    def test_it_ends_with_the_cache(self, lazy):
        """A closed cache has nothing to walk over; nothing is logged."""
        cache: TTLCache[Any, Any] = TTLCache(None, None)
        with LazyInvalidation(cache, MappingSource(), pause=1e-4) as walked:
            cache.set_many({f"t:{n}": n for n in range(5 * STEP)})
            walked.mark_pattern_for_invalidation("t:*")
            cache.close()
            assert wait_until(lambda: walked._walker._asleep)
        assert walked.stats().errors == 0

    def test_it_survives_errors(self, lazy, monkeypatch, caplog):
        """They are logged and counted, and the walk begins anew after a while."""
        monkeypatch.setattr(lazy_walker, "ERROR_PAUSE", 1e-3)
        broken = threading.Event()

        def hook() -> None:
            if not broken.is_set():
                raise OSError("eq")

        lazy.cache.set(Key("a"), 1)
        with caplog.at_level(logging.ERROR, "lapse.lazy"), self.started(lazy) as walked:
            walked.mark_for_invalidation(Key("a", hook=hook))
            assert wait_until(lambda: walked.stats().errors >= 2)
            assert "failed" in caplog.text
            broken.set()
            assert wait_until(lambda: walked.stats().marks == 0)
        assert Key("a") not in lazy.cache

    def test_a_listener_that_closes(self, source):
        """It runs in the walker's thread, which does not wait for itself."""
        done = threading.Event()

        def listener(*event: Any) -> None:
            walked.close()
            done.set()

        cache: TTLCache[Any, Any] = TTLCache(None, None, listener=listener)
        cache.set_many({"t:1": 1, "t:2": 2})
        walked = LazyInvalidation(cache, source, pause=1e-4)
        walked.mark_pattern_for_invalidation("t:*")
        assert done.wait(PATIENCE)
        assert wait_until(lambda: not walkers())

    def test_readers_beside_it(self, lazy):
        """They get new values throughout, and none that the walker should have removed."""
        source, stop = lazy.data_source, threading.Event()
        seen: list[Any] = []

        def read() -> None:
            while not stop.is_set():
                for n in range(0, 3 * STEP, 97):
                    seen.append((floor[0], int(walked.get(f"t:{n}"))))

        with self.started(lazy) as walked:
            floor = [0]
            for n in range(3 * STEP):
                source.write(f"t:{n}", "0")
            walked.mark_table_for_invalidation("t")
            reader = threading.Thread(target=read)
            reader.start()
            assert wait_until(lambda: seen)
            for version in range(1, 8):
                for n in range(0, 3 * STEP, 97):
                    source.write(f"t:{n}", str(version))
                walked.mark_table_for_invalidation("t")
                floor[0] = version
                assert wait_until(lambda: walked.stats().marks == 0)
            stop.set()
            reader.join(PATIENCE)
            assert all(got >= floor for floor, got in seen)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestFork:
    @pytest.mark.parametrize("start", [True, False])
    def test_a_child_walks_on(self, lazy, start):
        """A child has a walker of its own if its parent had one, and the marks that it inherits."""
        walked = LazyInvalidation(lazy.cache, lazy.data_source, pause=500, start=start)
        if start:
            assert wait_until(lambda: walked._walker._asleep)
        walked._walker._asleep = False
        walked.mark_pattern_for_invalidation("t:*")
        walked._walker._pause = 1e-4

        def work() -> None:
            if start:
                assert wait_until(lambda: walked.stats().marks == 0)
            assert bool(walkers()) is start
            assert walked.get("t:1") == "[t:1]"
            walked.mark_for_invalidation("u:1")
            assert walked.get("u:1") == "[u:1]"
            walked.close()
            assert left(lazy)["t"] <= 1
            assert wait_until(lambda: not walkers())

        assert in_child(work) == 0
        assert left(lazy) == ALL
        walked.close()

    @pytest.mark.skipif(
        FREE_THREADED, reason="CPython may fork while another thread holds an object's own lock"
    )
    def test_a_fork_while_threads_mark(self, lazy):
        """Whatever the others are doing, the child can mark, read and close."""
        stop = threading.Event()

        def mark() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                walked.mark_for_invalidation(f"t:{n % 50}")
                walked.mark_pattern_for_invalidation(f"u:{n % 7}*")
                walked.get(f"t:{n % 60}")

        def work() -> None:
            walked.mark_for_invalidation("t:1")
            assert walked.get("t:1") == "[t:1]"
            walked.mark_all_for_invalidation()
            walked.close()
            assert len(lazy.cache) == 0

        walked = LazyInvalidation(lazy.cache, lazy.data_source, max_marks=16, pause=1e-4)
        threads = [threading.Thread(target=mark) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            assert [in_child(work) for _ in range(6)] == [0] * 6
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        walked.close()

    def test_a_fork_under_the_lock(self, lazy):
        """A child whose parent's other thread held the lock has a free one."""
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            with lazy._marks._lock, lazy._lock, lazy.data_source._lock:
                held.set()
                go.wait(PATIENCE)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(PATIENCE)

        def work() -> None:
            lazy.mark_for_invalidation("t:1")
            assert lazy.get("t:1") == "[t:1]"
            lazy.close()

        assert in_child(work) == 0
        go.set()
        thread.join()


def test_a_walker_that_was_never_started():
    """It can be woken and stopped."""
    cache: TTLCache[Any, Any] = TTLCache(None, None)
    lazy = LazyInvalidation(cache, MappingSource(), start=False)
    lazy.mark_for_invalidation("t:1")
    lazy.close()
    assert not walkers()
