"""The changes of an SQLite file: every value comes back as the reader of the table has it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lapse.sources.sqlite import SQLiteChanges
from sqlite_support import changes_of, make_file, read_now

SCRIPT = """
CREATE TABLE t (k PRIMARY KEY, i INTEGER, t TEXT, r REAL, n NUMERIC, b BLOB, x UNIQUE);
CREATE TABLE w (k PRIMARY KEY, x UNIQUE) WITHOUT ROWID;
"""
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20),
)


@pytest.fixture
def watched(tmp_path: Any) -> Iterator[tuple[sqlite3.Connection, SQLiteChanges]]:
    """A file with a table of columns of every affinity, and a source of its changes."""
    connection = make_file(tmp_path / "data.db", SCRIPT)
    with_source = SQLiteChanges(tmp_path / "data.db", ["t", "w"])
    yield connection, with_source
    with_source.close()
    connection.close()


def same(a: Any, b: Any) -> bool:
    """Are two values the same to the last bit and of one type?"""
    if isinstance(a, float) and isinstance(b, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return type(a) is type(b) and a == b


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(VALUES, min_size=7, max_size=7), again=VALUES)
def test_values_are_those_of_the_table(watched, values, again):
    """Of every type, in columns of every affinity, as old, as new, as key and as pushed out."""
    db, source = watched
    db.execute("DELETE FROM t")
    read_now(source)
    db.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    (first,) = db.execute("SELECT * FROM t").fetchall()
    db.execute("UPDATE t SET k = ?, x = ?", (again, again))
    (second,) = db.execute("SELECT * FROM t").fetchall()
    db.execute("INSERT OR REPLACE INTO t (x) VALUES (?)", (again,))
    found = changes_of(read_now(source))
    assert all(map(same, found[0]["new"].values(), first))
    assert same(found[0]["key"], first[0])
    assert all(map(same, found[1]["old"].values(), first))
    assert all(map(same, found[1]["new"].values(), second))
    assert same(found[1]["key"], second[0])
    assert [c["operation"] for c in found[2:]] == (["delete"] if again is not None else []) + [
        "insert"
    ]
    if again is not None:
        assert all(map(same, found[2]["old"].values(), second))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.tuples(VALUES, VALUES), max_size=6))
def test_pushed_out_by_any_value(watched, rows):
    """Whatever the values that clash, the changes add up to what the table holds."""
    db, source = watched
    db.execute("DELETE FROM w")
    read_now(source)
    for row in rows:
        if row[0] is not None:
            db.execute("INSERT OR REPLACE INTO w VALUES (?, ?)", row)
    copy = {}
    for change in changes_of(read_now(source)):
        if change["old"] is not None:
            del copy[change["old"]["k"]]
        if change["new"] is not None:
            copy[change["new"]["k"]] = change["new"]["x"]
    assert copy == dict(db.execute("SELECT * FROM w").fetchall())


def test_json_is_text(watched):
    """A value that json() has just made is text like any other."""
    db, source = watched
    db.execute("""INSERT INTO t (k, x) VALUES (json('{"a": 1}'), json_array(1, 2))""")
    (change,) = changes_of(read_now(source))
    assert (change["key"], change["new"]["x"]) == ('{"a":1}', "[1,2]")


def test_text_that_is_none(watched):
    """Text that is not UTF-8 keeps its bytes, and does not keep others from being read."""
    db, source = watched
    db.execute("INSERT INTO t (k) VALUES (CAST(x'41ff' AS TEXT))")
    (change,) = changes_of(read_now(source))
    assert change["key"].encode("utf-8", "surrogateescape") == b"A\xff"


def test_large_values_are_left_out(watched):
    """A value of more than 65,536 letters or bytes is not in the row, but a key's is."""
    db, source = watched
    db.execute(
        "INSERT INTO t (k, t, b) VALUES (?, ?, ?)", ("k" * 70_000, "x" * 65_536, b"y" * 65_537)
    )
    (change,) = changes_of(read_now(source))
    assert len(change["key"]) == 70_000
    assert len(change["new"]["t"]) == 65_536
    assert "b" not in change["new"]


def test_a_large_value_that_clashes(watched):
    """What pushes a row out may be large."""
    db, source = watched
    db.execute("INSERT INTO t (k, x) VALUES (1, ?)", ("x" * 100_000,))
    db.execute("INSERT OR REPLACE INTO t (k, x) VALUES (2, ?)", ("x" * 100_000,))
    assert [(c["operation"], c["key"]) for c in changes_of(read_now(source))] == [
        ("insert", 1), ("delete", 1), ("insert", 2),
    ]  # fmt: skip
