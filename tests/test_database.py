"""DatabaseChangeInvalidation: a cache kept true by the changes of a database."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

import lapse
from lapse.sources.database import DatabaseChangeInvalidation
from lapse.sources.polled import PolledChanges
from lapse.sources.sqlite import SQLiteChanges
from sqlite_support import make_file
from support import SOON, in_child_of_another_thread, wait_until

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, email)"


class Database:
    """What the reference asks of a database: each answer once, an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    def get_recent_changes(self) -> Any:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def cache() -> Iterator[Any]:
    """A cache with a few entries."""
    with lapse.TTLCache(None, cleanup_interval=None) as cache:
        cache.set_many({"users:1": "Ada", "users:2": "Bob", "orders:7": 7})
        cache.set("page", "html", tags=["user-1"])
        yield cache


@pytest.fixture
def watch(cache: Any) -> Iterator[Any]:
    """Makes invalidations for the cache, which end with the test; asks every millisecond."""
    made: list[DatabaseChangeInvalidation] = []

    def make(database: Any, **options: Any) -> DatabaseChangeInvalidation:
        made.append(DatabaseChangeInvalidation(cache, database, **{"interval": 0.001, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def sqlite(tmp_path: Any) -> Iterator[Any]:
    """A file, a connection that wakes the source, and the source."""
    make_file(tmp_path / "data.db", USERS).close()
    source = SQLiteChanges(tmp_path / "data.db", ["users"])
    connection = source.connect(isolation_level=None)
    yield connection, source
    connection.close()
    source.close()


class TestReference:
    """The surface that the reference class has."""

    def test_listeners(self, cache, watch):
        """A change reaches the listeners of its table and those of all, and removes nothing."""
        seen: list[Any] = []
        invalidation = watch(Database([{"table": "users"}, {"table": "orders"}]), start=False)
        invalidation.add_change_listener("users", lambda change: seen.append(("users", change)))
        invalidation.add_change_listener("*", lambda change: seen.append(("*", change["table"])))
        invalidation.start_change_monitoring()
        assert wait_until(lambda: len(seen) == 3)
        assert seen == [("users", {"table": "users"}), ("*", "users"), ("*", "orders")]
        assert len(cache) == 4

    def test_by_hand(self, cache, watch):
        """invalidate_by_table and invalidate_by_key remove at once, and say how many."""
        invalidation = watch(Database())
        assert invalidation.invalidate_by_key("users:1") == 1
        assert invalidation.invalidate_by_key("users:1") == 0
        assert invalidation.invalidate_by_table("users") == 1
        assert sorted(cache) == ["orders:7", "page"]
        with pytest.raises(TypeError):
            invalidation.invalidate_by_key([])

    def test_it_starts_when_it_is_made(self, cache, watch):
        """Without start=False the thread runs, under its name."""
        watch(Database([{"table": "users", "id": 1}]), name="mine")
        assert wait_until(lambda: "users:1" not in cache)
        assert "lapse-mine" in {thread.name for thread in threading.enumerate()}

    def test_neither(self, cache):
        """A database that is no source and cannot be asked is refused."""
        with pytest.raises(TypeError, match="get_recent_changes"):
            DatabaseChangeInvalidation(cache, object())

    def test_a_stand_in(self, cache, watch):
        """An object that has every attribute is asked for its changes."""
        database = MagicMock()
        database.get_recent_changes.side_effect = [[{"table": "users", "id": 2}], *[[]] * 1000]
        watch(database)
        assert wait_until(lambda: "users:2" not in cache)


class TestPolled:
    """A database that is asked."""

    def test_templates(self, cache, watch):
        """What the templates say goes, and only that."""
        changes = [{"table": "users", "id": 1}, {"table": "orders", "id": 9}]
        watch(Database(changes), tags={"users": "user-{id}"}, keys={"orders": "users:2"})
        assert wait_until(lambda: sorted(cache) == ["orders:7", "users:1"])

    def test_an_exception(self, cache, watch, caplog):
        """A question that fails is logged, counted, told and repeated; nothing else goes."""
        alerts: list[Any] = []
        database = Database(OSError("no line"), [{"table": "users", "id": 1}])
        invalidation = watch(database, on_alert=alerts.append)
        assert wait_until(lambda: "users:1" not in cache)
        assert len(cache) == 3
        assert [(each.kind, str(each.error)) for each in alerts] == [("dead", "no line")]
        assert invalidation.stats().errors == 1
        assert "no line" in caplog.text

    def test_half_an_answer(self, cache, watch):
        """An answer that breaks off half-way empties the cache: the rest is not known."""

        def answer() -> Iterator[Any]:
            yield {"table": "users", "id": 1}
            raise OSError("no line")

        invalidation = watch(Database(answer()))
        assert wait_until(lambda: not cache)
        assert wait_until(lambda: invalidation.stats().errors == 1)

    @pytest.mark.parametrize("bad", [5, {"id": 1}, {"table": None}])
    def test_no_change(self, cache, watch, bad):
        """What is no change is counted, and empties the cache: nobody knows what it meant."""
        invalidation = watch(Database([{"table": "users"}, bad]))
        assert wait_until(lambda: not cache)
        assert wait_until(lambda: invalidation.stats().poison == 1)

    def test_nothing(self, cache, watch):
        """None is no changes."""
        database = Database(None, None)
        watch(database)
        assert wait_until(lambda: database.asked > 3)
        assert len(cache) == 4

    def test_close(self, watch):
        """A close in the middle of a long interval takes no time."""
        invalidation = watch(Database(), interval=1000.0)
        begun = time.monotonic()
        invalidation.close()
        assert time.monotonic() - begun < SOON
        assert wait_until(lambda: not invalidation.receiver.running)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_while_it_waits(self, cache, watch):
        """The child has a lock of its own to wait at: it goes on, and it ends."""
        database = Database()
        invalidation = watch(database, interval=60)
        assert wait_until(lambda: database.asked == 1)

        def work() -> None:
            assert wait_until(lambda: invalidation.stats().resyncs == {"fork": 1})
            assert wait_until(lambda: database.asked == 2)
            invalidation.close()
            assert wait_until(lambda: not invalidation.receiver.running)

        with invalidation.receiver.source._stop._cond:
            assert in_child_of_another_thread(work) == 0

    def test_a_source_that_cannot_be_closed(self, cache):
        """What it raises reaches the caller; what waits is applied, and the rest refused."""

        class Stuck(PolledChanges):
            def close(self) -> None:
                super().close()
                raise OSError("stuck")

        invalidation = DatabaseChangeInvalidation(cache, Stuck(Database()), start=False)
        invalidation.queue.invalidate_key("users:1")
        with pytest.raises(OSError, match="stuck"):
            invalidation.close()
        assert invalidation.closed
        assert "users:1" not in cache

    def test_interval(self):
        """An interval is positive."""
        with pytest.raises(ValueError, match="interval"):
            PolledChanges(Database(), 0)


class TestSQLite:
    """A source whose rows change."""

    def test_rows(self, cache, watch, sqlite):
        """The old and the new row of a change count."""
        db, source = sqlite
        cache.set_many({"email:a@": 1, "email:b@": None})
        watch(source, keys={"users": ["users:{id}", "email:{email}"]})
        db.execute("INSERT INTO users VALUES (1, 'a@')")
        assert wait_until(lambda: "email:a@" not in cache)
        cache["email:a@"] = 1
        db.execute("UPDATE users SET email = 'b@'")
        assert wait_until(lambda: "email:b@" not in cache)
        assert sorted(cache) == ["orders:7", "page", "users:2"]

    def test_listeners_come_after(self, cache, watch, sqlite):
        """When a listener is called, what follows from the change is in force."""
        db, source = sqlite
        seen: list[Any] = []
        invalidation = watch(source)
        invalidation.add_change_listener("users", lambda change: seen.append("users:1" in cache))
        db.execute("INSERT INTO users VALUES (1, 'a@')")
        assert wait_until(lambda: seen)
        assert seen == [False]

    def test_a_listener_that_fails(self, cache, watch, sqlite, caplog):
        """What a listener raises is logged and counted, and the next one is called."""
        db, source = sqlite
        seen: list[Any] = []
        invalidation = watch(source)
        invalidation.add_change_listener("users", lambda change: 1 / 0)
        invalidation.add_change_listener("users", seen.append)
        db.execute("INSERT INTO users VALUES (1, 'a@'), (2, 'b@')")
        assert wait_until(lambda: len(seen) == 2)
        assert invalidation.listener_errors == 2
        assert "ZeroDivisionError" in caplog.text
        with pytest.raises(TypeError, match="callable"):
            invalidation.add_change_listener("users", None)

    def test_a_position_is_kept_when_it_is_in_force(self, cache, watch, sqlite):
        """A named consumer's position is that of the last change that was applied."""
        db, source = sqlite
        named = SQLiteChanges(source.path, ["users"], consumer="cache")
        invalidation = watch(named)
        db.execute("INSERT INTO users VALUES (1, 'a@')")
        last = db.execute("SELECT max(sequence) FROM lapse_changes").fetchone()[0]
        assert wait_until(lambda: named.stats().position == last)
        assert "users:1" not in cache
        invalidation.close()
        (position,) = db.execute("SELECT sequence FROM lapse_consumers").fetchone()
        assert position == last

    def test_a_resync_empties_the_cache(self, cache, watch, sqlite):
        """A change of the schema may have hidden changes, and alerts."""
        db, source = sqlite
        alerts: list[Any] = []
        watch(source, on_alert=alerts.append)
        db.execute("ALTER TABLE users ADD COLUMN age")
        assert wait_until(lambda: not cache)
        assert wait_until(lambda: [each.kind for each in alerts] == ["resync"])

    def test_a_template_that_fails(self, cache, watch, sqlite):
        """A template with a column that is not there removes the whole table, and is counted."""
        db, source = sqlite
        invalidation = watch(source, keys={"users": "users:{nope}"})
        db.execute("INSERT INTO users VALUES (9, 'a@')")
        assert wait_until(lambda: sorted(cache) == ["orders:7", "page"])
        assert invalidation.get_stats()["template_errors"] == 1

    def test_figures(self, cache, watch, sqlite):
        """The statistics know the latency, and are ready for JSON."""
        db, source = sqlite
        invalidation = watch(source)
        db.execute("INSERT INTO users VALUES (1, 'a@')")
        assert wait_until(lambda: invalidation.stats().applied == 1)
        stats = invalidation.stats()
        assert (stats.messages, stats.removed) == (1, 1)
        assert 0 <= stats.latency_p99 < 10
        assert json.loads(json.dumps(invalidation.get_stats()))["name"] == "database-changes"
        assert source.get_stats()["changes"] == 1

    def test_no_load_brings_back_the_old_row(self, cache, watch, sqlite):
        """A load that read before the change is not stored after it."""
        db, source = sqlite
        db.execute("INSERT INTO users VALUES (1, 'a@')")
        invalidation = watch(source)
        lease = cache.lease("users:1")
        row = db.execute("SELECT * FROM users").fetchone()
        db.execute("UPDATE users SET email = 'b@'")
        assert wait_until(lambda: lease.outdated)
        assert not cache.fill(lease, row)
        invalidation.close()
