"""The live views of a cache: keys(), values(), items().

Iterating a view is weakly consistent (see `Walk` in _core.pyx) and does not count as reading:
nothing is re-armed, drawn or counted.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TypeVar

from lapse._core import ITEMS, KEYS, VALUES

__all__ = ["CacheItems", "CacheKeys", "CacheValues"]

K = TypeVar("K")
V = TypeVar("V")


class CacheKeys(KeysView[K]):
    """A live view of a cache's keys."""

    def __iter__(self) -> Iterator[K]:
        return self._mapping._walk(KEYS)  # type: ignore[attr-defined, no-any-return]


class CacheValues(ValuesView[V]):
    """A live view of a cache's values."""

    def __contains__(self, value: object) -> bool:
        return any(value is v or value == v for v in self)

    def __iter__(self) -> Iterator[V]:
        return self._mapping._walk(VALUES)  # type: ignore[attr-defined, no-any-return]


class CacheItems(ItemsView[K, V]):
    """A live view of a cache's (key, value) pairs."""

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        found = self._mapping._look(item[0], self)  # type: ignore[attr-defined]
        return found is not self and (found is item[1] or found == item[1])

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping._walk(ITEMS)  # type: ignore[attr-defined, no-any-return]
