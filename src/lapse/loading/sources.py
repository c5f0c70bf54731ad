"""Data sources: where the values behind a cache come from, and go to.

A source is any object with those of these methods that its user calls; each may be plain or
asynchronous. It must be thread-safe if the caches in front of it are used by several threads.

    fetch(key)           the value; None: there is none
    write(key, value)    store it; True: done, False: refused, and nothing has changed
    update(key, value)   the same, but only where there is a value already
    delete(key)          remove it; False: refused, or there was none
    get_version(key)     a token that only ever rises as the value changes; None: there is no value

`MappingSource` and `SQLiteSource` are two such. Their versions are never given twice, not even to a
key that was deleted and came back, so that what a cache kept of it before is told from what is
there.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, Protocol

from lapse import forks

__all__ = ["FetchingSource", "MappingSource", "SQLiteSource", "VersionedSource", "WritableSource"]


class FetchingSource(Protocol):
    """What LazyInvalidation asks of a data source."""

    def fetch(self, key: Any) -> Any: ...


class WritableSource(Protocol):
    """What WriteThroughInvalidation asks of a data source."""

    def write(self, key: Any, value: Any) -> Any: ...
    def update(self, key: Any, value: Any) -> Any: ...
    def delete(self, key: Any) -> Any: ...


class VersionedSource(Protocol):
    """What VersionBasedInvalidation asks of a data source."""

    def fetch(self, key: Any) -> Any: ...
    def get_version(self, key: Any) -> Any: ...


class MappingSource:
    """A data source in memory, over a dict or another mapping.

    Args:
        mapping: holds the values; None = a new dict. Once it is here, change it only through the
            source: other changes get no new version.

    Thread-safe; every method is atomic and costs what the mapping's does. Keys are compared under
    the source's lock, which is re-entrant: a comparison or a finalizer may use the source. Versions
    are ints, counted over the whole source; what the mapping holds to begin with has version 1.
    """

    __slots__ = ("__weakref__", "_lock", "_mapping", "_newest", "_versions")

    def __init__(self, mapping: MutableMapping[Any, Any] | None = None) -> None:
        self._mapping: MutableMapping[Any, Any] = {} if mapping is None else mapping
        self._newest = 1
        self._versions: dict[Hashable, int] = dict.fromkeys(self._mapping, self._newest)
        self._after_fork()
        forks.watch(self)

    def _after_fork(self) -> None:
        """In a forked child no other thread holds the lock, whatever it looks like."""
        self._lock = threading.RLock()

    def fetch(self, key: Any) -> Any:
        """The value, or None."""
        with self._lock:
            return self._mapping.get(key)

    def get_version(self, key: Any) -> int | None:
        """The number of the change that stored the value; None if there is no value."""
        with self._lock:
            return self._versions.get(key)

    def write(self, key: Any, value: Any) -> bool:
        """Store a value. Always True."""
        with self._lock:
            self._store(key, value)
        return True

    def update(self, key: Any, value: Any) -> bool:
        """Store a value where there is one; False where there is none."""
        with self._lock:
            known = key in self._versions
            if known:
                self._store(key, value)
        return known

    def delete(self, key: Any) -> bool:
        """Remove a value; False if there is none."""
        with self._lock:
            known = key in self._versions
            if known:
                del self._versions[key]
                del self._mapping[key]
        return known

    def _store(self, key: Any, value: Any) -> None:
        # In this order: no fork in between leaves a child with a new value of an old version.
        self._newest += 1
        self._versions[key] = self._newest
        self._mapping[key] = value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._versions)} values>"


class _Connection(sqlite3.Connection):
    """A connection that is closed with the last reference to it, without a warning."""

    def __del__(self) -> None:
        self.close()


class _Connections(threading.local):
    """One thread's connection; by process, because one that a fork copied is the parent's."""

    def __init__(self) -> None:
        self.by_process: dict[int, sqlite3.Connection] = {}


class SQLiteSource:
    """A data source in a table of an SQLite file.

        version   INTEGER PRIMARY KEY AUTOINCREMENT
        key       NOT NULL UNIQUE
        value

    Every store is a new row in the place of the old one, so its version is the row's number, which
    AUTOINCREMENT never gives twice, whichever process asks.

    Args:
        path: of the file (str or path-like); made if it is not there. Not ":memory:".
        table: its name, of any characters but NUL; made if it is not there.
        timeout: seconds to wait while another connection writes.
        encode: turns a value into one of SQLite's (int, float, str, bytes, None); json.dumps, say.
        decode: the way back.

    Raises:
        ValueError: for a path or a table that cannot be used.
        sqlite3.Error: from every method, as SQLite has it; keys are of its own types, too.

    Thread-safe, and usable by several processes: each thread has a connection of its own, in
    write-ahead mode, so readers do not wait for a writer; it is closed when the thread has ended. A
    forked child opens its own; a fork while another thread is in a call may leave the file locked
    there, as SQLite has it. Every method is one statement and so one transaction.
    """

    __slots__ = ("_decode", "_encode", "_mine", "_path", "_statements", "_timeout")

    def __init__(
        self,
        path: str | os.PathLike[str],
        table: str = "entries",
        *,
        timeout: float = 5.0,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
    ) -> None:
        self._path = os.fspath(path)
        if self._path in ("", ":memory:"):
            raise ValueError(f"the path of a file is needed, not {self._path!r}")
        self._timeout = timeout
        self._encode = encode
        self._decode = decode
        self._statements = _Statements(_quoted(table))
        self._mine = _Connections()
        self._execute(self._statements.create)

    def fetch(self, key: Any) -> Any:
        """The value, or None."""
        row = self._execute(self._statements.fetch, key).fetchone()
        if row is None:
            return None
        return row[0] if self._decode is None else self._decode(row[0])

    def get_version(self, key: Any) -> int | None:
        """The number of the row; None if there is none."""
        row = self._execute(self._statements.version, key).fetchone()
        return None if row is None else int(row[0])

    def write(self, key: Any, value: Any) -> bool:
        """Store a value. Always True."""
        return self._execute(self._statements.write, key, self._encoded(value)).rowcount > 0

    def update(self, key: Any, value: Any) -> bool:
        """Store a value where there is one; False where there is none."""
        return self._execute(self._statements.update, self._encoded(value), key).rowcount > 0

    def delete(self, key: Any) -> bool:
        """Remove a value; False if there is none."""
        return self._execute(self._statements.delete, key).rowcount > 0

    def close(self) -> None:
        """Close this thread's connection; the next call would open another."""
        self._mine.by_process.pop(os.getpid(), None)

    def _encoded(self, value: Any) -> Any:
        return value if self._encode is None else self._encode(value)

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Run one statement on this thread's connection, in a transaction of its own."""
        mine = self._mine.by_process
        connection = mine.get(os.getpid())
        if connection is None:
            connection = mine[os.getpid()] = self._connect()
        return connection.execute(statement, values)

    def _connect(self) -> sqlite3.Connection:
        # Not the same thread: what a thread leaves behind may be closed by another one.
        connection = sqlite3.connect(
            self._path,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        return connection

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._path!r}>"


class _Statements:
    """The statements on a table, whose name is quoted already."""

    __slots__ = ("create", "delete", "fetch", "update", "version", "write")

    def __init__(self, table: str) -> None:
        columns = "version INTEGER PRIMARY KEY AUTOINCREMENT, key NOT NULL UNIQUE, value"
        self.create = f"CREATE TABLE IF NOT EXISTS {table} ({columns})"
        self.fetch = f"SELECT value FROM {table} WHERE key = ?"
        self.version = f"SELECT version FROM {table} WHERE key = ?"
        self.write = f"INSERT OR REPLACE INTO {table} (key, value) VALUES (?, ?)"
        self.update = (
            f"INSERT OR REPLACE INTO {table} (key, value) SELECT key, ? FROM {table} WHERE key = ?"
        )
        self.delete = f"DELETE FROM {table} WHERE key = ?"


def _quoted(name: str) -> str:
    """An identifier as SQL takes it, whatever its characters."""
    if not name or "\0" in name:
        raise ValueError(f"not a usable name of a table: {name!r}")
    return '"' + name.replace('"', '""') + '"'
