"""What the database allowed at which moment, row by row, and whether a reader was served that.

    a writer             begins(row, version) ──► COMMIT ──► committed(...)
    the invalidations    in_force(...), once whatever was made from the old version is gone
    a reader             began = clock(); value = get_or_load(...); judge(value.rows, began)

A row's first version is 1, and each change that is committed makes it one more.

Invariants
    1. What a reader is accused of was so before its call began: a moment is noted after what it
       notes, and compared with one that was taken before the call.
    2. The versions of a row are committed in order, by whoever holds SQLite's write lock. They may
       be noted in another.

Any thread may call anything. Readers take no lock: each item of a dict is written once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

__all__ = ["Change", "Fault", "Ledger", "MadeFrom", "Row", "Snapshot"]

BOUND = 1.0  # seconds after its end at which a version must not be served any more

#: Rows with the versions that a value was made from.
MadeFrom = tuple[tuple["Row", int], ...]


FaultKind = Literal["came back", "too old", "never written"]


class Row:
    """One row, and when each of its versions came to an end. Times are monotonic seconds."""

    __slots__ = ("begun", "id", "in_force", "newest", "overwritten", "table")

    def __init__(self, table: str, id: Any) -> None:
        self.table = table
        self.id = id
        #: The newest version that a transaction has written, and that was committed for certain.
        self.begun = 0
        self.newest = 0
        #: By version: when the next one had been committed, and when its invalidation was in force.
        self.overwritten: dict[int, float] = {}
        self.in_force: dict[int, float] = {}

    def __repr__(self) -> str:
        return f"{self.table}:{self.id}"


class Snapshot(NamedTuple):
    """A value for the cache: what a page shows, and the rows that it was made from."""

    content: Any
    rows: MadeFrom


class Change(NamedTuple):
    """A version of a row that a committed transaction put an end to."""

    row: Row
    version: int
    #: Just before the COMMIT: from then on somebody may have read the next version.
    at: float

    def __str__(self) -> str:
        return f"the end of {self.row} version {self.version}"


class Fault(NamedTuple):
    """A version that a reader was served, and must not have been."""

    kind: FaultKind
    row: Row
    version: int
    #: Seconds since it was overwritten when the call began.
    age: float

    def __str__(self) -> str:
        return f"{self.row} version {self.version}: {self.kind}, {self.age:.3f} s old"


class Ledger:
    """The rows of one database.

    Args:
        bound: seconds after which an overwritten version must be gone.
        clock: monotonic seconds, for everybody who deals with the ledger.
    """

    def __init__(self, bound: float = BOUND, clock: Callable[[], float] = time.monotonic) -> None:
        self.bound = bound
        self.clock = clock
        #: What was committed, in no certain order, and how many of these are in force.
        self.changes: list[Change] = []
        self.applied = 0
        self._rows: dict[tuple[str, Any], Row] = {}
        self._noting = threading.Lock()

    def row(self, table: str, id: Any) -> Row:
        """The row of a table, which need not be there yet."""
        found = self._rows.get((table, id))
        return found or self._rows.setdefault((table, id), Row(table, id))

    def there(self, table: str, id: Any, version: int) -> None:
        """The row was there before anything began."""
        row = self.row(table, id)
        row.begun = row.newest = version

    # --- Writers ---

    def begins(self, row: Row, version: int) -> None:
        """A transaction has written a version, and holds the write lock."""
        row.begun = version

    def committed(self, changes: Iterable[Change]) -> None:
        """The transaction is committed."""
        now = self.clock()
        with self._noting:
            for change in changes:
                row, version = change.row, change.version
                row.overwritten[version] = now
                row.newest = max(row.newest, version + 1)
                self.changes.append(change)

    # --- Invalidations ---

    def in_force(self, table: str, id: Any, version: int) -> None:
        """What was made from this version, or an earlier one, is gone; one thread calls this."""
        ended = self.row(table, id).in_force
        if version not in ended:  # a change may come twice
            ended[version] = self.clock()
            self.applied += 1

    def lags(self) -> list[float]:
        """Seconds from commit to in force, at most, of each change that has got there; sorted."""
        found = ((change, change.row.in_force.get(change.version)) for change in self.changes)
        return sorted(end - change.at for change, end in found if end is not None)

    def lost(self) -> list[Change]:
        """Changes that are not in force."""
        return [each for each in self.changes if each.version not in each.row.in_force]

    # --- Readers ---

    def judge(self, rows: MadeFrom, began: float) -> tuple[float, Fault | None]:
        """How old a value was that a call got which began then, and what is wrong with that.

        The age is that of the version that ended first, 0.0 if all were the newest ones.
        """
        oldest, worst = 0.0, None
        for row, version in rows:
            age = max(0.0, began - row.overwritten.get(version, began))
            kind = self._kind(row, version, age, began)
            if kind is not None and (worst is None or age > worst.age):
                worst = Fault(kind, row, version, age)
            oldest = max(oldest, age)
        return oldest, worst

    def _kind(self, row: Row, version: int, age: float, began: float) -> FaultKind | None:
        if version > row.begun:
            return "never written"
        if row.in_force.get(version, began) < began:
            return "came back"
        return "too old" if age > self.bound else None
