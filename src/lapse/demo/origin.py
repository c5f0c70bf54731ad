"""The database of one run: a real SQLite file, read and changed by many threads.

    loader ──► Origin.load(key) ──► World.load(reading, key) ──► Snapshot
    writer ──► Origin.change(rng) ──► World.change(writing, rng) ──► COMMIT ──► Ledger

A value is read in one transaction, so all of it is of one moment. Each thread has a connection of
its own. Nothing here knows of a cache.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lapse.demo.ledger import Change, Ledger, Row, Snapshot

if TYPE_CHECKING:
    from lapse.demo.world import World

__all__ = ["Origin", "Reading", "Record", "Writing", "marks"]

BUSY = 20.0  # seconds to wait while another thread writes

Record = dict[str, Any]


class Reading:
    """A transaction that reads, and notes which versions of which rows."""

    def __init__(self, connection: sqlite3.Connection, ledger: Ledger) -> None:
        self._connection = connection
        self._ledger = ledger
        self._seen: list[tuple[Row, int]] = []

    def find(self, table: str, where: str, *values: Any) -> list[Record]:
        """The rows of a table that a condition is true of; the value is made from them."""
        found = self.query(f"SELECT * FROM {table} WHERE {where}", *values)
        row = self._ledger.row
        self._seen += [(row(table, each["id"]), each["version"]) for each in found]
        return found

    def get(self, table: str, id: Any) -> Record:
        """One row, which must be there."""
        (found,) = self.find(table, "id = ?", id)
        return found

    def among(self, table: str, ids: Collection[Any]) -> dict[Any, Record]:
        """The rows that have these ids, by id."""
        found = self.find(table, f"id IN ({marks(ids)})", *ids)
        return {each["id"]: each for each in found}

    def query(self, sql: str, *values: Any) -> list[Record]:
        """Rows of which nothing is noted."""
        return self._connection.execute(sql, values).fetchall()

    def snapshot(self, content: Any) -> Snapshot:
        """The value, and what it was made from."""
        return Snapshot(content, tuple(self._seen))


class Writing:
    """A transaction that changes rows, each of which gets its next version."""

    def __init__(self, connection: sqlite3.Connection, ledger: Ledger) -> None:
        self._connection = connection
        self._ledger = ledger
        self._ended: list[tuple[Row, int]] = []

    def get(self, table: str, id: Any) -> Record:
        """A row, which must be there, as this transaction sees it."""
        (found,) = self.query(f"SELECT * FROM {table} WHERE id = ?", id)
        return found

    def query(self, sql: str, *values: Any) -> list[Record]:
        """Rows as this transaction sees them."""
        return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, *values: Any) -> None:
        """A change of rows that have no version."""
        self._connection.execute(sql, values)

    def insert(self, table: str, **columns: Any) -> Any:
        """Add a row; its id, a new number unless it is among the columns."""
        columns["version"] = 1
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks(columns)})"
        number = self._connection.execute(sql, tuple(columns.values())).lastrowid
        id = columns.get("id", number)
        self._wrote(self._ledger.row(table, id), 1)
        return id

    def update(self, table: str, before: Record, **columns: Any) -> None:
        """Change columns of a row that this transaction has got."""
        columns["version"] = version = before["version"] + 1
        names = ", ".join(f"{name} = ?" for name in columns)
        self.run(f"UPDATE {table} SET {names} WHERE id = ?", *columns.values(), before["id"])
        self._wrote(self._ledger.row(table, before["id"]), version)

    def _wrote(self, row: Row, version: int) -> None:
        self._ledger.begins(row, version)
        self._ended.append((row, version - 1))

    def changes(self) -> list[Change]:
        """The versions that this transaction ends, if it is committed now."""
        now = self._ledger.clock()
        return [Change(row, version, now) for row, version in self._ended]


class Origin:
    """The database of a world, in a file that is made here.

    Args:
        path: of the file, which is not there yet.
        world: its tables and what happens to them.
        ledger: learns of every change.
    """

    def __init__(self, path: Path, world: World, ledger: Ledger) -> None:
        self.path = path
        self._world = world
        self.ledger = ledger
        self._mine = threading.local()
        self._connections: list[sqlite3.Connection] = []
        connection = self._connection()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(world.schema)
        with self._transaction("IMMEDIATE"):
            world.fill(Writing(connection, ledger))
        self._note_rows()

    def load(self, key: str) -> Snapshot:
        """The value of a key, as a cache's loader."""
        with self._transaction("DEFERRED") as connection:
            reading = Reading(connection, self.ledger)
            return reading.snapshot(self._world.load(reading, key))

    def change(self, rng: random.Random) -> int:
        """One thing that happens, committed; how many rows it changed."""
        with self._transaction("IMMEDIATE") as connection:
            writing = Writing(connection, self.ledger)
            self._world.change(writing, rng)
            changes = writing.changes()
        self.ledger.committed(changes)
        return len(changes)

    def query(self, sql: str, *values: Any) -> list[Record]:
        """Rows, of which nothing is noted."""
        return self._connection().execute(sql, values).fetchall()

    def close(self) -> None:
        """Close all connections, when no thread uses them any more."""
        while self._connections:
            self._connections.pop().close()

    def _note_rows(self) -> None:
        for table in self._world.tables:
            for row in self.query(f"SELECT id, version FROM {table}"):
                self.ledger.there(table, row["id"], row["version"])

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute(f"BEGIN {kind}")
        try:
            yield connection
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._mine, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self.path, timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.row_factory = _record
            self._mine.connection = connection
            self._connections.append(connection)
        return connection


def marks(values: Collection[Any]) -> str:
    """Question marks for values."""
    return ", ".join("?" * len(values))


def _record(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> Record:
    return {column[0]: value for column, value in zip(cursor.description, values, strict=True)}
