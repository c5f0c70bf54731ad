"""Random statements on a table: no cached entry outlives what it was made from."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lapse
from lapse.invalidation import OptimizedInvalidation
from lapse.invalidation.source import Batch
from lapse.sources.sqlite import SQLiteChanges
from lapse.sources.templates import Templates
from sqlite_support import JOURNALS, make_file, read_now

TABLES = {
    "rowid": "CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE, b, UNIQUE (b, a))",
    "without rowid": "CREATE TABLE t (id PRIMARY KEY, a UNIQUE, b, UNIQUE (b, a)) WITHOUT ROWID",
    "no integer key": "CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, a COLLATE NOCASE UNIQUE, b)",
    "conflict clauses": "CREATE TABLE t (id INTEGER PRIMARY KEY ON CONFLICT REPLACE,"
    " a UNIQUE ON CONFLICT IGNORE, b NOT NULL DEFAULT 2 UNIQUE ON CONFLICT REPLACE)",
    "indexes": "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b);"
    "CREATE UNIQUE INDEX i ON t (lower(a)); CREATE UNIQUE INDEX j ON t (b) WHERE a <> 'x'",
}
IDS = [1, 2, 3, 4]
VALUES = [None, "x", "X", 1, 2]
POLICIES = ["", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ROLLBACK"]
KEYS = {"t": ["id:{id}", "a:{a}", lambda row: ("b", row["b"])]}

ids, values, policies = map(st.sampled_from, (IDS, VALUES, POLICIES))
rows = st.tuples(ids, values, values)
columns = st.sampled_from(["id", "a", "b"])
statements = st.one_of(
    st.builds(lambda p, rs: (f"INSERT {p} INTO t VALUES " + ", ".join(["(?, ?, ?)"] * len(rs)),
                             [v for r in rs for v in r]),
              policies, st.lists(rows, min_size=1, max_size=3)),
    st.builds(lambda r: ("INSERT INTO t VALUES (?, ?, ?) ON CONFLICT DO NOTHING", r), rows),
    st.builds(lambda r, c: ("INSERT INTO t VALUES (?, ?, ?) ON CONFLICT (id)"
                            f" DO UPDATE SET {c} = excluded.{c}", r), rows, columns),
    st.builds(lambda p, c, v, i: (f"UPDATE {p} t SET {c} = ? WHERE id >= ?", (v, i)),
              policies, columns, st.one_of(ids, values), ids),
    st.builds(lambda p, i: (f"UPDATE {p} t SET id = id + 1 WHERE id = ?", (i,)), policies, ids),
    st.builds(lambda c, v: (f"DELETE FROM t WHERE {c} IS ?", (v,)), columns, values),
    st.sampled_from([("DELETE FROM t", ()), ("BEGIN", ()), ("COMMIT", ()), ("ROLLBACK", ()),
                     ("SAVEPOINT s", ()), ("ROLLBACK TO s", ()), ("RELEASE s", ())]),
)  # fmt: skip


class Cached:
    """A cache of what queries on the table have answered, nothing found among it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.cache = lapse.TTLCache(None, cleanup_interval=None)
        self.queue = OptimizedInvalidation(self.cache, start=False)
        self.templates = Templates(keys=KEYS)

    def truth(self) -> dict[Any, Any]:
        """What each key stands for now."""
        table = self.db.execute("SELECT * FROM t ORDER BY id").fetchall()
        found: dict[Any, Any] = {}
        for value in [*VALUES, *range(8)]:
            found[f"id:{value}"] = [r for r in table if f"{r[0]}" == f"{value}"]
            found[f"a:{value}"] = [r for r in table if f"{r[1]}" == f"{value}"]
            found["b", value] = [r for r in table if r[2] == value]
        return found

    def fill(self) -> None:
        self.cache.update(self.truth())

    def stale(self) -> dict[Any, Any]:
        """The entries that are no longer true."""
        truth = self.truth()
        return {k: (v, truth[k]) for k, v in self.cache.items() if v != truth[k]}


def replay(copy: dict[Any, Any], change: Any) -> None:
    """Do to a copy of the table what a change says; it must be possible."""
    if change["old"] is not None:
        assert copy.pop(change["old"]["id"]) == tuple(change["old"].values())
    if change["new"] is not None:
        assert change["new"]["id"] not in copy
        copy[change["new"]["id"]] = tuple(change["new"].values())


@pytest.mark.parametrize("recursive", [0, 1])
@pytest.mark.parametrize("table", TABLES)
@settings(max_examples=60, deadline=None)
@given(script=st.lists(statements, max_size=12), journal=st.sampled_from(JOURNALS))
def test_no_entry_is_stale(table, recursive, script, journal):
    """After each commit, what follows from the changes has removed all that is no longer true.

    The changes also add up, one after the other, to what the table holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        db = make_file(Path(folder, "data.db"), TABLES[table], journal)
        db.execute(f"PRAGMA recursive_triggers = {recursive}")
        source = SQLiteChanges(Path(folder, "data.db"), ["t"])
        cached, copy = Cached(db), {}
        cached.fill()
        for statement, parameters in itertools.chain(script, [("COMMIT", ())]):
            with suppress(sqlite3.IntegrityError, sqlite3.OperationalError):
                db.execute(statement, parameters)
            if db.in_transaction:
                continue
            for event in read_now(source):
                assert isinstance(event, Batch)
                for change in event.changes:
                    replay(copy, change)
                    assert all(
                        a.error is None for a in cached.queue.apply(cached.templates(change))
                    )
            assert cached.stale() == {}
            assert sorted(map(repr, copy.values())) == sorted(
                map(repr, db.execute("SELECT * FROM t"))
            )
            cached.fill()
        cached.queue.close()
        source.close()
        db.close()
