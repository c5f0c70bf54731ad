"""Puts the outbox into an SQLite file, and the triggers that fill it onto the captured tables.

    lapse_changes     the outbox: one row a change, in twice as many columns as the widest table has
    lapse_displaced   what the triggers note on the way
    lapse_consumers   how far each named consumer has come

triggers.py has the triggers, outbox.py reads what they write.

Invariants
    1. A change and its row in the outbox commit together or not at all.
    2. Installing is one transaction; nothing is written if nothing differs.
    3. Before the triggers are committed it is seen that inserts, updates and deletes compile.

Another format of these objects would have other names: two releases never rebuild each other's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from lapse.sources.sqlite.schema import Table, literal, quoted, read_table
from lapse.sources.sqlite.triggers import trigger_texts, width

__all__ = ["SCHEMA", "install", "remove", "transaction"]

#: The operation of the mark that is left where triggers were made anew.
SCHEMA = "schema"

_NAMES = ("lapse_changes", "lapse_displaced", "lapse_consumers")
_CHANGES = """CREATE TABLE IF NOT EXISTS "lapse_changes" (
    "sequence" INTEGER PRIMARY KEY AUTOINCREMENT,
    "at" REAL DEFAULT ((julianday('now') - 2440587.5) * 86400.0),
    "table" TEXT, "operation" TEXT, "layout" TEXT, {})"""
_DISPLACED = """CREATE TABLE IF NOT EXISTS "lapse_displaced" (
    "place" TEXT PRIMARY KEY, "table" TEXT, "identity" TEXT, "layout" TEXT, {})"""
_OTHERS = (
    """CREATE INDEX IF NOT EXISTS "lapse_displaced_identity"
        ON "lapse_displaced" ("table", "identity")""",
    """CREATE TABLE IF NOT EXISTS "lapse_consumers" (
        "name" TEXT PRIMARY KEY, "sequence" INTEGER, "at" REAL, "schema" INTEGER, "seen" REAL)""",
)


def install(connection: sqlite3.Connection, names: Iterable[str]) -> dict[str, Table | None]:
    """Make outbox and triggers what they must be; the tables, None for one that is not there.

    Writes only if something differs. Where triggers are made anew, changes may have gone unseen
    before: a mark in the outbox says so. Raises ValueError for what cannot be captured, and
    sqlite3.Error; then nothing has changed.
    """
    tables = {name: read_table(connection, name) for name in names}
    if _is_installed(connection, tables):
        return tables
    with transaction(connection):
        tables = {name: read_table(connection, name) for name in tables}
        there = [table for table in tables.values() if table is not None]
        _make_tables(connection, max(map(width, there), default=1))
        for table in there:
            _rebuild(connection, table)
        if _is_empty(connection):
            _mark(connection, "")
    return tables


def remove(connection: sqlite3.Connection) -> None:
    """Take all triggers and tables of the outbox out of the file."""
    with transaction(connection):
        for name, sql in connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall():
            if _is_ours(name, sql):
                connection.execute(f"DROP TRIGGER {quoted(name)}")
        for table in _NAMES:
            connection.execute(f"DROP TABLE IF EXISTS {quoted(table)}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[Callable[..., object]]:
    """A write transaction of a connection in autocommit mode; gives its execute()."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection.execute
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _is_installed(connection: sqlite3.Connection, tables: dict[str, Table | None]) -> bool:
    names = ", ".join(map(literal, _NAMES))
    (found,) = connection.execute(
        f"SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ({names})"
    ).fetchone()
    return (
        found == len(_NAMES)
        and not _is_empty(connection)
        and all(
            _has(connection, table) == trigger_texts(table)
            and not _missing(connection, width(table))
            for table in tables.values()
            if table is not None
        )
    )


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute('SELECT 1 FROM "lapse_changes" LIMIT 1').fetchone() is None


def _make_tables(connection: sqlite3.Connection, columns: int) -> None:
    """The tables, with room for the values of a table with so many columns."""
    connection.execute(_CHANGES.format(", ".join(_values(2 * columns))))
    connection.execute(_DISPLACED.format(", ".join(_values(columns))))
    for statement in _OTHERS:
        connection.execute(statement)
    for name, column in _missing(connection, columns):
        connection.execute(f"ALTER TABLE {quoted(name)} ADD COLUMN {column}")


def _missing(connection: sqlite3.Connection, columns: int) -> list[tuple[str, str]]:
    """The columns that are missing for that: of which table, and which."""
    missing = []
    for name, wanted in (("lapse_changes", 2 * columns), ("lapse_displaced", columns)):
        info = connection.execute(f"PRAGMA table_info({quoted(name)})").fetchall()
        there = {quoted(each[1]) for each in info}
        missing += [(name, column) for column in _values(wanted) if column not in there]
    return missing


def _values(count: int) -> list[str]:
    return [f'"v{number}"' for number in range(count)]


def _rebuild(connection: sqlite3.Connection, table: Table) -> None:
    wanted = trigger_texts(table)
    there = _has(connection, table)
    if there == wanted:
        return
    for name in {**there, **wanted}:
        connection.execute(f"DROP TRIGGER IF EXISTS {quoted(name)}")
    compiled = _fault(connection, table) is None
    for statement in wanted.values():
        connection.execute(statement)
    fault = _fault(connection, table)
    if compiled and fault is not None:
        raise ValueError(f"{table.name!r} cannot be captured: {fault}") from fault
    _mark(connection, table.name)


def _mark(connection: sqlite3.Connection, table: str) -> None:
    connection.execute(
        'INSERT INTO "lapse_changes" ("table", "operation") VALUES (?, ?)', (table, SCHEMA)
    )


def _is_ours(name: str, sql: str) -> bool:
    return name.startswith("lapse ") and '"lapse_' in sql


def _has(connection: sqlite3.Connection, table: Table) -> dict[str, str]:
    """The triggers of ours that are on the table, by name."""
    found = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (table.name,)
    )
    return {name: sql for name, sql in found if _is_ours(name, sql)}


def _fault(connection: sqlite3.Connection, table: Table) -> sqlite3.Error | None:
    """What keeps statements on the table from being compiled, triggers included.

    They change nothing. EXPLAIN would do, but crashes SQLite 3.40 when the schema changes between.
    """
    name = quoted(table.name)
    column = quoted(next(each.name for each in table.columns if not each.generated))
    try:
        connection.execute(f"INSERT INTO {name} ({column}) SELECT {column} FROM {name} WHERE 0")
        connection.execute(f"UPDATE {name} SET {column} = {column} WHERE 0")
        connection.execute(f"DELETE FROM {name} WHERE 0")
    except sqlite3.Error as error:
        return error
    return None
