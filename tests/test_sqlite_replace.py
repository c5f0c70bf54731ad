"""The changes of an SQLite file: rows that another one pushes out, for which no trigger runs."""

from __future__ import annotations

import pytest

from sqlite_support import brief, changes_of, read_now, watching

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE, name)"


_watch = watching()


class TestReplace:
    """Rows that another one pushes out, for which SQLite runs no trigger."""

    ROWS = USERS + "; INSERT INTO users VALUES (1, 'a@', 'Ada'), (2, 'b@', 'Bob')"

    @pytest.mark.parametrize("recursive", [0, 1])
    def test_insert_or_replace(self, watch, recursive):
        """All rows in the way are deleted, before the new one is inserted, and each once."""
        db, source = watch(self.ROWS)
        db.execute(f"PRAGMA recursive_triggers = {recursive}")
        db.execute("INSERT OR REPLACE INTO users VALUES (1, 'b@', 'Cy')")
        found = brief(read_now(source))
        assert sorted(found[:-1]) == [
            ("delete", (1, "a@", "Ada"), None),
            ("delete", (2, "b@", "Bob"), None),
        ]
        assert found[-1] == ("insert", None, (1, "b@", "Cy"))

    @pytest.mark.parametrize("recursive", [0, 1])
    def test_update_or_replace(self, watch, recursive):
        """An update that pushes a row out deletes it."""
        db, source = watch(self.ROWS)
        db.execute(f"PRAGMA recursive_triggers = {recursive}")
        db.execute("UPDATE OR REPLACE users SET email = 'b@' WHERE id = 1")
        assert brief(read_now(source)) == [
            ("delete", (2, "b@", "Bob"), None),
            ("update", (1, "a@", "Ada"), (1, "b@", "Ada")),
        ]

    def test_a_constraint_of_the_table(self, watch):
        """ON CONFLICT REPLACE in the schema does the same to a plain INSERT."""
        db, source = watch("CREATE TABLE users (id INTEGER PRIMARY KEY ON CONFLICT REPLACE, n)")
        db.execute("INSERT INTO users VALUES (1, 'old')")
        read_now(source)
        db.execute("INSERT INTO users VALUES (1, 'new')")
        assert brief(read_now(source)) == [
            ("delete", (1, "old"), None),
            ("insert", None, (1, "new")),
        ]

    def test_upserts(self, watch):
        """An upsert is the update that it does."""
        db, source = watch(self.ROWS)
        upsert = "INSERT INTO users VALUES (?, ?, 'Cy') ON CONFLICT ({}) DO UPDATE SET name = 'Cy'"
        db.execute(upsert.format("id"), (1, "z@"))
        db.execute(upsert.format("email"), (9, "b@"))
        db.execute("INSERT INTO users VALUES (1, 'y@', 'Di') ON CONFLICT DO NOTHING")
        assert brief(read_now(source)) == [
            ("update", (1, "a@", "Ada"), (1, "a@", "Cy")),
            ("update", (2, "b@", "Bob"), (2, "b@", "Cy")),
        ]

    def test_what_was_ignored_is_not_told_later(self, watch):
        """A row that an OR IGNORE met is told of only when it really goes."""
        db, source = watch(self.ROWS)
        db.execute("INSERT OR IGNORE INTO users VALUES (5, 'a@', 'Eve')")
        db.execute("UPDATE users SET email = 'c@' WHERE id = 1")
        db.execute("INSERT INTO users VALUES (5, 'a@', 'Eve')")
        assert brief(read_now(source)) == [
            ("update", (1, "a@", "Ada"), (1, "c@", "Ada")),
            ("insert", None, (5, "a@", "Eve")),
        ]

    def test_many_rows_in_a_statement(self, watch):
        """Each row of one statement pushes out its own, those of the same statement too."""
        db, source = watch(self.ROWS)
        db.execute("INSERT OR REPLACE INTO users VALUES (3, 'a@', 'X'), (3, 'b@', 'Y')")
        found = brief(read_now(source))
        assert found[:2] == [("delete", (1, "a@", "Ada"), None), ("insert", None, (3, "a@", "X"))]
        assert sorted(found[2:4]) == [
            ("delete", (2, "b@", "Bob"), None),
            ("delete", (3, "a@", "X"), None),
        ]
        assert found[4:] == [("insert", None, (3, "b@", "Y"))]

    def test_a_default_instead_of_null(self, watch):
        """OR REPLACE puts a default in the place of NULL, and that pushes a row out."""
        db, source = watch(
            "CREATE TABLE users (id INTEGER PRIMARY KEY, k TEXT NOT NULL DEFAULT 'it''s' UNIQUE);"
            "INSERT INTO users VALUES (1, 'it''s')"
        )
        db.execute("INSERT OR REPLACE INTO users VALUES (2, NULL)")
        assert brief(read_now(source)) == [
            ("delete", (1, "it's"), None),
            ("insert", None, (2, "it's")),
        ]

    @pytest.mark.parametrize(
        ("index", "old", "new", "pushed"),
        [
            ("users (name COLLATE NOCASE)", "Ada", "ADA", True),
            ("users (lower(name))", "Ada", "ADA", True),
            ("users (lower(name) || ',(' DESC) -- it's (a, b)", "Ada", "ADA", True),
            ("users ((name))", "Ada", "ADA", False),
            ("users (name) WHERE email IS NULL", "Ada", "Ada", True),
            ("users (name) WHERE users.email IS NOT NULL", "Ada", "Ada", False),
            ("users (id, [name])", "Ada", "Ada", False),
        ],
    )
    def test_unique_indexes(self, watch, index, old, new, pushed):
        """Indexes with collations, expressions and conditions push out what they cover."""
        db, source = watch(f"{USERS}; CREATE UNIQUE INDEX i ON {index}")
        db.execute("INSERT INTO users (id, name) VALUES (1, ?)", (old,))
        read_now(source)
        db.execute("INSERT OR REPLACE INTO users (id, name) VALUES (2, ?)", (new,))
        gone = [("delete", (1, None, old), None)] if pushed else []
        assert brief(read_now(source)) == [*gone, ("insert", None, (2, None, new))]
        assert db.execute("SELECT count(*) FROM users").fetchone() == (1 if pushed else 2,)

    def test_a_new_row_outside_a_partial_index(self, watch):
        """A row that the condition does not cover pushes nothing out."""
        db, source = watch(f"{USERS}; CREATE UNIQUE INDEX i ON users (name) WHERE email IS NULL")
        db.execute("INSERT INTO users VALUES (1, NULL, 'Ada')")
        db.execute("INSERT OR REPLACE INTO users VALUES (2, 'a@', 'Ada')")
        assert [c["operation"] for c in changes_of(read_now(source))] == ["insert", "insert"]

    def test_generated_columns(self, watch):
        """A generated column is part of the row, and may be what is unique."""
        db, source = watch("CREATE TABLE users (id INTEGER PRIMARY KEY, g AS (id % 10) UNIQUE)")
        db.execute("INSERT INTO users VALUES (3)")
        db.execute("INSERT OR REPLACE INTO users VALUES (13)")
        assert brief(read_now(source)) == [
            ("insert", None, (3, 3)),
            ("delete", (3, 3), None),
            ("insert", None, (13, 3)),
        ]
