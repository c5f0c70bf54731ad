"""The changes of an SQLite file: every statement that changes a row is captured as what it did."""

from __future__ import annotations

import sqlite3

import pytest

from lapse.invalidation.source import Source
from lapse.sources.sqlite import SQLiteChanges
from lapse.sources.sqlite.install import install
from sqlite_support import brief, changes_of, read_now, reasons_of, watching

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE, name)"


_watch = watching()


class TestPlainStatements:
    """What INSERT, UPDATE and DELETE say."""

    def test_it_is_a_source(self, watch):
        """It has what a receiver asks of a source."""
        _, source = watch(USERS)
        assert isinstance(source, Source)
        assert (source.delivery, source.ordered, source.replay) == ("at-least-once", True, True)

    def test_each_operation(self, watch):
        """A change has table, operation, key, the old and the new row, and a rising number."""
        db, source = watch(USERS)
        db.execute("INSERT INTO users VALUES (1, 'a@', 'Ada')")
        db.execute("UPDATE users SET name = 'Augusta' WHERE id = 1")
        db.execute("DELETE FROM users")
        made, updated, deleted = changes_of(read_now(source))
        first, second = ({"id": 1, "email": "a@", "name": n} for n in ("Ada", "Augusta"))
        fixed = {"sequence", "at"}
        assert [
            {k: v for k, v in c.items() if k not in fixed} for c in (made, updated, deleted)
        ] == [
            {"table": "users", "operation": "insert", "key": 1, "old": None, "new": first},
            {"table": "users", "operation": "update", "key": 1, "old": first, "new": second},
            {"table": "users", "operation": "delete", "key": 1, "old": second, "new": None},
        ]
        assert made["sequence"] < updated["sequence"] < deleted["sequence"]

    def test_a_changed_key(self, watch):
        """An update of the key has both keys."""
        db, source = watch(USERS + "; INSERT INTO users VALUES (1, 'a@', 'Ada')")
        db.execute("UPDATE users SET id = 7")
        (change,) = changes_of(read_now(source))
        assert (change["old_key"], change["key"]) == (1, 7)
        assert (change["old"]["id"], change["new"]["id"]) == (1, 7)

    def test_rolled_back(self, watch):
        """What was rolled back, by transaction or savepoint, was never there."""
        db, source = watch(USERS)
        db.execute("BEGIN")
        db.execute("INSERT INTO users (id) VALUES (1)")
        assert read_now(source) == []
        db.execute("ROLLBACK")
        db.execute("BEGIN")
        db.execute("INSERT INTO users (id) VALUES (2)")
        db.execute("SAVEPOINT s")
        db.execute("INSERT INTO users (id) VALUES (3)")
        db.execute("ROLLBACK TO s")
        db.execute("COMMIT")
        assert [c["key"] for c in changes_of(read_now(source))] == [2]

    def test_a_statement_that_fails(self, watch):
        """A statement that breaks a constraint half-way leaves nothing."""
        db, source = watch(USERS + "; INSERT INTO users (id) VALUES (3)")
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("INSERT INTO users (id) VALUES (1), (2), (3), (4)")
        assert brief(read_now(source)) == []

    def test_delete_without_where(self, watch):
        """A DELETE of everything tells of each row."""
        db, source = watch(USERS + "; INSERT INTO users (id) VALUES (1), (2)")
        db.execute("DELETE FROM users")
        assert [c["key"] for c in changes_of(read_now(source))] == [1, 2]

    def test_several_writers_in_order(self, watch):
        """The changes of several connections come in the order of their commits."""
        _db, source = watch(USERS)
        others = [sqlite3.connect(source.path, isolation_level=None) for _ in range(3)]
        for n in range(30):
            others[n % 3].execute("INSERT INTO users (id) VALUES (?)", (n,))
        assert [c["key"] for c in changes_of(read_now(source))] == list(range(30))
        for each in others:
            each.close()

    def test_more_than_one_batch(self, watch):
        """A large transaction comes whole, in pieces."""
        db, source = watch(USERS)
        db.execute("BEGIN")
        db.executemany("INSERT INTO users (id) VALUES (?)", [(n,) for n in range(1234)])
        db.execute("COMMIT")
        events = read_now(source)
        assert len(events) > 1
        assert [c["key"] for c in changes_of(events)] == list(range(1234))

    def test_other_tables(self, watch):
        """Only what was asked for comes, though others capture more."""
        db, source = watch(USERS + "; CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        with_orders = SQLiteChanges(source.path, ["orders", "users"])
        db.execute("INSERT INTO orders VALUES (1)")
        db.execute("INSERT INTO users (id) VALUES (2)")
        assert [c["key"] for c in changes_of(read_now(source))] == [2]
        assert [c["key"] for c in changes_of(read_now(with_orders))] == [1, 2]
        with_orders.close()

    def test_the_writer_notices_nothing(self, watch):
        """last_insert_rowid() and the count of changed rows are what they would be without."""
        db, _source = watch(USERS)
        cursor = db.execute("INSERT INTO users (id) VALUES (41)")
        assert (cursor.lastrowid, cursor.rowcount) == (41, 1)
        assert db.execute("SELECT last_insert_rowid(), changes()").fetchone() == (41, 1)


class TestTables:
    """Tables of every shape."""

    def test_without_rowid_and_composite(self, watch):
        """A table WITHOUT ROWID and with a composite key has tuples for keys."""
        db, source = watch(
            "CREATE TABLE t (b TEXT, a INTEGER, v, PRIMARY KEY (a, b)) WITHOUT ROWID", ["t"]
        )
        db.execute("INSERT INTO t VALUES ('x', 1, 'v')")
        db.execute("INSERT OR REPLACE INTO t VALUES ('x', 1, 'w')")
        db.execute("UPDATE OR REPLACE t SET b = 'y'")
        found = changes_of(read_now(source))
        assert [(c["operation"], c["key"], c.get("old_key")) for c in found] == [
            ("insert", (1, "x"), None),
            ("delete", (1, "x"), None),
            ("insert", (1, "x"), None),
            ("update", (1, "y"), (1, "x")),
        ]

    def test_no_primary_key(self, watch):
        """The rowid is the key of a table without one, and no column of its rows."""
        db, source = watch('CREATE TABLE log (line, "rowid")', ["log"])
        db.execute("INSERT INTO log (_rowid_, line) VALUES (7, 'x')")
        db.execute("INSERT OR REPLACE INTO log (_rowid_, line) VALUES (7, 'y')")
        db.execute("UPDATE log SET _rowid_ = 8")
        found = changes_of(read_now(source))
        assert [(c["operation"], c["key"]) for c in found] == [
            ("insert", 7), ("delete", 7), ("insert", 7), ("update", 8),
        ]  # fmt: skip
        assert found[-1]["old_key"] == 7
        assert found[-1]["new"] == {"line": "y", "rowid": None}

    def test_a_rowid_that_columns_hide(self, watch):
        """All three names of the rowid may be those of columns."""
        db, source = watch("CREATE TABLE t (rowid, oid, _rowid_, id INTEGER PRIMARY KEY)", ["t"])
        db.execute("INSERT INTO t (id, oid) VALUES (5, 'x')")
        db.execute("INSERT OR REPLACE INTO t (id, oid) VALUES (5, 'y')")
        assert [(c["operation"], c["key"]) for c in changes_of(read_now(source))] == [
            ("insert", 5), ("delete", 5), ("insert", 5),
        ]  # fmt: skip

    def test_rows_that_nothing_tells_apart(self, watch):
        """A table with no key, whose rowid cannot be named, is refused."""
        with pytest.raises(ValueError, match="told apart"):
            watch("CREATE TABLE t (rowid, oid, _rowid_)", ["t"])

    def test_names_that_need_quotes(self, watch):
        """Names may hold quotes, brackets, dots, semicolons and keywords."""
        name, column = """we"ird 'table'; DROP TABLE users --[x]""", """it's "a.b" {c} select"""
        quoted = '"' + name.replace('"', '""') + '"', '"' + column.replace('"', '""') + '"'
        db, source = watch(
            f'{USERS}; CREATE TABLE {quoted[0]} ({quoted[1]} PRIMARY KEY, "group" UNIQUE);'
            f'CREATE UNIQUE INDEX "i\'" ON {quoted[0]} ({quoted[1]}, "group")',
            [name],
        )
        db.execute(f"INSERT INTO {quoted[0]} VALUES ('k', 1)")
        db.execute(f"INSERT OR REPLACE INTO {quoted[0]} VALUES ('m', 1)")
        found = changes_of(read_now(source))
        assert [(c["table"], c["key"]) for c in found] == [(name, "k"), (name, "k"), (name, "m")]
        assert found[0]["new"] == {column: "k", "group": 1}

    def test_names_as_they_are_given(self, watch):
        """A table is found in any case of its letters, and reported as it was asked for."""
        db, source = watch(USERS, ["Users"])
        other = SQLiteChanges(source.path, ["users"])
        db.execute("INSERT INTO uSERS (id) VALUES (1)")
        assert [c["table"] for c in changes_of(read_now(source))] == ["Users"]
        assert [c["table"] for c in changes_of(read_now(other))] == ["users"]
        assert reasons_of(read_now(source)) == []
        other.close()

    def test_named_key_columns(self, watch):
        """A mapping names the columns that are reported as the key."""
        db, source = watch(USERS, {"users": ["email", "id"]})
        db.execute("INSERT INTO users VALUES (1, 'a@', 'Ada')")
        db.execute("UPDATE users SET email = 'b@'")
        made, updated = changes_of(read_now(source))
        assert (made["key"], updated["old_key"], updated["key"]) == (
            ("a@", 1), ("a@", 1), ("b@", 1),
        )  # fmt: skip

    def test_foreign_keys(self, watch):
        """What a foreign key cascades to is captured, also from a row that is pushed out."""
        db, source = watch(
            f"{USERS}; CREATE TABLE orders (id INTEGER PRIMARY KEY,"
            " user REFERENCES users ON DELETE CASCADE ON UPDATE SET NULL);"
            "INSERT INTO users (id) VALUES (1), (2), (3);"
            "INSERT INTO orders VALUES (10, 1), (20, 2), (30, 3)",
            ["users", "orders"],
        )
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("DELETE FROM users WHERE id = 1")
        db.execute("INSERT OR REPLACE INTO users (id) VALUES (2)")
        db.execute("UPDATE users SET id = 33 WHERE id = 3")
        found = changes_of(read_now(source))
        orders = [(c["operation"], c["key"]) for c in found if c["table"] == "orders"]
        assert orders == [("delete", 10), ("delete", 20), ("update", 30)]

    def test_triggers_of_the_user(self, watch):
        """What other triggers change is captured too."""
        db, source = watch(
            f"{USERS}; CREATE TABLE audit (n INTEGER PRIMARY KEY);"
            "CREATE TRIGGER mine AFTER INSERT ON users BEGIN"
            " INSERT INTO audit SELECT coalesce(max(n), 0) + 1 FROM audit; END",
            ["users", "audit"],
        )
        db.execute("INSERT INTO users (id) VALUES (1), (2)")
        found = [(c["table"], c["key"]) for c in changes_of(read_now(source))]
        assert sorted(found) == [("audit", 1), ("audit", 2), ("users", 1), ("users", 2)]

    def test_many_columns(self, watch):
        """A table of 300 columns is captured whole."""
        columns = ", ".join(f"c{n}" for n in range(300))
        db, source = watch(f"{USERS}; CREATE TABLE t (id INTEGER PRIMARY KEY, {columns})", ["t"])
        db.execute(f"INSERT INTO t VALUES (1{', 5' * 300})")
        db.execute("UPDATE t SET c299 = 'x'")
        made, updated = changes_of(read_now(source))
        assert len(made["new"]) == 301
        assert (updated["old"]["c299"], updated["new"]["c299"]) == (5, "x")

    def test_a_wider_table_later(self, watch):
        """The outbox grows with the widest table, while others go on."""
        columns = ", ".join(f"c{n}" for n in range(20))
        db, source = watch(f"{USERS}; CREATE TABLE wide (id INTEGER PRIMARY KEY, {columns})")
        wide = SQLiteChanges(source.path, ["wide"])
        db.execute(f"INSERT INTO wide VALUES (1{', 5' * 20})")
        db.execute("INSERT OR REPLACE INTO wide (id) VALUES (1)")
        db.execute("INSERT INTO users VALUES (1, 'a@', 'Ada')")
        assert [c["operation"] for c in changes_of(read_now(wide))] == [
            "insert",
            "delete",
            "insert",
        ]
        assert brief(read_now(source)) == [("insert", None, (1, "a@", "Ada"))]
        wide.close()


class TestWhatIsRefused:
    """Mistakes show when the source is made, and leave the file as it was."""

    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            (["nobody"], "no table 'nobody'"),
            ({"users": ["nope"]}, "columns"),
            (["v"], "view"),
            (["new"], "'new' is what"),
            ([], "no tables"),
        ],
    )
    def test_unknown(self, watch, tables, message):
        """An unknown table or column, a view, a reserved name and no names are ValueErrors."""
        with pytest.raises(ValueError, match=message):
            watch(f"{USERS}; CREATE VIEW v AS SELECT 1; CREATE TABLE new (x)", tables)

    def test_one_name(self, watch):
        """A lone name is refused, because its letters would be the tables."""
        with pytest.raises(TypeError, match="iterable"):
            watch(USERS, "users")

    def test_no_file(self, tmp_path):
        """A file that is not there is not made."""
        with pytest.raises(sqlite3.OperationalError):
            SQLiteChanges(tmp_path / "none.db", ["users"])
        with pytest.raises(ValueError, match="path"):
            SQLiteChanges(":memory:", ["users"])
        assert list(tmp_path.iterdir()) == []

    def test_numbers(self, tmp_path):
        """Seconds and rows out of range are ValueErrors."""
        with pytest.raises(ValueError, match="poll"):
            SQLiteChanges(tmp_path / "x.db", ["users"], poll=0)
        with pytest.raises(ValueError, match="positive"):
            SQLiteChanges(tmp_path / "x.db", ["users"], max_rows=0)

    def test_triggers_that_do_not_compile(self, watch):
        """If statements would fail because of the triggers, the file stays as it was."""
        db, source = watch(USERS)
        source.close()
        SQLiteChanges.uninstall(source.path)
        db.set_authorizer(lambda *what: 1 if str(what[4]).startswith("lapse insert") else 0)
        with pytest.raises(ValueError, match="cannot be captured"):
            install(db, ["users"])
        db.set_authorizer(lambda *what: 0)
        found = db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'lapse%'").fetchall()
        assert found == []

    def test_uninstall(self, watch):
        """Nothing of it stays in the file."""
        db, source = watch(USERS)
        source.close()
        SQLiteChanges.uninstall(source.path)
        found = db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'lapse%'").fetchall()
        assert found == []
        db.execute("INSERT INTO users (id) VALUES (1)")
