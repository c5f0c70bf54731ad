"""One connection to an SQLite file, and the outbox in it: reading, positions, pruning.

    lapse_changes     one row a change, numbered; written by the triggers (triggers.py)
    lapse_displaced   what the triggers note on the way, and may leave behind
    lapse_consumers   how far each named consumer has come

Invariants
    1. The numbers are in the order of the commits, and none appears below one that was seen. SQLite
       has one writer at a time: who takes a number holds the write lock until it commits or rolls
       back, and the next writer counts on from what was committed. What is rolled back was never
       seen, and AUTOINCREMENT gives no number of a deleted row again. So "all above n" skips none.
    2. A position is the number of a row and its time. The row is there as long as nothing was lost:
       pruning stops before the position of every consumer that is heard of, and always leaves the
       last row. If it is missing or has another time, rows may be missing too, or the file is not
       the one that was read before.
    3. No transaction outlives a call. A busy file makes a call raise at once, unless it is made
       within `patient()`: SQLite sleeps longer and longer while it waits, and so misses the moments
       in which a busy writer lets others read. Who calls holds the lock of the owner.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lapse.sources.sqlite.install import install, transaction
from lapse.sources.sqlite.schema import Table

__all__ = ["FileId", "Limits", "Mark", "Outbox", "Position", "connect", "file_id", "is_busy"]

PATIENCE = 0.02  # seconds that a pruning waits for whoever writes
CHUNK = 5000  # rows that one transaction prunes

FileId = tuple[int, int]


class Mark(NamedTuple):
    """A place in the outbox: all rows up to this one have been read."""

    sequence: int
    at: float | None


class Position(NamedTuple):
    """How far a consumer has come, and the number of the schema there."""

    mark: Mark
    schema: int


class Limits(NamedTuple):
    """How long rows stay."""

    #: Seconds that a row stays though every named consumer has it.
    keep: float
    #: Seconds and rows that it stays for a named consumer that is not heard of.
    max_age: float
    max_rows: int


def connect(path: Path, timeout: float) -> sqlite3.Connection:
    """A connection to a file that is there, in autocommit mode, for one thread at a time."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    # A text may be anything at all; what is not UTF-8 must not keep the rest from being read.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def file_id(path: Path) -> FileId | None:
    """What tells a file from another one that has taken its place; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_busy(error: sqlite3.Error) -> bool:
    """Does somebody else hold the file?"""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


class Outbox:
    """The outbox of one file, which has it when this is made. Raises sqlite3.Error, ValueError.

    The tables that are captured are in `tables`, None for one that is not there.
    """

    def __init__(self, path: Path, names: Iterable[str], timeout: float) -> None:
        self._path = path
        # Before the file is opened: if it is replaced in between, that is noticed.
        self.file = file_id(path)
        self._connection = connect(path, timeout)
        try:
            self.tables = install(self._connection, names)
            self._connection.execute("PRAGMA busy_timeout = 0")
        except BaseException:
            self._connection.close()
            raise

    def is_current(self) -> bool:
        """Is this the file that has the path now?"""
        return self.file is not None and file_id(self._path) == self.file

    def install(self) -> dict[str, Table | None]:
        """See to it that the triggers fit the tables as they are now; the tables."""
        self.tables = install(self._connection, self.tables)
        return self.tables

    def version(self) -> int:
        """Another number after each commit of another connection."""
        return self._number("PRAGMA data_version")

    def schema(self) -> int:
        """Another number after each change of the schema, and after a VACUUM."""
        return self._number("PRAGMA schema_version")

    def last(self) -> Mark:
        """The present: the last row."""
        return Mark(
            *self._connection.execute(
                'SELECT "sequence", "at" FROM "lapse_changes" ORDER BY "sequence" DESC LIMIT 1'
            ).fetchone()
        )

    def after(self, mark: Mark, most: int) -> list[tuple[Any, ...]] | None:
        """Up to `most` rows behind a mark, all columns of each; None: the mark is not there.

        In one statement, and so of one state of the file.
        """
        rows = self._connection.execute(
            'SELECT * FROM "lapse_changes" WHERE "sequence" >= ? ORDER BY "sequence" LIMIT ?',
            (mark.sequence, most + 1),
        ).fetchall()
        if not rows or rows[0][:2] != mark:
            return None
        return rows[1:]

    # --- Consumers ---

    def position(self, consumer: str) -> Position | None:
        """How far a consumer has come; None: it is new."""
        found = self._connection.execute(
            'SELECT "sequence", "at", "schema" FROM "lapse_consumers" WHERE "name" = ?', (consumer,)
        ).fetchone()
        return None if found is None else Position(Mark(*found[:2]), found[2])

    def keep_position(self, consumer: str, position: Position, now: float) -> None:
        """Write down how far a consumer has come, and that it is there."""
        self._connection.execute(
            'INSERT OR REPLACE INTO "lapse_consumers" VALUES (?, ?, ?, ?, ?)',
            (consumer, *position.mark, position.schema, now),
        )

    # --- Pruning ---

    def prune(self, limits: Limits, now: float) -> int:
        """Delete up to CHUNK rows that nobody needs; how many."""
        last = self.last().sequence
        (needed,) = self._connection.execute(
            'SELECT min("sequence") FROM "lapse_consumers" WHERE "seen" >= ?',
            (now - limits.max_age,),
        ).fetchone()
        upto, count = None, 0
        query = 'SELECT "sequence", "at" FROM "lapse_changes" ORDER BY "sequence" LIMIT ?'
        with closing(self._connection.execute(query, (CHUNK,))) as rows:
            for sequence, at in rows:
                age = now - (at or 0)
                passed = age > limits.keep and (needed is None or sequence < needed)
                expired = age > limits.max_age or last - sequence >= limits.max_rows
                if sequence == last or not (passed or expired):
                    break
                upto, count = sequence, count + 1
        self._delete(upto)
        return count

    def _delete(self, upto: int | None) -> None:
        """Delete rows up to a number, and what triggers have left: no statement is under way."""
        left = self._number('SELECT EXISTS (SELECT 1 FROM "lapse_displaced")')
        if upto is None and not left:
            return
        with self.patient(PATIENCE), transaction(self._connection) as execute:
            execute('DELETE FROM "lapse_displaced"')
            execute('DELETE FROM "lapse_changes" WHERE "sequence" <= ?', (upto,))

    # --- The connection ---

    @contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Within this a call waits for whoever writes."""
        self._connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        try:
            yield
        finally:
            self._connection.execute("PRAGMA busy_timeout = 0")

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def _number(self, query: str) -> int:
        (number,) = self._connection.execute(query).fetchone()
        return int(number)
