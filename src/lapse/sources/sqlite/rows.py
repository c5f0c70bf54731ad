"""A row of the outbox as the change that listeners and templates get.

sequence, at, table, operation, layout, v0, v1, ...  ──►  {"table", "operation", "key", ...}
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from lapse.sources.sqlite.triggers import OMITTED

__all__ = ["change_of"]

FIRST = 5  # the place of v0


def change_of(row: tuple[Any, ...], table: str, key: tuple[str, ...]) -> dict[str, Any]:
    """The change of a row, under the table's given name.

    `key` names the columns of its key; none for what the layout says. Raises ValueError, TypeError
    or another error for a row that the triggers have not written.
    """
    sequence, at, _, operation, layout = row[:FIRST]
    places, names = _layout(layout)
    middle = FIRST + len(names)
    before = row[FIRST:middle] if operation != "insert" else None
    after = row[middle : middle + len(names)] if operation != "delete" else None
    old, old_key = _side(names, before, places, key)
    new, new_key = _side(names, after, places, key)
    if operation not in ("insert", "update", "delete") or not isinstance(sequence, int):
        raise ValueError(f"not a change: {operation!r}")
    change = {
        "table": table, "operation": operation, "key": old_key if after is None else new_key,
        "old": old, "new": new, "sequence": sequence, "at": at,
    }  # fmt: skip
    if before and after and old_key != new_key:
        change["old_key"] = old_key
    return change


def _side(
    names: list[str | None],
    values: tuple[Any, ...] | None,
    places: list[int],
    key: tuple[str, ...],
) -> tuple[dict[str, Any] | None, Any]:
    """One side of a change: its row and its key."""
    if values is None:
        return None, None
    row = {
        name: value
        for name, value in zip(names, values, strict=True)
        if name is not None and not (type(value) is bytes and value == OMITTED)
    }
    parts = tuple(row.get(name) for name in key) if key else tuple(values[n] for n in places)
    return row, parts[0] if len(parts) == 1 else parts


@lru_cache(maxsize=1024)
def _layout(text: str) -> tuple[list[int], list[str | None]]:
    """The places of the key, and the names of all values."""
    places, names = json.loads(text)
    return places, names
