"""A connection that tells somebody when it may have committed: sqlite3 has no hook for that."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

__all__ = ["TellingConnection"]


class TellingConnection(sqlite3.Connection):
    """Calls `tell` after each call that leaves no transaction open, if anything has changed.

    An INSERT ... RETURNING without a transaction commits when its rows are fetched, unnoticed.
    """

    tell: Callable[[], object] | None = None
    _told = 0

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or TellingCursor)

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def executescript(self, *args: Any) -> Any:
        return self.cursor().executescript(*args)

    def commit(self) -> None:
        super().commit()
        self._tell()

    def __exit__(self, *exc: Any) -> Any:
        answer = super().__exit__(*exc)
        self._tell()
        return answer

    def _tell(self) -> None:
        if not self.in_transaction and self.total_changes != self._told and self.tell is not None:
            self._told = self.total_changes
            self.tell()


class TellingCursor(sqlite3.Cursor):
    """The cursors of such a connection."""

    connection: TellingConnection

    def execute(self, *args: Any) -> Any:
        answer = super().execute(*args)
        self.connection._tell()
        return answer

    def executemany(self, *args: Any) -> Any:
        answer = super().executemany(*args)
        self.connection._tell()
        return answer

    def executescript(self, *args: Any) -> Any:
        answer = super().executescript(*args)
        self.connection._tell()
        return answer
