"""How the cache of the demo learns what has changed: a database's changes, a scenario's rules.

    SQLite ──► SQLiteChanges ──► DatabaseChangeInvalidation
                                     1. keys of the row ───────────────────────────► cache
                                     2. World.event() ──► the rules of a scenario ──► cache
                                     3. the ledger: it is in force

The ledger comes last: when it is told, everything that follows from a change is in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from lapse.caches import TTLCache
from lapse.demo.ledger import Ledger
from lapse.demo.origin import Origin
from lapse.demo.world import World
from lapse.sources.database import DatabaseChangeInvalidation
from lapse.sources.sqlite import SQLiteChanges

__all__ = ["kept_true"]


@contextmanager
def kept_true(
    cache: TTLCache[Any, Any], world: World, origin: Origin
) -> Iterator[DatabaseChangeInvalidation]:
    """Apply to a cache, within the block, what follows from the changes of a database."""
    with (
        closing(SQLiteChanges(origin.path, world.tables)) as changes,
        closing(world.scenario(cache, origin)) as scenario,
        closing(DatabaseChangeInvalidation(cache, changes, keys=world.keys, start=False)) as kept,
    ):

        def apply_rules(change: Mapping[str, Any]) -> None:
            event = world.event(change)
            if event is not None:
                scenario.apply_event(event)

        for table in world.tables:
            kept.add_change_listener(table, apply_rules)
        kept.add_change_listener("*", _teller(origin.ledger))
        kept.start_change_monitoring()
        yield kept


def _teller(ledger: Ledger) -> Callable[[Mapping[str, Any]], None]:
    """Tells a ledger which version of which row has come to its end."""

    def tell(change: Mapping[str, Any]) -> None:
        old = change["old"]
        ledger.in_force(change["table"], change["key"], 0 if old is None else old["version"])

    return tell
