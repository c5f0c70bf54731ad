"""The changes of an SQLite file: tables that change while they are captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lapse.invalidation.source import Batch, Resync
from sqlite_support import JOURNALS, Setting, brief, changes_of, keys, read_now, reasons_of


@pytest.fixture(params=JOURNALS)
def here(tmp_path: Any, request: pytest.FixtureRequest) -> Iterator[Setting]:
    """A file in each journal mode."""
    setting = Setting(tmp_path, request.param)
    yield setting
    setting.close()


class TestSchema:
    """Tables that change their shape while they are captured."""

    def test_a_new_column(self, here):
        """ALTER TABLE ADD COLUMN is a resync, and the column is there from then on."""
        source = here.source()
        here.insert()
        here.db.execute("ALTER TABLE users ADD COLUMN age INTEGER DEFAULT 5")
        events = read_now(source)
        assert reasons_of(events) == ["the triggers of users were made anew"]
        assert brief(events) == [("insert", None, (1, None))]
        here.insert()
        assert brief(read_now(source)) == [("insert", None, (2, None, 5))]

    def test_every_reader_learns_of_it(self, here):
        """Whoever makes the triggers anew, all readers resync, those that are away too."""
        one, two = here.source(), here.source()
        here.source(consumer="away").close()
        here.db.execute("ALTER TABLE users RENAME COLUMN name TO title")
        here.insert()
        for source in (one, two, here.source(consumer="away")):
            assert reasons_of(read_now(source)) == ["the triggers of users were made anew"]
            assert reasons_of(read_now(source)) == []

    def test_dropped_and_made_anew(self, here):
        """A table that goes is a resync, and so is one that comes back."""
        source = here.source()
        here.db.execute("DROP TABLE users")
        assert reasons_of(read_now(source)) == ["users is gone"]
        here.db.execute("CREATE TABLE users (id TEXT PRIMARY KEY)")
        assert reasons_of(read_now(source)) == ["the triggers of users were made anew"]
        here.insert()
        assert keys(read_now(source)) == ["1"]

    def test_a_migration_in_twelve_steps(self, here):
        """A table that a copy takes the place of, as SQLite advises for changes of a schema."""
        source = here.source()
        here.insert()
        read_now(source)
        here.db.executescript(
            "BEGIN; CREATE TABLE new_users (id INTEGER PRIMARY KEY, name TEXT NOT NULL DEFAULT '');"
            "INSERT INTO new_users SELECT id, coalesce(name, '') FROM users;"
            "DROP TABLE users; ALTER TABLE new_users RENAME TO users; COMMIT"
        )
        assert reasons_of(read_now(source)) == ["the triggers of users were made anew"]
        here.insert()
        assert brief(read_now(source)) == [("insert", None, (2, ""))]

    def test_a_new_unique_index(self, here):
        """A row that a new index lets others push out is captured."""
        source = here.source()
        here.db.execute("INSERT INTO users VALUES (100, 'Ada')")
        here.db.execute("CREATE UNIQUE INDEX by_name ON users (name)")
        assert reasons_of(read_now(source)) == ["the triggers of users were made anew"]
        here.db.execute("INSERT OR REPLACE INTO users VALUES (101, 'Ada')")
        assert brief(read_now(source)) == [
            ("delete", (100, "Ada"), None), ("insert", None, (101, "Ada")),
        ]  # fmt: skip

    def test_somebody_dropped_a_trigger(self, here):
        """A trigger that is gone is made again, and whoever cannot know what was missed resyncs."""
        source = here.source()
        here.db.execute('DROP TRIGGER "lapse delete users"')
        assert reasons_of(read_now(source)) == ["the triggers of users were made anew"]
        here.insert()
        here.db.execute("DELETE FROM users")
        assert len(changes_of(read_now(source))) == 2

    def test_other_changes_of_the_schema(self, here):
        """What does not concern the tables is no resync."""
        source = here.source()
        here.db.execute("CREATE TABLE other (x)")
        here.db.execute("CREATE INDEX plain ON users (name)")
        here.db.execute("VACUUM")
        assert reasons_of(read_now(source)) == []

    def test_vacuum_may_number_rows_anew(self, here):
        """Where the rowid is the key a VACUUM is a resync, for who was away too."""
        here.db.execute("CREATE TABLE log (line)")
        source = here.source(["log"])
        here.source(["log"], consumer="away").close()
        here.db.execute("INSERT INTO log VALUES ('a'), ('b')")
        here.db.execute("DELETE FROM log WHERE line = 'a'")
        read_now(source)
        here.db.execute("VACUUM")
        assert here.db.execute("SELECT rowid FROM log").fetchall() == [(1,)]
        assert reasons_of(read_now(source)) == ["the rowids of log may be others"]
        away = here.source(["log"], consumer="away")
        assert reasons_of(read_now(away)) == ["the rowids of log may be others"]
        assert reasons_of(read_now(away)) == []

    def test_a_view_in_the_place_of_a_table(self, here):
        """While a table cannot be captured, every commit is a resync; others go on."""
        here.db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        source = here.source(["users", "orders"])
        here.db.executescript("DROP TABLE users; CREATE VIEW users AS SELECT 1 AS id")
        assert len(reasons_of(read_now(source))) == 1
        here.db.execute("INSERT INTO orders VALUES (1)")
        events = read_now(source)
        assert len(reasons_of(events)) == 1
        assert keys(events) == [1]

    def test_a_row_that_cannot_be_read(self, here):
        """A row of the outbox that is not the triggers' is a resync, and the rest is read."""
        source = here.source()
        here.insert()
        here.db.execute(
            "INSERT INTO lapse_changes (\"table\", operation, layout) VALUES ('users', 'x', '{')"
        )
        here.insert()
        events = read_now(source)
        assert [type(event) for event in events] == [Batch, Resync, Batch]
        assert keys(events) == [1, 2]
        assert source.counts.poison == 1
