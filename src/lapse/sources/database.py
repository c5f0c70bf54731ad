"""DatabaseChangeInvalidation: a cache kept true by the changes of a database's rows.

    database ──► source ──► Batch of changes ──► Templates ──► queue ──► cache
                                             ──► listeners, once that is in force

The database is a `Source` whose batches have changes (SQLiteChanges, say), or any object with the
method get_recent_changes(), which is asked every `interval` seconds (polled.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from lapse.invalidation.facade import Invalidator, OnAlert
from lapse.invalidation.message import Invalidation
from lapse.invalidation.queue import raise_first
from lapse.invalidation.receiver import OnResync
from lapse.invalidation.source import Batch, Delivery, Source
from lapse.sources.polled import PolledChanges
from lapse.sources.templates import Templates, TemplatesByTable

__all__ = ["DatabaseChangeInvalidation"]

log = logging.getLogger("lapse.sources")

ChangeListener = Callable[[Mapping[str, Any]], object]
EVERY_TABLE = "*"


class DatabaseChangeInvalidation(Invalidator):
    """Applies what follows from the changes of a database to a cache.

    Args:
        cache: a cache of lapse, or any with `delete(key)` and `delete_pattern(pattern)`.
        database: a `Source`, which is closed with this; or any object whose get_recent_changes()
            answers an iterable of mappings with a "table".
        keys, tags, patterns: what goes when a row changes, by table: templates with columns in
            braces, or callables that get the row; `Templates` has the rest. A table that is in none
            of them has the key "<table>:<primary key>".
        interval: seconds between questions to a database that is no source.
        start: receive at once; False: when start_change_monitoring() is called.
        on_resync: what a loss of changes does: "clear" empties the cache, "soft" lets entries be
            served for `soft_ttl` seconds more where the cache can do that, a callable gets the
            `Resync` and answers the invalidations that make it good.
        on_alert: one callable or several, called with each `Alert`.
        name: in the thread's name (`lapse-<name>`), in alerts and statistics.

    Raises ValueError for a malformed template or a setting out of range, TypeError for a database
    that is neither. Any thread may call any method.
    """

    default_name = "database-changes"

    def __init__(
        self,
        cache: Any,
        database: Any,
        *,
        keys: TemplatesByTable | None = None,
        tags: TemplatesByTable | None = None,
        patterns: TemplatesByTable | None = None,
        interval: float = 1.0,
        start: bool = True,
        on_resync: OnResync = "clear",
        soft_ttl: float = 60.0,
        on_alert: OnAlert = None,
        name: str | None = None,
    ) -> None:
        super().__init__(cache, name=name, on_alert=on_alert)
        self.database = database
        self.templates = Templates(keys, tags, patterns)
        #: Exceptions that listeners have raised.
        self.listener_errors = 0
        self._listeners: dict[str, list[ChangeListener]] = {}
        self._listen(
            _source_of(database, interval), start=start, on_resync=on_resync, soft_ttl=soft_ttl,
            translate=self._translate, after=self._tell,
        )  # fmt: skip

    def start_change_monitoring(self) -> None:
        """Start the thread that receives, unless it runs. RuntimeError if closed."""
        self.receiver.start()

    def add_change_listener(self, table: str, callback: ChangeListener) -> None:
        """Call `callback(change)` for each change of a table; "*" is every table.

        It is called by the receiving thread, in the order of the changes, when what follows from
        the change is in force, with no lock held. What it raises is logged and counted. Who starts
        with `start=False` can add listeners before the first change.
        """
        if not callable(callback):
            raise TypeError(f"a listener is a callable, not a {type(callback).__name__}")
        self._listeners.setdefault(table, []).append(callback)

    def invalidate_by_table(self, table: str) -> int:
        """Remove every entry whose key begins with the table and a ":"; how many."""
        return self._apply(Invalidation("table", table))

    def invalidate_by_key(self, key: Any) -> int:
        """Remove the entry of a key; how many, 0 or 1."""
        return self._apply(Invalidation("key", key))

    def get_stats(self) -> dict[str, Any]:
        """The statistics as a JSON-ready dict, with errors of templates and of listeners."""
        return super().get_stats() | {
            "template_errors": self.templates.errors,
            "listener_errors": self.listener_errors,
        }

    def _apply(self, item: Invalidation) -> int:
        answers = self.queue.apply([item])
        raise_first(answers)
        return answers[0].removed

    # --- In the receiving thread ---

    def _translate(self, batch: Batch) -> Iterable[Invalidation]:
        items: dict[Invalidation, None] = {}
        for change in batch.changes:
            items.update(dict.fromkeys(self.templates(change)))
        return items

    def _tell(self, batch: Batch) -> None:
        for change in batch.changes:
            for table in (change["table"], EVERY_TABLE):
                for listener in tuple(self._listeners.get(table, ())):
                    self._call(listener, change)

    def _call(self, listener: ChangeListener, change: Mapping[str, Any]) -> None:
        try:
            listener(change)
        except Exception:
            self.listener_errors += 1
            log.exception("%s: a change listener failed", self.name)


def _source_of(database: Any, interval: float) -> Source:
    """The database itself, or its polled changes. A stand-in that has every attribute is asked."""
    if getattr(database, "delivery", None) in get_args(Delivery):
        source: Source = database
        return source
    if callable(getattr(database, "get_recent_changes", None)):
        return PolledChanges(database, interval)
    raise TypeError(f"a {type(database).__name__} is no source, and has no get_recent_changes()")
