"""What the tests of SQLite's changes share: files, writers, and reading what there is now."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lapse.invalidation.source import Batch, Resync
from lapse.sources.sqlite import SQLiteChanges

JOURNALS = ("wal", "delete")


def make_file(path: Path, script: str = "", journal: str = "wal") -> sqlite3.Connection:
    """A new file with tables, by a connection in autocommit mode."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("PRAGMA synchronous = OFF")
    connection.executescript(script)
    return connection


def watching() -> Any:
    """The fixture `watch`: makes a file with a script, and a source of its tables' changes."""

    @pytest.fixture(name="watch", params=JOURNALS)
    def _watch(tmp_path: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
        made: list[Any] = []

        def make(script: str, tables: Any = ("users",), **options: Any) -> Any:
            connection = make_file(tmp_path / "data.db", script, request.param)
            source = SQLiteChanges(tmp_path / "data.db", tables, **options)
            made.extend([source, connection])
            return connection, source

        yield make
        for each in made:
            each.close()

    return _watch


def read_now(source: SQLiteChanges, commit: bool = True) -> list[Batch | Resync]:
    """Everything that the source has to say now, as its iteration would yield it."""
    found: list[Batch | Resync] = []
    source._check_at = 0.0
    while events := source._turn() or source._turn():  # the first may only have opened the file
        found += events
    for event in found if commit else ():
        if event.commit is not None:
            event.commit()
    return found


def changes_of(events: Iterable[Batch | Resync]) -> list[dict[str, Any]]:
    """The changes of the batches."""
    return [dict(c) for event in events if isinstance(event, Batch) for c in event.changes]


def reasons_of(events: Iterable[Batch | Resync]) -> list[str]:
    """Why there are resyncs."""
    return [event.reason for event in events if isinstance(event, Resync)]


def brief(events: Iterable[Batch | Resync]) -> list[tuple[Any, ...]]:
    """Operation, and old and new row as tuples, of every change."""
    return [
        (
            change["operation"],
            tuple(change["old"].values()) if change["old"] else None,
            tuple(change["new"].values()) if change["new"] else None,
        )
        for change in changes_of(events)
    ]


def keys(events: Iterable[Batch | Resync]) -> list[Any]:
    """The key of every change."""
    return [change["key"] for change in changes_of(events)]


USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, name)"


class Setting:
    """A file, a writer, and sources of its changes, which end with the test."""

    def __init__(self, folder: Path, journal: str) -> None:
        self.path = folder / "data.db"
        self.journal = journal
        self.db = make_file(self.path, USERS, journal)
        self.sources: list[SQLiteChanges] = []
        self.ids = itertools.count(1)

    def source(self, tables: Any = ("users",), **options: Any) -> SQLiteChanges:
        made = SQLiteChanges(self.path, tables, **options)
        self.sources.append(made)
        return made

    def insert(self, count: int = 1) -> None:
        for _ in range(count):
            self.db.execute("INSERT INTO users (id) VALUES (?)", (next(self.ids),))

    def numbers(self) -> list[int]:
        return [n for (n,) in self.db.execute("SELECT sequence FROM lapse_changes ORDER BY 1")]

    def close(self) -> None:
        for each in [*self.sources, self.db]:
            each.close()
