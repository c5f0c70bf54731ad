"""SQLiteChanges: the changed rows of an SQLite file, whoever changes them, as a source.

    writers, any process ──► triggers ──► outbox ──► look ──► Batch | Resync
                                             ▲        │
                                          prune ◄─────┘ ──► position of a named consumer

To look (reader.py) takes microseconds: often while something happens, less often when nothing does,
and at once after wake().

Invariants
    1. What is yielded was committed. It comes in the order of the commits and at least once.
    2. Whoever cannot know what happened yields a Resync: the position is gone (pruned, or the file
       is an older one), the file was replaced or deleted, triggers were made anew, a row of the
       outbox cannot be read, rows that have no key may have been numbered anew.
    3. A new iteration begins after what was committed last.
    4. `_lock` is held while the connection is in use, never while something is yielded. It is
       re-entrant: a finalizer may close the source in the midst of a look, which lets go then.
    5. A forked child opens a connection of its own, and never touches the one it inherited. No fork
       falls in a look: SQLite keeps account of the locks of a file by process, and what one of its
       connections was about would lock the child out for ever.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lapse.forks import hold
from lapse.invalidation.process import watch
from lapse.invalidation.source import Batch, Delivery, Resync, SourceCounts
from lapse.sources.sqlite.connection import TellingConnection
from lapse.sources.sqlite.install import remove
from lapse.sources.sqlite.outbox import Limits, Outbox, Position, connect, is_busy
from lapse.sources.sqlite.reader import Event, Reader, keys_of

__all__ = ["SQLiteChanges", "SQLiteStats"]

log = logging.getLogger("lapse.sources")

EMPTY_BATCH = 0.4  # seconds after which an empty batch says that all is well
CHECK_FILE = 0.1  # seconds between looks at which file has the path
KEEP_POSITION = 0.1  # seconds between two positions that are written down
HEARTBEAT = 60.0  # seconds between two at the latest
LAST_WAIT = 0.2  # seconds that the first and the last one wait for whoever writes
PRUNE, PRUNE_IDLE, PRUNE_RETRY = 5.0, 30.0, 0.25  # seconds between prunings
CHUNKS = 3  # that are pruned in a row
ACTIVE = 3.0  # seconds without a change after which looks become rarer
BUSY_NAP = 0.0005  # seconds between tries to read while somebody else is committing

_inherited: list[Outbox] = []  # in a forked child: closing them would disturb the parent's


class SQLiteStats(NamedTuple):
    """What an SQLiteChanges has done since it was made."""

    #: Number of the last change that is in force.
    position: int
    #: Changes read, rows pruned, and looks at the file.
    changes: int
    pruned: int
    looks: int


class SQLiteChanges:
    """The changes of rows in tables of an SQLite file: a `Source`.

    Args:
        path: of the file (str or path-like), which is there and may be written to.
        tables: names of the tables to capture; or a mapping of names to the columns that are the
            key where changes are reported, empty for the primary key.
        consumer: keeps its position in the file under this name, and goes on from there the next
            time; one source a name at a time. None: it begins with what is committed from now on.
        poll: seconds between looks at the file while it changes.
        idle_poll: the same at most, when nothing has changed for a while.
        keep: seconds that a change stays in the outbox at least.
        max_age, max_rows: seconds and rows that the outbox holds at most, though a consumer that is
            not heard of has not read them.
        timeout: seconds to wait here while another connection writes.
        clock, wall: monotonic and Unix seconds.

    Making one puts triggers and tables named `lapse_...` into the file, unless they are there. Each
    change is a dict of "table", "operation" ("insert", "update" or "delete"), "key" (the value of
    the primary key, a tuple of several, the rowid of a table that has none), "old" and "new" (dicts
    of the columns, or None), "sequence" and "at" (Unix seconds, before the commit). An update that
    changes the key has the former one in "old_key". A value of more than 65,536 letters or bytes is
    not there, unless it is part of the primary key.

    Raises ValueError for an unknown table or column, a view or a virtual table, and sqlite3.Error.

    One thread iterates; any may call the methods.
    """

    delivery: Delivery = "at-least-once"
    ordered = True
    replay = True
    broadcast = True

    # Monotonic seconds: of the last change, and when what is due next.
    _active_at: float
    _check_at: float
    _kept_at: float
    _prune_at: float
    _is_busy: bool

    def __init__(
        self,
        path: str | os.PathLike[str],
        tables: Iterable[str] | Mapping[str, Iterable[str]],
        *,
        consumer: str | None = None,
        poll: float = 0.002,
        idle_poll: float = 0.025,
        keep: float = 60.0,
        max_age: float = 86_400.0,
        max_rows: int = 1_000_000,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise ValueError(f"the path of a file is needed, not {path!r}")
        if not 0 < poll <= idle_poll:
            raise ValueError(f"0 < poll <= idle_poll is needed, not {poll!r} and {idle_poll!r}")
        if not (keep >= 0 and max_age > 0 and max_rows > 0):
            raise ValueError("keep, max_age and max_rows must be positive")
        self.path = Path(path)
        self.consumer = consumer
        #: Shown in a receiver's statistics.
        self.counts = SourceCounts()
        self._keys = keys_of(tables)
        self._poll, self._idle_poll = poll, idle_poll
        self._limits = Limits(keep, max_age, max_rows)
        self._clock, self._wall = clock, wall
        self._pruned = 0
        self._complaint = ""
        self._stop = False
        self._outbox: Outbox | None = None
        self._renew_in_child()
        hold(self)
        with self._lock:
            outbox = Outbox(self.path, self._keys, timeout)
            try:
                self._begin(outbox)
            except BaseException:
                outbox.close()
                raise
        watch(self)

    def _begin(self, outbox: Outbox) -> None:
        """Check the tables, and find the position."""
        for name, key in self._keys.items():
            table = outbox.tables[name]
            known = {column.name for column in table.columns} if table else set()
            if table is None or not known.issuperset(key):
                raise ValueError(f"{self.path} has no table {name!r} with columns {key!r}")
        kept = outbox.position(self.consumer) if self.consumer is not None else None
        self._kept = kept
        self._committed = kept or Position(outbox.last(), outbox.schema())
        self._reader = Reader(outbox, self._keys, self._committed, self._commit, self.counts)
        self._outbox, self._file = outbox, outbox.file
        with outbox.patient(LAST_WAIT):
            self._try(self._write_position)
        self._kept_at -= KEEP_POSITION  # the first commit is written down at once

    # --- Iteration ---

    def __iter__(self) -> Iterator[Event]:
        """Yield what has changed since the position; endless, until close()."""
        with self._lock:
            self._reader.mark, self._reader.behind = self._committed.mark, True
        last_event = self._clock()
        while not self._stop:
            events = self._turn()
            now = self._clock()
            if events:
                self._active_at = now
            elif now - last_event >= EMPTY_BATCH:
                events = [Batch()]
            for event in events:
                yield event
                last_event = now
            if not events or not self._reader.behind:
                self._signal.wait(BUSY_NAP if self._is_busy else self._nap(now))
                self._signal.clear()

    def _nap(self, now: float) -> float:
        """Seconds until the next look: the longer nothing has happened, the more."""
        quiet = (now - self._active_at) / ACTIVE
        return min(self._idle_poll, self._poll * max(1.0, quiet))

    def _turn(self) -> list[Event]:
        """What there is to yield. Raises sqlite3.Error; then the next turn opens the file anew."""
        with self._lock:
            self._is_busy = False
            if self._stop:
                return []
            try:
                if self._outbox is None:
                    return self._reopen()
                if not self._is_current(self._outbox):
                    return self._replaced()
                self._tidy()
                return self._reader.look()
            except sqlite3.Error as error:
                self._is_busy = is_busy(error)
                if self._is_busy:
                    return []
                self._let_go()
                raise
            finally:
                if self._stop:
                    self._let_go()

    # --- The file ---

    def _is_current(self, outbox: Outbox) -> bool:
        now = self._clock()
        if now < self._check_at:
            return True
        self._check_at = now + CHECK_FILE
        return outbox.is_current()

    def _replaced(self) -> list[Event]:
        self._let_go()
        self._file = None
        self._check_at = 0.0
        return self._reopen() or [Resync("the file is gone")]

    def _reopen(self) -> list[Event]:
        """Open the file, if it is there."""
        now = self._clock()
        if now < self._check_at:
            return []
        self._check_at = now + CHECK_FILE
        try:
            outbox = Outbox(self.path, self._keys, timeout=0.0)
        except (sqlite3.Error, ValueError) as error:
            log.debug("%s cannot be opened: %s", self.path, error)
            return []
        same, self._outbox, self._file = outbox.file == self._file, outbox, outbox.file
        if not same:
            return self._reader.start_again(outbox, "the file was replaced")
        self._reader.use(outbox)
        return []

    def _let_go(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            with suppress(sqlite3.Error):
                outbox.close()

    # --- Positions and pruning ---

    def _commit(self, position: Position) -> None:
        with self._lock:
            self._committed = position
            self._keep_position()
            self._progress.notify_all()

    def _keep_position(self) -> None:
        """Write the position down, but not too often; a busy file is tried again later."""
        heartbeat = min(HEARTBEAT, self._limits.max_age / 4)
        wait = KEEP_POSITION if self._committed != self._kept else heartbeat
        if self._outbox is not None and self._clock() - self._kept_at >= wait:
            self._try(self._write_position)

    def _write_position(self, outbox: Outbox) -> None:
        if self.consumer is not None:
            outbox.keep_position(self.consumer, self._committed, self._wall())
        self._kept, self._kept_at = self._committed, self._clock()

    def _tidy(self) -> None:
        self._keep_position()
        now = self._clock()
        if now >= self._prune_at:
            idle = now - self._active_at >= ACTIVE
            later = PRUNE_IDLE if idle else PRUNE
            self._prune_at = now + (later if self._try(self._prune) else PRUNE_RETRY)

    def _try(self, write: Callable[[Outbox], object]) -> bool:
        """Write to the file, if it can be done now; reading goes on if it cannot."""
        assert self._outbox is not None
        try:
            write(self._outbox)
        except sqlite3.OperationalError as error:
            if not is_busy(error) and self._complaint != str(error):
                self._complaint = str(error)
                log.warning("%s cannot be written to: %s", self.path, error)
            return False
        return True

    def _prune(self, outbox: Outbox) -> int:
        count = 0
        for _ in range(CHUNKS):
            fresh = outbox.prune(self._limits, self._wall())
            count += fresh
            if not fresh:
                break
        self._pruned += count
        return count

    # --- For other threads ---

    def wake(self) -> None:
        """Look at once: call it after a commit of this process. O(1)."""
        self._active_at = self._clock()
        self._signal.set()

    def catch_up(self, timeout: float = 1.0) -> bool:
        """Wait until all that was committed before the call is in force; False if it took longer.

        Not for the thread that iterates. False as well if the file cannot be read, or when closed.
        """
        with self._lock:
            try:
                last = None if self._outbox is None else self._outbox.last().sequence
            except sqlite3.Error:
                last = None
            if last is None:
                return False
            self.wake()
            self._progress.wait_for(lambda: self._stop or self._has(last), timeout)
            return self._has(last)

    def _has(self, sequence: int) -> bool:
        return self._committed.mark.sequence >= sequence

    def connect(self, **options: Any) -> sqlite3.Connection:
        """`sqlite3.connect()` to the file, by a connection whose commits wake() this source."""
        connection = sqlite3.connect(self.path, factory=TellingConnection, **options)
        connection.tell = self.wake
        return connection

    def prune(self) -> int:
        """Delete rows of the outbox that nobody needs, as the source does anyway; how many.

        Raises sqlite3.OperationalError if another connection writes.
        """
        with self._lock:
            return 0 if self._outbox is None else self._prune(self._outbox)

    def stats(self) -> SQLiteStats:
        """Figures of nearly one instant. O(1)."""
        return SQLiteStats(
            self._committed.mark.sequence, self.counts.messages, self._pruned, self._reader.looks
        )

    def get_stats(self) -> dict[str, Any]:
        """The same as a JSON-ready dict, with the class."""
        return self.stats()._asdict() | {"class": type(self).__name__}

    def close(self) -> None:
        """End the iteration, and let go of the file; the triggers stay. Idempotent."""
        self._stop = True
        self._signal.set()
        in_a_look = self._lock._is_owned()  # type: ignore[attr-defined]
        with self._lock:
            self._progress.notify_all()
            if in_a_look:
                return
            if self._outbox is not None and self._committed != self._kept:
                with suppress(sqlite3.Error), self._outbox.patient(LAST_WAIT):
                    self._try(self._write_position)
            self._let_go()

    @staticmethod
    def uninstall(path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        """Take all triggers and tables of the outbox out of a file that no source reads any more.

        Do so before `ALTER TABLE ... DROP COLUMN`, which SQLite refuses while a trigger names the
        column. Raises sqlite3.Error.
        """
        connection = connect(Path(path), timeout)
        try:
            remove(connection)
        finally:
            connection.close()

    def __repr__(self) -> str:
        return f"SQLiteChanges({str(self.path)!r}, {sorted(self._keys)})"

    # --- Fork and exit ---

    _finish_at_exit = close

    def _renew_in_child(self) -> None:
        """The state that a process has of its own; also that of a new source."""
        if self._outbox is not None:
            _inherited.append(self._outbox)
            self._outbox = None
        self._lock = threading.RLock()
        self._progress = threading.Condition(self._lock)
        self._signal = threading.Event()
        now = self._clock()
        self._active_at, self._check_at, self._kept_at = now, 0.0, now - KEEP_POSITION
        self._prune_at = now + PRUNE
        self._is_busy = False
