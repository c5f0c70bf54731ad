"""What is new in one opened file, as batches and resyncs.

    PRAGMA data_version ──► as before: nothing has been committed
                        ──► PRAGMA schema_version ──► do the triggers still fit? ──► Resync
                        ──► rows behind the mark ──► Batch; Resync, where one of them says so

Invariants
    1. The version is noted before the rows are read, and as seen only after: what is committed in
       between is read now or at the next look.
    2. Triggers are made to fit before the rows are read. Whoever makes them leaves a mark behind
       all that went unseen, so every reader has a Resync there.
    3. While a table cannot be captured every commit is a Resync: nobody can see what it changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from lapse.invalidation.source import Batch, Resync, SourceCounts
from lapse.sources.sqlite.install import SCHEMA
from lapse.sources.sqlite.outbox import Mark, Outbox, Position
from lapse.sources.sqlite.rows import change_of

__all__ = ["Event", "Keys", "Reader", "keys_of"]

log = logging.getLogger("lapse.sources")

ROWS = 500  # that are read at a time

Event = Batch | Resync
#: The columns that are the key of each table; none: the primary key.
Keys = Mapping[str, tuple[str, ...]]


def keys_of(tables: Iterable[str] | Mapping[str, Iterable[str] | None]) -> Keys:
    """The tables as they were given. TypeError for a lone name, ValueError for none."""
    if isinstance(tables, str):
        raise TypeError("tables are an iterable of names, not one name")
    pairs = tables.items() if isinstance(tables, Mapping) else ((name, ()) for name in tables)
    keys = {name: (key,) if isinstance(key, str) else tuple(key or ()) for name, key in pairs}
    if not keys:
        raise ValueError("no tables to capture")
    return keys


class Reader:
    """Reads one outbox from a mark on. Its owner's lock is held in every call.

    Args:
        outbox: of the file.
        keys: the captured tables, and their keys.
        position: where to go on from.
        commit: called, by the events that are answered, with the position that is behind them.
        counts: of the source.
    """

    def __init__(
        self,
        outbox: Outbox,
        keys: Keys,
        position: Position,
        commit: Callable[[Position], object],
        counts: SourceCounts,
    ) -> None:
        self._keys = keys
        self._given = {name.lower(): name for name in keys}
        self._commit = commit
        self._counts = counts
        self._owed: list[str] = []  # reasons of resyncs; a call that raises keeps them
        self.looks = 0
        self.use(outbox)
        #: Everything up to here has been answered, and this was the number of the schema.
        self.mark, self.schema = position

    def use(self, outbox: Outbox) -> None:
        """Go on with another connection to the same file."""
        self._outbox = outbox
        self._version = -1
        #: There is more to read at once.
        self.behind = True
        self._note_tables()

    def start_again(self, outbox: Outbox, reason: str) -> list[Event]:
        """Go on with another file."""
        self.use(outbox)
        self.mark, self.schema = outbox.last(), outbox.schema()
        self._owed.clear()
        return [self._resync(reason)]

    def look(self) -> list[Event]:
        """What is new, nothing if nothing is. Raises sqlite3.Error."""
        self.looks += 1
        version = self._outbox.version()
        if version == self._version and not self.behind:
            return []
        self._owed += self._check_schema()
        rows = self._outbox.after(self.mark, ROWS)
        if rows is None:
            self.mark = self._outbox.last()
            self._owed.append("the position is gone")
        events: list[Event] = [self._resync(reason) for reason in self._owed]
        events += self._events(rows or [])
        self._owed.clear()
        self._version, self.behind = version, rows is not None and len(rows) == ROWS
        return events

    def _events(self, rows: list[tuple[Any, ...]]) -> list[Event]:
        """Rows of the outbox as what is yielded for them."""
        events: list[Event] = []
        changes: list[dict[str, Any]] = []
        for row in rows:
            before, self.mark = self.mark, Mark(row[0], row[1])
            name = self._given.get(str(row[2]).lower())
            reason = None if name is None else self._take(row, name, changes)
            if reason is not None:
                events += [self._batch(changes, before), self._resync(reason)]
                changes = []
        return [*events, self._batch(changes, self.mark)] if rows else []

    def _take(self, row: tuple[Any, ...], name: str, changes: list[dict[str, Any]]) -> str | None:
        """Add the change of a row; the reason of a resync if it is none."""
        if row[3] == SCHEMA:
            return f"the triggers of {name} were made anew"
        try:
            changes.append(change_of(row, name, self._keys[name]))
        except Exception as error:
            self._counts.poison += 1
            log.error("row %s of the outbox cannot be read", row[0], exc_info=error)
            return "a row of the outbox cannot be read"
        self._counts.messages += 1
        return None

    def _batch(self, changes: list[dict[str, Any]], mark: Mark) -> Batch:
        """Changes up to a mark; a resync that follows is not committed with them."""
        return Batch((), changes, partial(self._commit, Position(mark, self.schema)))

    def _resync(self, reason: str) -> Resync:
        return Resync(reason, partial(self._commit, Position(self.mark, self.schema)))

    # --- The schema ---

    def _check_schema(self) -> list[str]:
        """See to it that the triggers fit; why something may have gone unseen."""
        schema = self._outbox.schema()
        if schema == self.schema:
            return []
        before = self._there
        try:
            self._outbox.install()
        except ValueError as error:
            log.error("%s", error)
            return [str(error)]  # and again at the next commit, as the schema is not noted
        self._note_tables()
        reasons = [f"{name} is gone" for name in sorted(before - self._there)]
        if self._by_rowid:  # VACUUM numbers such rows anew, and changes the number of the schema
            reasons.append(f"the rowids of {', '.join(self._by_rowid)} may be others")
        self.schema = self._outbox.schema()
        return reasons

    def _note_tables(self) -> None:
        tables = {name: table for name, table in self._outbox.tables.items() if table is not None}
        self._there = set(tables)
        self._by_rowid = [n for n, table in tables.items() if not table.key and not self._keys[n]]
